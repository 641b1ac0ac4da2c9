"""Writes the pinned requirements of the sandbox image: ``python -m supdist.tools.pin_wheels``."""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

# The newest releases with wheels for every Python and machine below are pinned.
SETS = {
    "guest": ["msgspec", "cloudpickle"],
    "mcp": ["mcp"],
    # The bounds are the last releases for Python 3.11.
    "data": ["numpy<2.5", "contourpy<1.3.4", "pandas", "matplotlib", "pillow"],
}
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# Minor versions of glibc 2 that wheels are built for; 28 is that of Debian 10.
GLIBCS = (17, 24, 26, 27, 28)

FOLDER = Path(__file__).parent.parent / "sandbox_image" / "requirements"


def main() -> None:
    """Write every set."""
    parser = argparse.ArgumentParser(
        prog="pin_wheels", description="Write the pinned requirements of the image."
    )
    parser.parse_args()
    for name, packages in SETS.items():
        (FOLDER / f"{name}.txt").write_text(pinned(packages), encoding="utf-8")
        print(name)


def pinned(packages: list[str]) -> str:
    """Return requirements with the hashes of the wheels that pip chooses.

    Raises:
        SystemExit: pip chooses several versions of a package.
    """
    hashes: defaultdict[str, set[str]] = defaultdict(set)
    for python in PYTHONS:
        for machine in MACHINES:
            with tempfile.TemporaryDirectory() as folder:
                download(packages, python, machine, folder)
                for wheel in Path(folder).iterdir():
                    name, version = wheel.name.split("-")[:2]
                    requirement = f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
                    hashes[requirement].add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    # A requirements file has one version for every Python, so pip must choose the same for all.
    names = [requirement.partition("==")[0] for requirement in hashes]
    several = sorted({name for name in names if names.count(name) > 1})
    if several:
        raise SystemExit(
            f"no single version for all of Python {', '.join(PYTHONS)}: {', '.join(several)}; "
            "bound it in SETS"
        )
    return "".join(
        " \\\n    ".join([requirement, *(f"--hash=sha256:{value}" for value in sorted(hashes[requirement]))])
        + "\n"
        for requirement in sorted(hashes)
    )


def download(packages: list[str], python: str, machine: str, folder: str) -> None:
    """Download the wheels that pip chooses for another Python."""
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in GLIBCS] + [f"manylinux2014_{machine}"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-qq", "--dest", folder, "--only-binary", ":all:"),
            *("--implementation", "cp", "--python-version", python),
            *(f"--platform={platform}" for platform in platforms),
            *packages,
        ],
        check=True,
    )


if __name__ == "__main__":
    main()
