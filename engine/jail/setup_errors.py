"""Name the steps that set up a sandbox."""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

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


def is_setup_step(name: str) -> TypeGuard[SetupStep]:
    """Return whether a step has this name."""
    return name in get_args(SetupStep)


class SetupError(Exception):
    """A step of the setup failed with an errno."""

    def __init__(self, step: SetupStep, errno: int) -> None:
        super().__init__(f"{step}: errno {errno}")
        self.step: SetupStep = step
        self.errno = errno


# A class and not a generator: every sandbox enters some twenty of them.
class setup_step:  # noqa: N801 - it reads as a statement
    """Turn an OSError inside the block into a ``SetupError`` with the step's name."""

    __slots__ = ("_name",)

    def __init__(self, name: SetupStep) -> None:
        self._name: SetupStep = name

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise SetupError(self._name, error.errno or 0) from error
