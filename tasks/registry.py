"""Which tasks there are: those that register under ``supdist_engine.tasks``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .base import Task, TaskDataError

GROUP = "supdist_engine.tasks"


def names() -> list[str]:
    """The names of all tasks."""
    return sorted(_known())


def create(name: str, options: Mapping[str, Any]) -> Task:
    """A task with its options.

    Raises:
        TaskDataError: there is no such task, it cannot be imported, or does not take these options.
    """
    known = _known()
    if name not in known:
        raise TaskDataError(f"there is no task {name!r}; there are {', '.join(sorted(known)) or 'none'}")
    try:
        task: object = known[name].load()(**options)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise TaskDataError(f"task {name}: {error}") from error
    if not isinstance(task, Task):
        raise TaskDataError(f"task {name}: {known[name].value} makes no Task")
    return task


def _known() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
