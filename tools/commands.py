"""All commands of ``supdist-engine``: those of the engine, and those of this folder."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from ..engine.cli.command import Command, with_examples
from ..engine.cli.main import MEASURE, app

# --help loads all of these: at their top they import nothing heavy.
from .benchmark.command import benchmark
from .distill.export_cli import export
from .evals.analyze_cli import analyze
from .evals.eval_cli import EXAMPLES, EXIT_CODES, evaluate
from .evals.grid_cli import grid

__all__ = ["app"]

app.command("eval", epilog=EXIT_CODES, rich_help_panel=MEASURE, cls=with_examples(*EXAMPLES))(evaluate)
app.command(
    rich_help_panel=MEASURE,
    cls=with_examples("supdist-engine grid grid.toml --dry-run", "supdist-engine grid grid.toml -n 2"),
)(grid)
app.command(
    rich_help_panel=MEASURE,
    cls=with_examples(
        "supdist-engine analyze logs/needle --short",
        "supdist-engine analyze logs --pairs",
        "supdist-engine analyze logs --csv > figures.csv",
    ),
)(analyze)
app.command(
    rich_help_panel=MEASURE,
    cls=with_examples(
        "supdist-engine export logs/needle --format sft --only-correct",
        "supdist-engine export logs --format preference --out pairs",
    ),
)(export)
app.command(rich_help_panel=MEASURE, cls=with_examples("supdist-engine benchmark --quick --only execute"))(
    benchmark
)


@app.command(
    "bench", cls=Command, help="The old name of `eval`, for one release.", epilog=EXIT_CODES, hidden=True
)
@wraps(evaluate)
def bench(**options: Any) -> None:
    """Run ``eval`` under its old name, for one release."""
    print("`bench` is now `eval`", file=sys.stderr)
    evaluate(**options)
