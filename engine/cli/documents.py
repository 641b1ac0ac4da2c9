"""Read the files that ``ask`` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..taskfile import TaskFile
from .stdin import read_text


def load(files: Sequence[str]) -> object:
    """Return the context: the text of one file, or several texts by name.

    Raises:
        TaskError: a file cannot be read.
    """
    found = {name: _load(name) for name in files}
    return found if len(found) > 1 else next(iter(found.values()))


def _load(name: str) -> object:
    if name == "-":
        return read_text("the document")
    return TaskFile(query="q", context_file=name).load_context(Path())
