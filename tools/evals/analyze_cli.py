"""The command ``analyze``: the results table of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .analysis import Analysis


def main() -> None:
    """Run ``analyze`` as a program of its own."""
    # Imported here and below, so that --help stays quick.
    from ...engine.cli.command import Command
    from ...engine.cli.main import run_app
    from ...engine.cli.options import HELP_OPTIONS

    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP_OPTIONS,
    )
    app.command(cls=Command)(analyze)
    run_app(app)


def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs, or folders above.")],
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all figures of the runs as CSV.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all figures of runs and pairs as JSON.")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    short: Annotated[
        bool, typer.Option("--short", help="Models, accuracy, steps and tokens alone, and no pairs.")
    ] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="The differences of runs over the same examples alone.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(help="A folder for plots of accuracy against cost, steps and context length."),
    ] = None,
) -> None:
    """Compare runs, finished or not, by their figures and by their differences over the same examples."""
    from .analysis import analyse

    if sum((as_csv, as_json, as_markdown)) > 1:
        raise typer.BadParameter("--csv, --json and --markdown exclude each other")
    found = analyse(runs)
    # Programs read stdout, so the notes go to stderr.
    if as_json or as_csv:
        _print_notes(found)
        print(_json(found) if as_json else _csv(found, pairs=pairs).rstrip("\n"))
    else:
        show(found, short=short, pairs=pairs, markdown=as_markdown)
    if plots is not None:
        _plot(found, plots)


def show(found: Analysis, *, short: bool = False, pairs: bool = False, markdown: bool = False) -> None:
    """Print the tables, and the notes on stderr.

    Raises:
        typer.BadParameter: there is no run.
    """
    _print_notes(found)
    print("\n\n".join(_tables(found, short=short, pairs=pairs, markdown=markdown)))


def _print_notes(found: Analysis) -> None:
    from ...sandbox_image.text import one_line

    if not found.runs:
        where = "; ".join(map(one_line, found.notes)) or "no run found"
        raise typer.BadParameter(
            f"{where}. The folder of a run holds config.json and results.jsonl. Name one, or one above"
        )
    for note in found.notes:
        print(one_line(note), file=sys.stderr)


def _tables(
    found: Analysis, *, short: bool = False, pairs: bool = False, markdown: bool = False
) -> list[str]:
    from ..tables import Table, as_markdown, as_text, table, terminal_width
    from .report import PAIRS, RUNS, SHORT

    def form(what: Table) -> str:
        return as_markdown(what) if markdown else as_text(what, width)

    width = terminal_width()
    if short:
        return [form(table(SHORT, found.figures))]
    printed = [] if pairs else [form(table(RUNS, found.figures, ["Run"]))]
    if found.pairs:
        printed.append(form(table(PAIRS, found.pairs, ["Run", "Minus"])))
    elif pairs:
        printed.append("no two of the runs are over the same examples of a task")
    return printed


def _json(found: Analysis) -> str:
    import json

    from .report import pair_fields, run_fields

    whole = {
        "runs": [run_fields(each) for each in found.figures],
        "pairs": [pair_fields(pair) for pair in found.pairs],
        "notes": list(found.notes),
    }
    return json.dumps(whole, indent=1)


def _csv(found: Analysis, *, pairs: bool) -> str:
    from ..tables import as_csv
    from .report import pair_fields, run_fields

    if pairs:
        return as_csv([pair_fields(pair) for pair in found.pairs])
    return as_csv([run_fields(each) for each in found.figures])


def _plot(found: Analysis, folder: Path) -> None:
    from ...sandbox_image.text import one_line
    from .plots import MissingLibrary, plot

    try:
        written = plot(found, folder)
    except (MissingLibrary, OSError) as error:
        raise typer.BadParameter(f"--plots: {one_line(str(error))}") from error
    for line in written:
        print(one_line(line), file=sys.stderr)
