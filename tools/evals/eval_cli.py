"""``supdist-engine eval``, which is ``python tools/run_experiment.py`` as well: one list of flags for both.

Exit codes: 0 every example has its result · 1 some failed, see results.csv, and try them again with --retry-failed ·
2 a wrong argument, setting or task · 4 no sandbox to be had · 5 the model's endpoint refuses the key, the account or the
model · 6 the folder cannot be written · 130 Ctrl-C · 143 SIGTERM. Whatever ended before stays, and --resume goes on.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.options import Backend
from ...engine.cli.permissions import Allowed, WhatEndpoint, WhatEnvFile, WhatRead, WhatWrite

EXIT_CODES = (
    "Exit codes: 0 every example has a result, 1 some failed, 2 wrong argument, setting or task, 4 no sandbox to be had, "
    "5 the endpoint refuses, 6 the folder cannot be written, 130 Ctrl-C, 143 SIGTERM."
)


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


def evaluate(
    *,
    task: Annotated[str | None, typer.Option(help="The task; qasper by default.")] = None,
    task_options: Annotated[
        list[str] | None,
        typer.Option(
            "-T", "--task-option", metavar="KEY=VALUE", help="An option of the task, as often as wanted."
        ),
    ] = None,
    strategy: Annotated[
        StrategyName | None,
        typer.Option(
            help="supervisor (by default): the loop. no-worker: the loop without workers. direct: one call, the document "
            "cut to the window. builtin: the loop with the builtin pair."
        ),
    ] = None,
    arm: Annotated[StrategyName | None, typer.Option(hidden=True, help="The old name of --strategy.")] = None,
    supervisor_model: Annotated[
        str | None, typer.Option(help="$SUPERVISOR_MODEL by default, else Llama-3.3-70B at Together.")
    ] = None,
    worker_model: Annotated[
        str | None, typer.Option(help="$WORKER_MODEL by default, else Llama-3.1-8B at Together.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="$JUDGE_MODEL by default, else Qwen3-235B; none for no judge.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=-1, help="Examples, 20 by default; -1 for all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which examples: 42 by default.")] = None,
    max_iterations: Annotated[
        int | None, typer.Option(min=1, help="Turns of the supervisor for an example, 15 by default.")
    ] = None,
    max_worker_calls: Annotated[int | None, typer.Option(min=1, help="Worker calls for an example.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens for an example.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(help="US dollars for an example.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Seconds for an example.")] = None,
    output_limit: Annotated[
        int | None, typer.Option(min=1, help="Characters of a block's output that the supervisor is shown.")
    ] = None,
    worker_ctx_k: Annotated[
        int | None, typer.Option(min=1, help="The worker's window in thousands of tokens.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=256, help="direct: tokens of the prompt and its answer together.")
    ] = None,
    prompts_dir: Annotated[str | None, typer.Option(help="A folder with other prompts.")] = None,
    backend: Annotated[Backend | None, typer.Option(help="What the sandboxes' walls are made of.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Where answers are kept: experiment (its folder, by default), off, or a file."),
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Examples at once, 4 by default.")] = None,
    executor: Annotated[ExecutorName | None, typer.Option(help="Where examples are run.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="ray: the cluster's address.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings in a TOML or JSON file; flags go before them.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--log-dir", help="The folder; logs/TASK/TIME by default.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the experiment of this folder.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: run those again that failed.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result, and nothing else, as JSON.")
    ] = False,
    env_file: WhatEnvFile = None,
    allow_read: WhatRead = None,
    allow_write: WhatWrite = None,
    trust_endpoint: WhatEndpoint = False,
    list_tasks: Annotated[bool, typer.Option("--list-tasks", help="Print the tasks that there are.")] = False,
) -> None:
    """Score a task's examples: results.csv, config.json and the logs of each example go to a folder."""
    given = {name: value.value if isinstance(value, Enum) else value for name, value in locals().items()}
    if list_tasks:
        from ...tasks.registry import names

        print(*names(), sep="\n")
        return
    from .command import Place, eval_with

    if given["arm"] is not None:
        if given["strategy"] is not None:
            raise typer.BadParameter("--arm is the old name of --strategy: give one of them")
        print("--arm is now --strategy", file=sys.stderr)
        given["strategy"] = given["arm"]
    flags = {name: value for name, value in given.items() if name not in _NO_SETTINGS and value is not None}
    allowed = Allowed.by(env_file, allow_read, allow_write, trust_endpoint)
    code = eval_with(flags, config, Place(out, resume), allowed, retry_failed=retry_failed, as_json=as_json)
    raise typer.Exit(code)


_NO_SETTINGS = frozenset({
    "arm", "config", "out", "resume", "retry_failed", "as_json", "list_tasks",
    "env_file", "allow_read", "allow_write", "trust_endpoint",
})  # fmt: skip


def main() -> None:
    """``eval`` as a program of its own."""
    from ...engine.cli.main import run_app

    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, epilog=EXIT_CODES
    )
    app.command(epilog=EXIT_CODES)(evaluate)
    run_app(app)
