"""Read items from a file of JSON Lines, or of one JSON list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast


def read_items(path: str | Path) -> list[Any]:
    """Return the items of a file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is no UTF-8, or a line is no JSON. The message names file and line.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    try:
        whole: object = json.loads(content)
    except (ValueError, RecursionError):
        return _lines(path, content)
    return cast("list[Any]", whole) if isinstance(whole, list) else [whole]


def _lines(path: str | Path, content: str) -> list[Any]:
    items: list[Any] = []
    # JSON Lines end with \n alone: a string may hold what else ``splitlines`` splits at.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            items.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "it is too deep"
            words = f"no JSON ({why}); give JSON Lines or a JSON list"
            raise ValueError(f"{path}, line {number}: {words}") from error
    return items
