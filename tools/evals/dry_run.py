"""Print what an experiment would use and may cost, and send nothing."""

from __future__ import annotations

from pathlib import Path

from ...engine.cli.dry_run import NO_BOUND, model_lines, most_dollars
from ...engine.model_specs import ModelSpec, Role
from ...engine.trust import Bound
from ...handlers import ModelHandler
from ...sandbox_image.text import printable
from ...tasks.registry import create
from .config import ExperimentConfig


def describe(config: ExperimentConfig, permissions: Bound, folder: Path | None) -> str:
    """Return the lines.

    Args:
        config: with all its models.
        permissions: of the file of the settings.
        folder: the experiment that would be continued.

    Raises:
        TaskDataError: there is no such task or option.
    """
    task = create(config.task, config.task_options)
    options = ", ".join(f"{name}={value}" for name, value in config.task_options.items())
    lines = [f"task: {config.task}{f' ({options})' if options else ''}, strategy {config.strategy}"]
    lines.append(f"questions: {_questions(config, folder)}")
    judge = config.judge if task.wants_judge and config.judge != "none" else None
    handlers: list[ModelHandler] = []
    roles: tuple[tuple[str, Role, ModelSpec | None], ...] = (
        ("supervisor", "supervisor", config.supervisor),
        ("worker", "worker", config.worker),
        ("judge", "supervisor", judge),
    )
    for name, role, spec in roles:
        if spec is not None:
            handler = spec.build(role, Path(), config.limits.worker_ctx_k, permissions)
            lines += model_lines(name, handler, spec, permissions)
            if name != "judge":
                handlers.append(handler)
    lines.append(f"sandbox: {config.sandbox.backend}, isolation {config.sandbox.isolation}, not opened")
    lines.append(f"turns: {config.limits.max_iterations} at most for a question")
    lines.append(f"cost: {_cost(config, handlers, has_judge=judge is not None)}")
    lines.append("Nothing was sent.")
    return printable("\n".join(lines))


def _questions(config: ExperimentConfig, folder: Path | None) -> str:
    # The data of some tasks must be downloaded to be counted.
    count = "all of the task" if config.n < 0 else f"{config.n:,} at most"
    # What has a result is not asked again.
    return count if folder is None else f"{count}, without those that have a result in {folder}"


def _cost(config: ExperimentConfig, handlers: list[ModelHandler], *, has_judge: bool) -> str:
    each = most_dollars(config.limits.max_cost_usd, config.limits.max_tokens, handlers)
    judge = "; the judge costs more, and no limit counts it" if has_judge else ""
    if each is None:
        return f"{NO_BOUND}, for each question{judge}"
    if not each:
        return f"nothing{judge}"
    whole = "" if config.n < 0 else f"${each * config.n:,.4f}, "
    return f"at most {whole}${each:,.4f} for each question{judge}"
