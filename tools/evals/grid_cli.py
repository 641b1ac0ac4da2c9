"""The program ``grid``: all combinations of a grid file, and the table of what came of them.

Exit codes: 0 all have their results · 1 some combination, or some example, failed · 2 the grid is wrong · 130 Ctrl-C ·
143 SIGTERM. The same command goes on where it stopped.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.cli.permissions import Allowed, WhatEndpoint, WhatEnvFile, WhatRead, WhatWrite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.model_specs import ModelSpec, Role
    from ...engine.trust import Environment, Permissions
    from .config import ExperimentConfig
    from .grid import Combination

SOME_FAILED = 1


def main() -> None:
    """The program."""
    from ...engine.cli.main import run_app

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
    env_file: WhatEnvFile = None,
    allow_read: WhatRead = None,
    allow_write: WhatWrite = None,
    trust_endpoint: WhatEndpoint = False,
) -> None:
    """Run all combinations, one after another; what is finished is left as it is, what was begun goes on."""
    from ...engine.private_files import ResolvedPath, resolved
    from ...sandbox_image.text import one_line
    from .grid import check, named_folder, read_grid
    from .permissions import permit

    allowed = Allowed.by(env_file, allow_read, allow_write, trust_endpoint)
    flags = {"n": n, "concurrency": concurrency}
    combinations = read_grid(file, out, **{name: value for name, value in flags.items() if value is not None})
    if dry_run:
        for each in combinations:
            print(one_line(f"{_state(each):<8}  {each.folder}"))
        return
    # What is finished needs no key any more.
    waiting = [each for each in combinations if retry_failed or not each.is_finished]
    environment = allowed.environment()
    permissions = allowed.bind(file, environment)
    if out is None and (folder := named_folder(file)) is not None:
        permissions.writable(folder, "out")
    configs = check(waiting, partial(_by_name, environment), environment)
    for config in configs:
        permit(config, flags, permissions)
    for each in combinations:
        if each not in waiting:
            _note(f"{each.folder}: finished before")
    # The name of a folder is known beforehand: a link of that name is not followed.
    places = [ResolvedPath(resolved(each.folder.parent), each.folder.name) for each in waiting]
    experiments = list(zip(configs, places, strict=True))
    folders = [each.folder for each in combinations]
    raise typer.Exit(_run(experiments, folders, permissions.granted(), retry_failed=retry_failed))


def _state(combination: Combination) -> str:
    return "finished" if combination.is_finished else "begun" if combination.folder.exists() else "new"


def _note(text: str) -> None:
    from ...sandbox_image.text import one_line

    print(one_line(text), file=sys.stderr, flush=True)


def _by_name(environment: Environment, role: Role, name: str) -> ModelSpec:
    from .command import named_model
    from .config import judge_spec

    if role in ("supervisor", "worker"):
        return named_model(role, name, None, environment)
    spec = judge_spec(name, environment)
    assert spec != "none"
    return spec


def _run(
    experiments: Sequence[tuple[ExperimentConfig, Path]],
    folders: Sequence[Path],
    permissions: Permissions,
    *,
    retry_failed: bool,
) -> int:
    """Run them, and show what is in all folders then; the exit code."""
    from .command import Stopped, run_shown
    from .grid import run_grid

    def run(config: ExperimentConfig, folder: Path) -> int:
        _note(f"{folder}:")
        summary = run_shown(
            config,
            folder,
            permissions,
            resume=True,
            retry_failed=retry_failed,
            quiet=False,
            own_answers=True,
        )
        return summary.failed

    failed: list[str] = []
    try:
        for outcome in run_grid(experiments, run):
            if outcome.error:
                failed.append(f"{outcome.folder} failed: {outcome.error}")
            elif outcome.failed:
                failed.append(
                    f"{outcome.folder}: {outcome.failed} examples failed; --retry-failed tries again"
                )
    except Stopped as stopped:
        _note("interrupted; the same command goes on")
        return 128 + stopped.number
    _show([folder for folder in folders if folder.exists()])
    for each in failed:
        _note(each)
    return SOME_FAILED if failed else 0


def _show(folders: Sequence[Path]) -> None:
    from .analysis import analyse
    from .analyze_cli import show

    found = analyse(folders)
    if found.runs:
        show(found)
