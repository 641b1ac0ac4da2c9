"""Answer a task for a command, print the answer, and exit."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import typer

from ..documents import Context
from ..result import RunResult
from .documents import print_warnings
from .exit import NO_FILES, NO_MODEL, exit_code, wait
from .permissions import explain_withheld_keys
from .work import Work


def answer(work: Work, read_context: Callable[[], Awaitable[Context]]) -> NoReturn:
    """Run the task to its end, print the answer and exit. With --dry-run, only say what it would use."""
    from ..api import as_data

    if work.flags.dry_run:
        from .dry_run import describe

        print(wait(describe(work, read_context)))
        raise typer.Exit
    log_dir = _shown(work.log_dir())
    with explain_withheld_keys(work.permissions):
        result = wait(_answer(work, read_context), log_dir)
    if work.flags.as_json:
        print(json.dumps(as_data(result)))
    else:
        _print_result(result, log_dir)
    code = exit_code(result.stop_reason)
    # A worker that failed is worse, and its code stays.
    is_incomplete = result.unstored_answers or result.log_error is not None
    raise typer.Exit(NO_FILES if is_incomplete and code != NO_MODEL else code)


async def _answer(work: Work, read_context: Callable[[], Awaitable[Context]]) -> RunResult:
    from ..api import arun
    from .console import display
    from .model_line import models_line

    task = work.task
    models = await work.models.handlers(work.folder, task.limits.worker_ctx_k, work.permissions)
    context = print_warnings(await read_context())
    config = work.config()
    with display(task.query, quiet=work.flags.as_json) as screen:
        screen.note(models_line(models))
        # The builtin pair stands in for a model that is missing: say that it is no language model.
        if work.models.is_missing(models):
            from ...handlers.builtin import NOTICE

            screen.note(NOTICE)
        return await arun(
            query=task.query,
            context=context,
            supervisor=models["supervisor"],
            worker=models["worker"],
            config=replace(config, on_event=screen.on_event),
        )


def _shown(log_dir: Path | None) -> str | None:
    """Return the log folder for a message, relative to the working directory if it is below."""
    if log_dir is None:
        return None
    # The working directory may have been removed, or the folder is not below it.
    with contextlib.suppress(OSError, ValueError):
        return str(log_dir.relative_to(os.path.realpath(os.curdir)))
    return str(log_dir)


def _print_result(result: RunResult, log_dir: str | None) -> None:
    from ...sandbox_image.text import printable
    from .console import summary
    from .failures import print_failures

    answer = "(no answer)" if result.answer is None else result.answer
    # Escape sequences could deceive on a terminal; a file gets the answer as it is.
    print(printable(answer) if sys.stdout.isatty() else answer, flush=True)
    print(summary(result, log_dir), file=sys.stderr)
    print_failures(result)
