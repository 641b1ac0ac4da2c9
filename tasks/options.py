"""Tasks whose options are checked: ``create("needle", {"length": "128k"})`` on the command line, in a file, in Python.

A sample example: ``class Needle(TaskWithOptions): length: Length = Field(default=32_000, description="...")``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .base import Example, Task, TaskDataError

CHARACTERS_PER_TOKEN = 4
"""How lengths are measured: four characters are a token, in any text. It is a rule that all can repeat, and near what
tokenizers make of English prose; a model's own count differs by a tenth or more."""

_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmM])\s*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,128}")


def _length(value: object) -> object:
    found = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    return round(float(found[1]) * {"k": 1e3, "m": 1e6}[found[2].lower()]) if found else value


Length = Annotated[int, BeforeValidator(_length), Field(ge=1_000, le=10_000_000)]
"""Tokens by the rule above, a thousand to ten million; "128k" and "1.5M" are understood."""


class TaskWithOptions(BaseModel, Task):
    """A task that is a frozen pydantic model of its options. What a field's ``description`` says is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def hash_of(self, *parts: object) -> str:
        """SHA-256 of the task's name and of plain data."""
        text = json.dumps([self.name, *parts], ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def valid_id(value: str) -> bool:
    """Whether it can be an example's id, and so a folder's name."""
    return _IDENTIFIER.fullmatch(value) is not None and not value.startswith(".")


def check_unique(examples: list[Example], where: object) -> list[Example]:
    """The same examples.

    Raises:
        TaskDataError: two have one id.
    """
    seen = set[str]()
    for example in examples:
        if example.id in seen:
            raise TaskDataError(
                f"{where}: the id {example.id!r} is there twice; give each question an id of its own"
            )
        seen.add(example.id)
    return examples


def decode(raw: bytes, what: object) -> str:
    """UTF-8, without a byte order mark.

    Raises:
        TaskDataError: it is something else.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{what} is no UTF-8 (byte {error.start}); save it as UTF-8") from error


def regular_file(path: Path) -> Path:
    """Return the path, unless something is there that is read without end, or waits for a writer.

    Raises:
        OSError: it is no regular file, or is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path


def read_text(path: Path) -> str:
    """A UTF-8 file.

    Raises:
        TaskDataError: it cannot be read.
    """
    try:
        return decode(regular_file(path).read_bytes(), path)
    except OSError as error:
        raise TaskDataError(f"cannot read {path}: {error.strerror}") from error
