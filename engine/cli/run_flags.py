"""The flags that commands share which answer a question: ``run`` and ``ask``; most are those of ``eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    LIMITS,
    LOGS,
    MODELS,
    SANDBOX,
    Backend,
    ImageOption,
    JsonResultOption,
    MemoryOption,
    PackagesOption,
    PromptsOption,
    RuntimeOption,
    SupervisorModelOption,
    SupervisorOption,
    WorkerModelOption,
    WorkerOption,
    flag,
    sandbox_config,
)
from .permissions import EnvFileOption, TrustEndpointOption

if TYPE_CHECKING:
    from ..taskfile import TaskFile

_LIMITS = (
    "max_iterations", "max_worker_calls", "max_tokens", "max_cost_usd", "max_seconds", "output_limit",
    "worker_ctx_k", "log_bytes",
)  # fmt: skip
_SANDBOX = ("backend", "image", "runtime", "memory", "packages")


# None says that a flag was not given.
@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """The flags."""

    supervisor: SupervisorOption = None
    worker: WorkerOption = None
    supervisor_model: SupervisorModelOption = None
    worker_model: WorkerModelOption = None
    broker: Annotated[
        str | None,
        typer.Option(
            help="The address of a `supdist-engine broker`. It serves each role that no flag names.",
            rich_help_panel=MODELS,
        ),
    ] = None
    curve_keys: Annotated[
        Path | None,
        typer.Option(
            help="With --broker: the folder of this client's keys. tcp needs them.", rich_help_panel=MODELS
        ),
    ] = None
    env_file: EnvFileOption = None
    trust_endpoint: TrustEndpointOption = False
    max_cost_usd: Annotated[float | None, flag("max_cost_usd", panel=LIMITS)] = None
    max_tokens: Annotated[int | None, flag("max_tokens", panel=LIMITS)] = None
    max_worker_calls: Annotated[int | None, flag("max_worker_calls", panel=LIMITS)] = None
    max_seconds: Annotated[float | None, flag("max_seconds", panel=LIMITS)] = None
    max_iterations: Annotated[int | None, flag("max_iterations", panel=LIMITS)] = None
    output_limit: Annotated[int | None, flag("output_limit", panel=LIMITS)] = None
    worker_ctx_k: Annotated[int | None, flag("worker_ctx_k", panel=LIMITS)] = None
    backend: Annotated[
        Backend | None,
        typer.Option(help="Isolate the code in a process or in a container.", rich_help_panel=SANDBOX),
    ] = None
    image: ImageOption = None
    runtime: RuntimeOption = None
    memory: MemoryOption = None
    packages: PackagesOption = None
    prompts_dir: PromptsOption = None
    log_dir: Annotated[Path | None, flag("log_dir", panel=LOGS)] = None
    no_log: Annotated[
        bool, typer.Option("--no-log", help="Write no log. Default: in logs/runs.", rich_help_panel=LOGS)
    ] = False
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on with a run that was killed or reached a limit: the folder of its log. "
            "Its paid answers are used again.",
            rich_help_panel=LOGS,
        ),
    ] = None
    log_bytes: Annotated[str | None, flag("log_bytes", panel=LOGS)] = None
    cache: Annotated[str | None, flag("cache", panel=LOGS)] = None
    as_json: JsonResultOption = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print models, endpoints, keys (set or missing), prices, the size of the context, "
            "the sandbox and the most that it may cost. Send nothing.",
        ),
    ] = False

    def applied_to(self, task: TaskFile) -> TaskFile:
        """Return the task with limits and sandbox of the flags; without models and paths.

        Raises:
            TaskError: they do not fit the task.
        """
        from ..taskfile import TaskLimits, checked

        limits = self._given(_LIMITS)
        changes: dict[str, object] = {}
        if limits:
            whole = task.limits.model_dump(exclude_unset=True) | limits
            changes["limits"] = checked(TaskLimits, whole, "the limits are wrong")
        if sandbox := self._given(_SANDBOX):
            # Checked anew: settings of the file may not fit the other backend.
            changes["sandbox"] = sandbox_config(**task.sandbox.model_dump(exclude_unset=True) | sandbox)
        return task.model_copy(update=changes)

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}
