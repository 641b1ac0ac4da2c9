"""All commands of ``supdist-engine``: those of the engine, and those of this folder."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from ..engine.cli.main import app

# --help loads all of these: at their top they import nothing heavy.
from .benchmark.command import benchmark
from .distill.export_cli import export
from .evals.analyze_cli import analyze
from .evals.eval_cli import EXIT_CODES, evaluate
from .evals.grid_cli import grid

__all__ = ["app"]

app.command("eval", epilog=EXIT_CODES)(evaluate)
app.command()(grid)
app.command()(analyze)
app.command()(export)
app.command()(benchmark)


@app.command("bench", help="The old name of `eval`, for one release.", epilog=EXIT_CODES, hidden=True)
@wraps(evaluate)
def bench(**options: Any) -> None:
    """Run ``eval`` under its old name, for one release."""
    print("`bench` is now `eval`", file=sys.stderr)
    evaluate(**options)
