"""Carries the run log of an example from a node to the driver."""

from __future__ import annotations

from pathlib import Path

from ...engine.private_files import PrivateFolder
from ...engine.runlog.blobs import FOLDER as BLOBS


def read_logs(logs: Path) -> dict[str, bytes]:
    """Return the files of a run log by their paths in it."""
    files = (path for path in logs.rglob("*") if path.is_file())
    return {str(path.relative_to(logs)): path.read_bytes() for path in files}


def write_logs(logs: Path, files: dict[str, bytes]) -> None:
    """Write such files."""
    with PrivateFolder.open(logs, create=True) as folder:
        for name, content in files.items():
            path = Path(name)
            if path.parent.name == BLOBS:
                with folder.below(BLOBS, create=True) as blobs:
                    _write_file(blobs, path.name, content)
            else:
                _write_file(folder, path.name, content)


def _write_file(folder: PrivateFolder, name: str, content: bytes) -> None:
    with folder.replacing(name) as file:
        file.write(content)
