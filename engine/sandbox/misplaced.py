"""The error for a limit that was given to a sandbox and belongs into its config."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ..errors import TaskError
from .config import SandboxConfig

P = ParamSpec("P")
T = TypeVar("T")


def without_limits(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with a ``TaskError`` for a keyword that is a field of ``SandboxConfig``."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name in SandboxConfig.model_fields:
                raise TaskError(f"{name} is no argument of a sandbox; give SandboxConfig({name}=...)")
        return function(*args, **kwargs)

    return checked
