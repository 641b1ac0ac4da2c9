"""Turn the bytes of one file into its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from ...handlers.slices import Steps, in_slices
from ...handlers.text_files import NotText, guess_encoding, guess_warning, is_binary, marked_encoding
from ..errors import TaskError
from ..slices import decode
from .converter import Converter
from .kinds import SUPPORTED, Kind, is_misnamed, kind_of

_NUL_ALLOWED = (".txt", ".md", ".json")


async def content_of(
    name: str,
    data: bytes,
    converter: Converter,
    warn: Callable[[str], None],
    *,
    raw_html: bool = False,
    parse_json: bool = True,
) -> str | list[Any] | dict[str, Any]:
    """Return the text of a file, or the value of a .json file.

    Raises:
        TaskError: it has none; the message names the file.
        SandboxUnavailable: the file must be converted, and no sandbox can be had here.
    """
    try:
        kind = kind_of(name, data)
        if kind in (Kind.PDF, Kind.ZIP) or (kind is Kind.HTML and not raw_html):
            return await converter.convert(kind, data)
        text, guessed = await in_slices(_text(name, data))
    except (TaskError, NotText) as error:
        raise TaskError(f"cannot read {name}: {error}") from error
    if guessed is not None:
        warn(guess_warning(name, guessed))
    if kind is Kind.JSON and parse_json:
        return _parsed(name, text)
    if is_misnamed(name):
        warn(f"{name} holds plain text, although its name is that of a document; it is read as text")
    return text


def _text(name: str, data: bytes) -> Steps[tuple[str, str | None]]:
    encoding, mark = marked_encoding(data)
    is_utf8 = encoding == "utf-8"
    # Valid UTF-8 may still be binary, such as an archive of texts.
    may_have_nul = PurePath(name).suffix.lower() in _NUL_ALLOWED
    if is_utf8 and not mark and not may_have_nul and is_binary(data):
        raise NotText(f"it is a binary file. What can be read: {SUPPORTED}")
    try:
        return (yield from decode([memoryview(data)[mark:]], encoding=encoding)), None
    except UnicodeDecodeError as error:
        if mark or not is_utf8:
            raise NotText(f"it is damaged {encoding.upper()} text") from error
    guessed = guess_encoding(data)
    return (yield from decode([data], "replace", encoding=guessed)), guessed


def _parsed(name: str, text: str) -> str | list[Any] | dict[str, Any]:
    try:
        value: object = json.loads(text)
    # RecursionError: deeply nested JSON.
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, (str, list, dict)):
        raise TaskError(f"{name} must hold a string, a list or an object")
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON of any shape
