"""The command ``grid``: run all combinations of a grid file, and print the table of their results.

Exit codes: 0 all have results · 1 a combination or an example failed · 2 the grid is wrong · 4 no combination
has a sandbox · 5 no model can be used · 6 nothing can be written · 130 Ctrl-C · 143 SIGTERM. The same command
continues where it stopped.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.cli.exit import NO_FILES, code_of
from ...engine.cli.permissions import (
    Allowed,
    AllowReadOption,
    AllowWriteOption,
    EnvFileOption,
    TrustEndpointOption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.model_specs import ModelSpec, Role
    from ...engine.trust import Environment, Permissions
    from .config import ExperimentConfig
    from .grid import Combination

_SOME_FAILED = 1


def main() -> None:
    """Run ``grid`` as a program of its own."""
    from ...engine.cli.command import Command
    from ...engine.cli.main import run_app
    from ...engine.cli.options import HELP_OPTIONS

    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP_OPTIONS,
    )
    app.command(cls=Command)(grid)
    run_app(app)


def grid(
    file: Annotated[Path, typer.Argument(help="The grid, in TOML; tools/README.md has an example.")],
    *,
    n: Annotated[
        int | None, typer.Option("-n", min=-1, help="Examples of each; overrides the grid's.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Examples at once.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the experiments' folders.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the combinations, and run none.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Repeat failed examples.")] = False,
    env_file: EnvFileOption = None,
    allow_read: AllowReadOption = None,
    allow_write: AllowWriteOption = None,
    trust_endpoint: TrustEndpointOption = False,
) -> None:
    """Run all combinations, one after another; finished ones are skipped, started ones are resumed."""
    from ...engine.private_files import ResolvedPath, resolved
    from .grid import check, named_folder, read_grid
    from .permissions import permit

    allowed = Allowed.from_options(env_file, allow_read, allow_write, trust_endpoint)
    flags = {"n": n, "concurrency": concurrency}
    combinations = read_grid(file, out, **{name: value for name, value in flags.items() if value is not None})
    if dry_run:
        _list(combinations)
        return
    # Finished combinations need no key.
    waiting = [each for each in combinations if retry_failed or not each.is_finished]
    environment = allowed.environment()
    permissions = allowed.bind(file, environment)
    if out is None and (folder := named_folder(file)) is not None:
        permissions.writable(folder, "out")
    configs = check(waiting, partial(_find_model, environment), environment)
    for config in configs:
        permit(config, flags, permissions)
    for each in combinations:
        if each not in waiting:
            _note(f"{each.folder}: finished before")
    # A folder's name can be guessed: a link of that name must not be followed.
    places = [ResolvedPath(resolved(each.folder.parent), each.folder.name) for each in waiting]
    experiments = list(zip(configs, places, strict=True))
    folders = [each.folder for each in combinations]
    raise typer.Exit(_run(experiments, folders, permissions.granted_keys(), retry_failed=retry_failed))


def _list(combinations: Sequence[Combination]) -> None:
    from ..tables import as_pairs

    # Without a width, so that no path is broken into two lines.
    print(as_pairs([(_state(each), str(each.folder)) for each in combinations], name_width=9))


def _state(combination: Combination) -> str:
    return "finished" if combination.is_finished else "begun" if combination.folder.exists() else "new"


def _note(text: str) -> None:
    from ...sandbox_image.text import one_line

    print(one_line(text), file=sys.stderr, flush=True)


def _find_model(environment: Environment, role: Role, name: str) -> ModelSpec:
    from ...engine.named_models import named_model
    from .config import named_judge

    if role in ("supervisor", "worker"):
        return named_model(role, name, environment)
    spec = named_judge(name, environment)
    assert spec != "none"
    return spec


def _run(
    experiments: Sequence[tuple[ExperimentConfig, Path]],
    folders: Sequence[Path],
    permissions: Permissions,
    *,
    retry_failed: bool,
) -> int:
    """Run the experiments, print the table of all folders, and return the exit code."""
    from ...engine.cli.signals import Stopped
    from .command import note_lost_answers, run_shown
    from .grid import run_grid

    unstored = 0

    def run(config: ExperimentConfig, folder: Path) -> int:
        nonlocal unstored
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
        unstored += summary.unstored
        return summary.failed

    failed: list[str] = []
    codes: set[int] = set()
    # Failures are printed behind the table, where they are seen.
    try:
        for outcome in run_grid(experiments, run):
            codes.add(0 if outcome.cause is None else code_of(outcome.cause))
            if outcome.error:
                failed.append(f"{outcome.folder} failed: {outcome.error}")
            elif outcome.failed:
                failed.append(
                    f"{outcome.folder}: {outcome.failed} examples failed; repeat them with --retry-failed"
                )
    except Stopped as stopped:
        _note(f"{stopped}; the same command continues")
        return stopped.status
    _print_results([folder for folder in folders if folder.exists()])
    for each in failed:
        _note(each)
    if unstored:
        note_lost_answers(unstored)
        return NO_FILES
    # One cause for all, such as a machine without sandboxes: its own code, as of every command.
    only = codes.pop() if len(codes) == 1 else 0
    return (only or _SOME_FAILED) if failed else 0


def _print_results(folders: Sequence[Path]) -> None:
    from .analysis import analyse
    from .analyze_cli import show

    found = analyse(folders)
    if found.runs:
        show(found)
