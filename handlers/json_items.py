"""Read items from a file of JSON Lines, or of one JSON list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from .text_files import read_text


def read_items(path: str | Path) -> list[Any]:
    """Return the items of a text file. One JSON value that is no list is the only item.

    Raises:
        ValueError: it is no text, or a line is no JSON. The message names file and line.
    """
    content = read_text(Path(path))
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
