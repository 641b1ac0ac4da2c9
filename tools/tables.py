"""Tables for a terminal, Markdown and CSV. Cells are untrusted text."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ..sandbox_image.text import one_line

if TYPE_CHECKING:
    from rich.table import Table as RichTable

T = TypeVar("T")

_MIN_WIDTH = 20
# Rich's box characters, a row of the table on each line: left edge, filler, divider, right edge.
_RULES = "    \n  | \n -+ \n  | \n -+ \n -+ \n  | \n    \n"
_MARKUP = re.compile(r"([\\`*_\[\]<>|&~$#!])")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column over rows of one type."""

    title: str
    show: Callable[[T], str]
    left: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Cells to print.

    Attributes:
        left: whether each column is aligned left.
        keys: columns that identify a row.
        ruled: whether rules are drawn.
    """

    titles: Sequence[str]
    left: Sequence[bool]
    rows: Sequence[Sequence[str]]
    keys: Sequence[int] = (0,)
    ruled: bool = True


def table(columns: Sequence[Column[T]], rows: Sequence[T], keys: Sequence[str] = ()) -> Table:
    """Return the table of some rows, with control characters escaped."""
    titles = [column.title for column in columns]
    return Table(
        titles,
        [column.left for column in columns],
        [[one_line(column.show(row)) for column in columns] for row in rows],
        [titles.index(key) for key in keys] or (0,),
    )


def terminal_width() -> int | None:
    """Return the columns of the terminal; None if stdout is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_text(what: Table, width: int | None = None) -> str:
    """Return aligned text of at most ``width`` columns, at least 20."""
    from rich.cells import cell_len

    columns: list[Sequence[str]] = list(zip(what.titles, *what.rows, strict=True))
    widths = [max(1, *map(cell_len, column)) for column in columns]
    gap = 3 if what.ruled else 2
    bands = [list(range(len(columns)))]
    # Without a width, as in a file, nothing is cut.
    if width is not None and sum(widths) + gap * (len(widths) - 1) > width:
        width = max(width, _MIN_WIDTH)
        limit = (width - gap * len(what.keys)) // (len(what.keys) + 1)
        columns = [[_shorten(cell, limit) for cell in column] for column in columns]
        widths = [min(each, limit) for each in widths]
        bands = _bands(widths, width, what.keys, gap)
    return "\n\n".join(_band_text(what, columns, widths, band) for band in bands)


def as_pairs(pairs: Sequence[tuple[str, str]], width: int | None = None, *, name_width: int = 18) -> str:
    """Return a pair a line. A value wider than ``width`` is wrapped."""
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=name_width, no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(one_line(name)), Text(one_line(value)))
    # As wide as the longest pair, so that nothing is wrapped in a file.
    longest = sum(max(map(cell_len, column)) for column in zip(*pairs, strict=True))
    return _rendered(grid, width or longest + name_width)


def _band_text(
    what: Table, columns: Sequence[Sequence[str]], widths: Sequence[int], band: Sequence[int]
) -> str:
    from rich.box import Box
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    before, after = (" ", " ") if what.ruled else ("", "  ")

    # Padded here: versions of rich differ in the padding of the first and the last column.
    def padded(index: int, row: int) -> Text:
        cell = columns[index][row]
        space = " " * (widths[index] - cell_len(cell))
        cell = cell + space if what.left[index] else space + cell
        # A Text object: rich reads no markup and no emoji codes in it.
        return Text(f"{before if index != band[0] else ''}{cell}{after if index != band[-1] else ''}")

    grid = RichTable(
        box=Box(_RULES) if what.ruled else None, show_edge=False, pad_edge=False, padding=0, header_style=""
    )
    for index in band:
        title = padded(index, 0)
        grid.add_column(title, width=cell_len(title.plain), no_wrap=True, overflow="crop")
    for row in range(1, len(what.rows) + 1):
        grid.add_row(*(padded(index, row) for index in band))
    return _rendered(grid, sum(widths[index] + 3 for index in band))


def _rendered(grid: RichTable, width: int) -> str:
    from rich.console import Console

    out = io.StringIO()
    # No colour, whatever the environment says: the text may go to a file.
    console = Console(file=out, width=width, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(grid, crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def _shorten(cell: str, limit: int) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(cell) <= limit:
        return cell
    # The middle is cut out, since names often differ at the end.
    head = set_cell_size(cell, limit // 2)
    tail = set_cell_size(cell[::-1], limit - 1 - limit // 2)[::-1]
    return f"{head}…{tail}"


def _bands(widths: Sequence[int], width: int, keys: Sequence[int], gap: int) -> list[list[int]]:
    # A band is the key columns, and as many others as fit.
    free = width - sum(widths[key] for key in keys) - gap * (len(keys) - 1)
    bands, room = [list(keys)], free
    for column in (each for each in range(len(widths)) if each not in keys):
        if room < widths[column] + gap:
            bands.append(list(keys))
            room = free
        bands[-1].append(column)
        room -= widths[column] + gap
    return bands


def as_markdown(what: Table) -> str:
    """Return a Markdown pipe table."""
    rule = ["---" if left else "---:" for left in what.left]
    rows = [what.titles, rule, *([_MARKUP.sub(r"\\\1", cell) for cell in row] for row in what.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as CSV; a dict becomes JSON."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_value(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _csv_value(value: object) -> object:
    if isinstance(value, dict):
        value = json.dumps(value)
    return spreadsheet_text(one_line(value)) if isinstance(value, str) else value


def spreadsheet_text(text: str) -> str:
    """Return the text, with an apostrophe before a formula."""
    # A spreadsheet evaluates text that begins so, even after white space.
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@", "'")) else text
