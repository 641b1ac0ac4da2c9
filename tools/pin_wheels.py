"""Write the pinned requirements of the sandbox's image anew: ``python -m supdist.tools.pin_wheels``.

For each set the newest releases that have wheels for every Python and machine below, with the hashes of these
wheels. Needs pip and the package index.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

SETS = {
    "guest": ["msgspec", "cloudpickle"],
    "mcp": ["mcp"],
    "data": ["numpy<2.5", "contourpy<1.3.4", "pandas", "matplotlib", "pillow"],  # the last for Python 3.11
}
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
GLIBCS = (17, 24, 26, 27, 28)
"""Those that wheels are built for; 28 is that of Debian 10."""

FOLDER = Path(__file__).parent.parent / "sandbox_image" / "requirements"


def main() -> None:
    """Write every set."""
    parser = argparse.ArgumentParser(
        prog="pin_wheels", description="Write the pinned requirements of the image anew."
    )
    parser.parse_args()
    for name, packages in SETS.items():
        (FOLDER / f"{name}.txt").write_text(pinned(packages), encoding="utf-8")
        print(name)


def pinned(packages: list[str]) -> str:
    """Requirements that allow exactly the wheels that pip chooses for some Python and machine of ours.

    Raises:
        SystemExit: a package has no one version for all of them; name a version that has.
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
    names = [requirement.partition("==")[0] for requirement in hashes]
    several = sorted({name for name in names if names.count(name) > 1})
    if several:
        raise SystemExit(f"no one version for all of {', '.join(PYTHONS)}: {', '.join(several)}")
    return "".join(
        " \\\n    ".join([requirement, *(f"--hash=sha256:{value}" for value in sorted(hashes[requirement]))])
        + "\n"
        for requirement in sorted(hashes)
    )


def download(packages: list[str], python: str, machine: str, folder: str) -> None:
    """Let pip choose and fetch the wheels for another Python."""
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
