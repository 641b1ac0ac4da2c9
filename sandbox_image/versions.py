"""Print the packages of an image as a CycloneDX bill of materials, during its build."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions

_FOLDERS = [*sys.path, "/opt/supdist", "/opt/mcp"]


def main() -> None:
    """Print the bill of materials."""
    python = {"type": "platform", "name": "python", "version": platform.python_version()}
    components = [python, *sorted([*_packages(), *_debian()], key=lambda one: one["purl"])]
    print(
        json.dumps(
            {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}, indent=1
        )
    )


def _packages() -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    for found in distributions(path=_FOLDERS):
        purl = f"pkg:pypi/{found.name.lower()}@{found.version}"
        if purl not in seen:
            seen.add(purl)
            yield {"type": "library", "name": found.name, "version": found.version, "purl": purl}


def _debian() -> Iterator[dict[str, str]]:
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"]
    for line in subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines():
        name, version, architecture = line.split()
        purl = f"pkg:deb/debian/{name}@{version}?arch={architecture}"
        yield {"type": "library", "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    main()
