"""The command ``export``: its options and messages."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .dataset_card import Card


# A line of a hostile log must not fill the terminal.
_MAX_CHARS = 400


class Format(Enum):
    """As in ``ExportOptions``."""

    SFT = "sft"
    PREFERENCE = "preference"


class Role(Enum):
    """As in ``ExportOptions``."""

    SUPERVISOR = "supervisor"
    WORKER = "worker"


class Per(Enum):
    """As in ``ExportOptions``."""

    RUN = "run"
    TURN = "turn"


def export(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that `supdist-engine eval` wrote, or folders above.")
    ],
    *,
    format: Annotated[  # noqa: A002 - the option's name
        Format, typer.Option(help="sft: conversations. preference: pairs of a better and a worse run.")
    ],
    out: Annotated[
        Path, typer.Option(help="The folder to write. It must not exist, except with --force.")
    ] = Path("distillation"),
    role: Annotated[Role, typer.Option(help="Export the turns of this role.")] = Role.SUPERVISOR,
    per: Annotated[
        Per, typer.Option(help="Write one line for each run, or for each turn with its request.")
    ] = Per.RUN,
    min_score: Annotated[float | None, typer.Option(help="Export only runs with this score or more.")] = None,
    only_correct: Annotated[
        bool, typer.Option("--only-correct", help="Export only runs whose answer is right.")
    ] = False,
    only_final: Annotated[
        bool, typer.Option("--only-final", help="Export only runs that ended with FINAL.")
    ] = False,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Export only runs of this many turns or fewer.")
    ] = None,
    max_cost_usd: Annotated[
        float | None,
        typer.Option(
            min=0, help="Export only runs that cost this much or less; a run of unknown price is left out."
        ),
    ] = None,
    allow_errors: Annotated[
        bool,
        typer.Option(
            "--allow-errors/--no-errors",
            help="Export runs too in which a block failed, a call had no answer, or a reply was cut off.",
        ),
    ] = True,
    validation: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of the documents to write for validation, from 0 to 1."),
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="The seed of the split into training and validation.")] = 0,
    max_pairs: Annotated[
        int, typer.Option(min=1, help="With preference: write at most this many pairs of one question.")
    ] = 4,
    force: Annotated[bool, typer.Option("--force", help="Replace the export in the output folder.")] = False,
) -> None:
    """Write the turns of supervisors or workers as chat JSONL for training. Prints the folder on stdout."""
    from ...engine.cli.signals import raise_at_signal
    from .export import export as write
    from .options import ExportOptions
    from .selection import Filters

    filters = Filters(min_score, only_correct, only_final, max_steps, max_cost_usd, allow_errors)
    options = ExportOptions(format.value, role.value, per.value, filters, validation, seed, max_pairs)
    with raise_at_signal():
        card = write(folders, out, options, force=force, report=_print_problem)
    _print_counts(card)
    print(out)


def _print_problem(problem: str) -> None:
    from ...sandbox_image.text import one_line, shorten

    print(shorten(one_line(problem), _MAX_CHARS), file=sys.stderr)


def _print_counts(card: Card) -> None:
    counts = [
        f"{each.lines:,} lines of {each.documents:,} documents to {side}"
        for side, each in card.splits.items()
    ]
    print("; ".join(counts) or "no lines; the reasons follow", file=sys.stderr)
    for what, reasons in (("runs", card.runs_left_out), ("lines", card.lines_left_out)):
        for reason, count in reasons.items():
            print(f"{what} left out: {count:,} ({reason})", file=sys.stderr)
