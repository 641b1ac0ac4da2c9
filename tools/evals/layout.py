"""Tables as text, Markdown and CSV. Names of models and runs are others' text: nothing in them acts on a reader."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...sandbox_image.text import one_line

T = TypeVar("T")

_NARROWEST = 20


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column over rows of one kind; numbers stand on the right."""

    title: str
    show: Callable[[T], str]
    left: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Cells that can be printed; the columns ``keys`` name the row."""

    titles: Sequence[str]
    left: Sequence[bool]
    rows: Sequence[Sequence[str]]
    keys: Sequence[int] = (0,)


def table(columns: Sequence[Column[T]], rows: Sequence[T], keys: Sequence[str] = ()) -> Table:
    """The rows' cells, made harmless: no control character, no line end."""
    titles = [column.title for column in columns]
    return Table(
        titles,
        [column.left for column in columns],
        [[one_line(column.show(row)) for column in columns] for row in rows],
        [titles.index(key) for key in keys] or (0,),
    )


def as_text(what: Table, width: int | None = None) -> str:
    """Aligned columns; where they do not fit into ``width``, several tables below each other, each with the keys."""
    from rich.cells import cell_len, set_cell_size

    columns: list[Sequence[str]] = list(zip(what.titles, *what.rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    bands = [list(range(len(columns)))]
    if width is not None and sum(widths) + 3 * len(widths) - 3 > width:
        width = max(width, _NARROWEST)
        most = (width - 3 * len(what.keys)) // (len(what.keys) + 1)
        columns = [[_clip(cell, most) for cell in column] for column in columns]
        widths = [min(each, most) for each in widths]
        bands = _bands(widths, width, what.keys)

    def cell(column: int, row: int) -> str:
        text, wide = columns[column][row], widths[column]
        return set_cell_size(text, wide) if what.left[column] else " " * (wide - cell_len(text)) + text

    def line(band: Sequence[int], row: int) -> str:
        return " | ".join(cell(column, row) for column in band).rstrip()

    return "\n\n".join(
        "\n".join(
            [
                line(band, 0),
                "-+-".join("-" * widths[column] for column in band),
                *(line(band, row) for row in range(1, len(what.rows) + 1)),
            ]
        )
        for band in bands
    )


def _clip(cell: str, most: int) -> str:
    """Without its middle, where it is too long: names often differ at the end."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(cell) <= most:
        return cell
    head = set_cell_size(cell, most // 2)
    tail = cell[::-1]
    return head + "…" + set_cell_size(tail, most - 1 - most // 2)[::-1]


def _bands(widths: Sequence[int], width: int, keys: Sequence[int]) -> list[list[int]]:
    free = width - sum(widths[key] for key in keys) - 3 * (len(keys) - 1)
    bands, room = [list(keys)], free
    for column in (each for each in range(len(widths)) if each not in keys):
        if room < widths[column] + 3:
            bands.append(list(keys))
            room = free
        bands[-1].append(column)
        room -= widths[column] + 3
    return bands


_MARKUP = re.compile(r"([\\`*_\[\]<>|&~$#!])")


def as_markdown(what: Table) -> str:
    """A pipe table; markup in cells is escaped."""
    rule = ["---" if left else "---:" for left in what.left]
    rows = [what.titles, rule, *([_MARKUP.sub(r"\\\1", cell) for cell in row] for row in what.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of the same keys; what has parts is JSON. Text that a spreadsheet would compute begins with an apostrophe."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _inert(value: object) -> object:
    if isinstance(value, dict):
        value = json.dumps(value)
    return as_cell(one_line(value)) if isinstance(value, str) else value


def as_cell(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would compute, white space before it or not."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@", "'")) else text
