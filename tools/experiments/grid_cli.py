"""The program ``grid``: all combinations of a grid file, and the table of what came of them.

Exit codes: 0 all have their results · 1 some combination, or some example, failed · 2 the grid is wrong · 130 Ctrl-C ·
143 SIGTERM. The same command goes on where it stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.models import ModelSpec, Role
    from .config import ExperimentConfig
    from .grid import Combination

SOME_FAILED = 1


def main() -> None:
    """The program."""
    from ...engine.cli import run_app

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(grid)
    run_app(app)


def grid(
    file: Annotated[Path, typer.Argument(help="The grid, in TOML; tools/README.md has an example.")],
    *,
    n: Annotated[
        int | None, typer.Option("-n", min=-1, help="Examples of each, whatever the grid says.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Examples at once.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the experiments' folders.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the combinations, and run none.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run those examples again that failed.")
    ] = False,
) -> None:
    """Run all combinations, one after another; what is finished is left as it is, what was begun goes on."""
    from dotenv import find_dotenv, load_dotenv

    from .grid import check, read_grid

    if os.path.isdir("."):  # the directory may have been removed
        load_dotenv(find_dotenv(usecwd=True))
    flags = {"n": n, "concurrency": concurrency}
    combinations = read_grid(file, out, **{name: value for name, value in flags.items() if value is not None})
    if dry_run:
        for each in combinations:
            print(f"{'finished' if each.is_finished else _begun(each)} {each.folder}")
        return
    configs = check(combinations, _by_name)
    raise typer.Exit(_run(combinations, configs, retry_failed=retry_failed))


def _begun(combination: Combination) -> str:
    return "begun   " if combination.folder.exists() else "new     "


def _by_name(role: Role, name: str) -> ModelSpec:
    from .command import named_model
    from .config import judge_spec

    if role in ("supervisor", "worker"):
        return named_model(role, name, None)
    spec = judge_spec(name, os.environ)
    assert spec != "none"
    return spec


def _run(
    combinations: Sequence[Combination], configs: Sequence[ExperimentConfig], *, retry_failed: bool
) -> int:
    from .command import Stopped, run_shown
    from .grid import run_grid
    from .layout import one_line

    def run(config: ExperimentConfig, folder: Path) -> int:
        print(f"== {one_line(str(folder))}", file=sys.stderr, flush=True)
        return run_shown(config, folder, resume=True, retry_failed=retry_failed, quiet=False).failed

    failed = 0
    try:
        for outcome in run_grid(combinations, configs, run, again=retry_failed):
            failed += bool(outcome.error or outcome.failed_examples)
            told = f"{outcome.folder}: {outcome.state}"
            told += f", {outcome.failed_examples} examples failed" if outcome.failed_examples else ""
            told += f": {outcome.error}" if outcome.error else ""
            print(one_line(told), file=sys.stderr, flush=True)
    except Stopped as stopped:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 128 + stopped.number
    _show([each.folder for each in combinations if each.folder.exists()])
    return SOME_FAILED if failed else 0


def _show(folders: Sequence[Path]) -> None:
    from .analysis import analyse
    from .analyze_cli import show

    if folders:
        show(analyse(folders))
