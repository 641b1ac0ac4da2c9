"""Names for the steps that build the walls, so that a failure can say which wall is missing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

Step = Literal[
    "processor",
    "fork",
    "user_namespace",
    "namespaces",
    "id_map",
    "mounts",
    "proc",
    "pivot_root",
    "identity",
    "capabilities",
    "rlimits",
    "landlock",
    "seccomp",
    "cgroup",
    "host_view",
    "packages",
    "exec",
]


class StepFailed(Exception):
    """A wall could not be built."""

    def __init__(self, step: Step, errno: int) -> None:
        super().__init__(f"{step}: errno {errno}")
        self.step: Step = step
        self.errno = errno


@contextmanager
def step(name: Step) -> Generator[None]:
    """Name what is being done; an OSError inside becomes ``StepFailed``."""
    try:
        yield
    except OSError as error:
        raise StepFailed(name, error.errno or 0) from error
