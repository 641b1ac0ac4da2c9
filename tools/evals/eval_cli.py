"""The flags of ``supdist-engine eval``, which is also ``python tools/run_experiment.py``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ...engine.cli.command import with_examples
from ...engine.cli.options import (
    HELP_OPTIONS,
    LIMITS,
    LOGS,
    MODELS,
    SANDBOX,
    Backend,
    PromptsOption,
    SupervisorModelOption,
    SupervisorOption,
    WorkerModelOption,
    WorkerOption,
    flag,
    model_names,
    takes,
)
from ...engine.cli.permissions import (
    Allowed,
    AllowReadOption,
    AllowWriteOption,
    EnvFileOption,
    TrustEndpointOption,
)

EXIT_CODES = (
    "Exit codes: 0 every example has a result, 1 some failed, 2 wrong argument, setting or task, "
    "4 no sandbox, 5 a model failed for good, 6 the folder or stdout cannot be written, or paid answers are "
    "not in the cache, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM."
)
EXAMPLES = (
    "supdist-engine eval --list-tasks",
    "supdist-engine eval --task needle -T length=32k -n 4 --out logs/needle",
    "supdist-engine eval --resume logs/needle",
    "supdist-engine eval --task needle --supervisor openai/gpt-4.1 --max-cost-usd 0.50 --dry-run",
)

TASK, WHERE = "Task", "Where it runs"


def _task_names(incomplete: str) -> list[str]:
    from ...tasks.registry import names

    return [name for name in names() if name.startswith(incomplete)]


class StrategyName(Enum):
    """As ``records.Strategy``."""

    SUPERVISOR = "supervisor"
    NO_WORKER = "no-worker"
    DIRECT = "direct"
    BUILTIN = "builtin"


class ExecutorName(Enum):
    """As ``ExperimentConfig.executor``."""

    LOCAL = "local"
    RAY = "ray"


# None says that a flag was not given: the default then comes from --config, or from ExperimentConfig.
_Text = str | None
_Count = int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingFlags:
    """The flags that are settings of an experiment."""

    task: Annotated[
        _Text,
        typer.Option(rich_help_panel=TASK, autocompletion=_task_names, help="The task; qasper by default."),
    ] = None
    task_options: Annotated[
        list[str] | None,
        typer.Option(
            "-T",
            "--task-option",
            metavar="KEY=VALUE",
            help="An option of the task; may be repeated. --list-tasks prints them.",
            rich_help_panel=TASK,
        ),
    ] = None
    strategy: Annotated[
        StrategyName | None,
        typer.Option(
            rich_help_panel=TASK,
            help="supervisor (the default): the loop. no-worker: the loop without workers. "
            "direct: one call, with the document cut to the window. builtin: the loop with the builtin pair.",
        ),
    ] = None
    supervisor: SupervisorOption = None
    worker: WorkerOption = None
    judge: Annotated[
        _Text,
        typer.Option(
            metavar="MODEL",
            autocompletion=model_names,
            rich_help_panel=MODELS,
            help="The model that judges answers, named in the same way; none for no judge.",
        ),
    ] = None
    supervisor_model: SupervisorModelOption = None
    worker_model: WorkerModelOption = None
    judge_model: Annotated[
        _Text,
        typer.Option(
            rich_help_panel=MODELS, help="$JUDGE_MODEL by default, else Qwen3-235B; none for no judge."
        ),
    ] = None
    n: Annotated[
        _Count,
        typer.Option(
            "-n",
            min=-1,
            rich_help_panel=TASK,
            help="Examples, 20 by default; -1 for all. All are run if there are fewer.",
        ),
    ] = None
    seed: Annotated[
        _Count, typer.Option(rich_help_panel=TASK, help="Selects and orders the examples; 42 by default.")
    ] = None
    max_iterations: Annotated[_Count, flag("max_iterations", note="15 by default.", panel=LIMITS)] = None
    max_worker_calls: Annotated[_Count, flag("max_worker_calls", note="For each example.", panel=LIMITS)] = (
        None
    )
    max_tokens: Annotated[_Count, flag("max_tokens", note="For each example.", panel=LIMITS)] = None
    max_cost_usd: Annotated[float | None, flag("max_cost_usd", note="For each example.", panel=LIMITS)] = None
    max_seconds: Annotated[float | None, flag("max_seconds", note="For each example.", panel=LIMITS)] = None
    output_limit: Annotated[_Count, flag("output_limit", panel=LIMITS)] = None
    worker_ctx_k: Annotated[_Count, flag("worker_ctx_k", panel=LIMITS)] = None
    window: Annotated[
        _Count,
        typer.Option(
            min=256, rich_help_panel=LIMITS, help="direct: tokens of the prompt and its answer together."
        ),
    ] = None
    log_bytes: Annotated[_Text, flag("log_bytes", note="For each example.", panel=LOGS)] = None
    prompts_dir: PromptsOption = None
    backend: Annotated[
        Backend | None, typer.Option(rich_help_panel=SANDBOX, help="What isolates the sandboxes.")
    ] = None
    cache: Annotated[
        _Text,
        typer.Option(
            rich_help_panel=LOGS,
            help="Where answers are kept: experiment (its folder, the default), off, or a file.",
        ),
    ] = None
    concurrency: Annotated[
        _Count, typer.Option(min=1, rich_help_panel=WHERE, help="Examples at once, 4 by default.")
    ] = None
    executor: Annotated[
        ExecutorName | None,
        typer.Option(rich_help_panel=WHERE, help="Where examples run: local (the default) or ray."),
    ] = None
    ray_address: Annotated[_Text, typer.Option(rich_help_panel=WHERE, help="ray: the cluster's address.")] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalFlags(SettingFlags):
    """All flags of ``eval``."""

    arm: Annotated[StrategyName | None, typer.Option(hidden=True, help="Old name of --strategy.")] = None
    config: Annotated[
        Path | None,
        typer.Option(rich_help_panel=TASK, help="Settings in a TOML or JSON file; flags override them."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--log-dir", rich_help_panel=LOGS, help="The folder; logs/TASK/TIME by default."
        ),
    ] = None
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", rich_help_panel=LOGS, help="Continue the experiment in this folder."),
    ] = None
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", rich_help_panel=LOGS, help="With --resume: repeat failed examples."),
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, and nothing else, as JSON.")] = (
        False
    )
    env_file: EnvFileOption = None
    allow_read: AllowReadOption = None
    allow_write: AllowWriteOption = None
    trust_endpoint: TrustEndpointOption = False
    list_tasks: Annotated[
        bool, typer.Option("--list-tasks", help="Print the tasks and their options; with --json, as JSON.")
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the task, models, endpoints, keys (set or missing), prices and the most that it may "
            "cost. Send nothing.",
        ),
    ] = False

    def settings(self) -> dict[str, Any]:
        """Return the settings that were given, by name.

        Raises:
            typer.BadParameter: a setting was given under its old name as well.
        """
        given = {each.name: getattr(self, each.name) for each in fields(SettingFlags)}
        if self.arm is not None:
            if self.strategy is not None:
                raise typer.BadParameter("--arm is the old name of --strategy: give one of them")
            print("--arm is now --strategy", file=sys.stderr)
            given["strategy"] = self.arm
        return {
            name: value.value if isinstance(value, Enum) else value
            for name, value in given.items()
            if value is not None
        }


@takes(EvalFlags)
def evaluate(flags: EvalFlags) -> None:
    """Score a task's examples: results.csv, config.json and the logs of each example go to a folder."""
    if flags.list_tasks:
        from .task_list import as_json, as_text

        print(as_json() if flags.as_json else as_text())
        return
    from .command import Place, eval_with

    allowed = Allowed.from_options(flags.env_file, flags.allow_read, flags.allow_write, flags.trust_endpoint)
    code = eval_with(
        flags.settings(),
        flags.config,
        Place(flags.out, flags.resume),
        allowed,
        retry_failed=flags.retry_failed,
        as_json=flags.as_json,
        dry_run=flags.dry_run,
    )
    raise typer.Exit(code)


def main() -> None:
    """Run ``eval`` as a program of its own."""
    from ...engine.cli.main import run_app

    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        epilog=EXIT_CODES,
        context_settings=HELP_OPTIONS,
    )
    app.command(epilog=EXIT_CODES, cls=with_examples(*EXAMPLES))(evaluate)
    run_app(app)
