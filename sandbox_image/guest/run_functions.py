"""The functions of a run as cells call them; they check how they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .primitives import Primitives

_MISSING = object()


class RunFunctions(NamedTuple):
    """``worker``, ``worker_batch`` and ``FINAL``."""

    worker: Callable[..., Any]
    worker_batch: Callable[..., Any]
    final: Callable[..., Any]


def _named(options: Iterable[str]) -> str:
    names = ", ".join(options)
    return f" ({names}=)" if names else ""


def _check_options(takes: str, options: Iterable[str]) -> None:
    names = ", ".join(options)
    if names:
        raise TypeError(f"{takes}, not {names}: the host chooses the model and its settings")


# Functions, and not methods: their ``repr`` shows nothing else.
def run_functions(primitives: Primitives) -> RunFunctions:
    """Return the functions of a session."""

    def worker(prompt: str, *more: object, **options: object) -> str:
        if more:
            raise TypeError(
                f"worker() takes one prompt, not {1 + len(more)} values; "
                "for several prompts use worker_batch([...])"
            )
        _check_options("worker() takes only the prompt", options)
        return primitives.worker(prompt)

    def worker_batch(
        prompts: Iterable[str], *more: object, return_errors: bool = False, **options: object
    ) -> list[Any]:
        if more:
            raise TypeError(
                f"worker_batch() takes one list of prompts, not {1 + len(more)} values: "
                "write worker_batch([...])"
            )
        _check_options("worker_batch() takes the prompts and return_errors", options)
        return primitives.worker_batch(prompts, return_errors=return_errors)

    def FINAL(answer: object = _MISSING, *more: object, **named: object) -> None:  # noqa: N802 - its name in cells
        if answer is _MISSING or more or named:
            raise TypeError(
                f"FINAL() takes one answer, not {(answer is not _MISSING) + len(more) + len(named) or 'none'}"
                f"{_named(named)}: write FINAL(answer); put several values into one text, list or dict"
            )
        primitives.final(answer)

    functions = RunFunctions(worker, worker_batch, FINAL)
    for function, method in zip(
        functions, (primitives.worker, primitives.worker_batch, primitives.final), strict=True
    ):
        function.__doc__ = method.__doc__
        # pickle finds it by this name in a process that was forked; there the call says what to do.
        function.__module__, function.__qualname__ = "__main__", function.__name__
    return functions
