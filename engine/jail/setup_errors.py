"""Names for the steps that build the walls, so that a failure can say which wall is missing."""

from __future__ import annotations

from typing import Literal

SetupStep = Literal[
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
    "zygote_root",
    "packages",
    "exec",
]


class SetupError(Exception):
    """A wall could not be built."""

    def __init__(self, step: SetupStep, errno: int) -> None:
        super().__init__(f"{step}: errno {errno}")
        self.step: SetupStep = step
        self.errno = errno


class setup_step:  # noqa: N801 - it reads as a statement
    """Name what is being done; an OSError inside becomes ``SetupError``.

    A class and not a generator, which every sandbox would have to go through twenty times.
    """

    __slots__ = ("_name",)

    def __init__(self, name: SetupStep) -> None:
        self._name: SetupStep = name

    def __enter__(self) -> None:
        """Nothing is to be done before."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise SetupError(self._name, error.errno or 0) from error
