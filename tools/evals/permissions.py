"""Checks the settings that come from a file."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ...engine.taskfile import prompts_in, sandbox_in
from ...engine.trust import Permissions
from ...engine.trust.permissions import readable_files
from ...engine.trust.questions import shown
from ...tasks.base import TaskDataError
from ...tasks.registry import describe
from .config import ExperimentConfig

_FIXED_CACHES = ("experiment", "off")


def permit(config: ExperimentConfig, typed: Collection[str], permissions: Permissions) -> None:
    """Check that resolved settings are permitted.

    Args:
        typed: names of settings that the user typed, such as ``cache`` or ``task_options.NAME``.
        permissions: of the file of the other settings.

    Raises:
        TaskError: a setting is not permitted.
    """
    here = Path()
    judge = None if config.judge == "none" else config.judge
    for role, spec in (("supervisor", config.supervisor), ("worker", config.worker), ("judge", judge)):
        if spec is not None:
            spec.check(role, here, permissions)
    if config.prompts_dir and "prompts_dir" not in typed:
        prompts_in(here / config.prompts_dir, permissions)
    if config.cache not in _FIXED_CACHES and "cache" not in typed:
        permissions.writable(here / config.cache, "cache")
    sandbox_in(config.sandbox, here, permissions)
    if config.ray_address and "ray_address" not in typed:
        permissions.require_trust("ray_address", "joins a Ray cluster, whose nodes can run code here")
    _permit_task_options(config, typed, permissions)


def _permit_task_options(config: ExperimentConfig, typed: Collection[str], permissions: Permissions) -> None:
    given = {name for name in config.task_options if f"task_options.{name}" not in typed}
    if not given:
        return
    try:
        kinds = {option.name: option.type for option in describe(config.task).options}
    except TaskDataError:
        return  # there is no such task; `create` reports it
    for name in sorted(given):
        value = config.task_options[name]
        if not isinstance(value, str):
            continue
        if kinds.get(name) == "path":
            readable_files(permissions, Path(value), f"task_options.{name}")
        elif os.path.lexists(value):
            # The name of a data set, for instance, which its library takes for this folder.
            permissions.require_trust(
                f"task_options.{name}",
                f"names a folder ({shown(value)}), which can lead a library to other files",
            )
