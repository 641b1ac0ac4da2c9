"""Tasks with checked options, and checks that several tasks share."""

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

# A rule that needs no tokenizer, and is close to what tokenizers count in English prose.
CHARACTERS_PER_TOKEN = 4

_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmM])\s*")
_WHOLE = re.compile(r"\s*[-+]?\d+\s*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,128}")


def _length(value: object) -> object:
    found = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and not found and not _WHOLE.fullmatch(value):
        raise ValueError(f"must be a number of tokens, such as 32k, 1.5M or 8000, not {value!r}")
    return round(float(found[1]) * {"k": 1e3, "m": 1e6}[found[2].lower()]) if found else value


# Tokens; accepts "128k" and "1.5M".
Length = Annotated[int, BeforeValidator(_length), Field(ge=1_000, le=10_000_000)]


class TaskWithOptions(BaseModel, Task):
    """A task that is a frozen pydantic model of its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def hash_of(self, *parts: object) -> str:
        """Hash the task's name and plain data."""
        text = json.dumps([self.name, *parts], ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def valid_id(value: str) -> bool:
    """Return whether a text can be an example's id."""
    # An id names a folder: no separators, and no hidden folder.
    return _IDENTIFIER.fullmatch(value) is not None and not value.startswith(".")


def check_unique(examples: list[Example], where: object) -> list[Example]:
    """Return the examples.

    Raises:
        TaskDataError: two have the same id.
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
    """Decode UTF-8, without a byte order mark.

    Raises:
        TaskDataError: it is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{what} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def regular_file(path: Path) -> Path:
    """Return the path.

    Raises:
        OSError: it is no regular file, or does not exist.
    """
    # Reading a device never ends; opening a pipe waits for a writer. Not the engine's check, which refuses
    # links: a user's own data set may have some.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        TaskDataError: it cannot be read.
    """
    try:
        return decode(regular_file(path).read_bytes(), path)
    except OSError as error:
        raise TaskDataError(f"cannot read {path}: {error.strerror}") from error
