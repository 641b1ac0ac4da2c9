"""Answer a task for a command, print the answer, and exit."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import NoReturn

import typer

from ..documents import Context
from ..events import Event
from ..model_specs import Role
from ..result import RunResult
from .documents import print_warnings
from .exit import NO_FILES, NO_MODEL, exit_code, wait
from .permissions import explain_withheld_keys
from .run_log import RunLog, check_log_flags, how_it_goes_on
from .signals import run_until_signal
from .work import Work


def answer(work: Work, read_context: Callable[[], Awaitable[Context]]) -> NoReturn:
    """Run the task to its end, print the answer and exit. With --dry-run, only say what it would use."""
    from ..api import as_data

    check_log_flags(work.flags)
    if work.flags.dry_run:
        from .dry_run import describe

        print(wait(describe(work, read_context)))
        raise typer.Exit
    log = RunLog(work)
    with explain_withheld_keys(work.permissions), how_it_goes_on(log):
        result, names = run_until_signal(_answer(work, log, read_context))
    if work.flags.as_json:
        folder = None if log.folder is None else str(log.folder)
        print(json.dumps({**as_data(result), "log_dir": folder}))
    else:
        _print_result(result, names, log)
    code = exit_code(result.stop_reason)
    # What nobody asked for is no failure. A worker that failed is worse, and its code stays.
    has_lost = bool(result.unstored_answers) and not log.has_own_answers
    is_incomplete = has_lost or (result.log_error is not None and not log.is_optional)
    raise typer.Exit(NO_FILES if is_incomplete and code != NO_MODEL else code)


async def _answer(
    work: Work, log: RunLog, read_context: Callable[[], Awaitable[Context]]
) -> tuple[RunResult, dict[Role, str]]:
    """Return the result, and what answered for each role."""
    from ..api import arun
    from .model_line import model_and_place, models_line
    from .screen import display

    task = work.task
    models = await work.models.handlers(work.folder, task.limits.worker_ctx_k, work.permissions)
    context = print_warnings(await read_context())
    async with log.open(work.config()) as config:
        with display(task.query, quiet=work.flags.as_json) as screen:
            screen.note(models_line(models))
            # The builtin pair stands in for a model that is missing: say that it is no language model.
            if work.models.is_missing(models):
                from ...handlers.builtin import NOTICE

                screen.note(NOTICE)

            def on_event(event: Event) -> None:
                log.watch(event)
                screen.on_event(event)

            result = await arun(
                query=task.query,
                context=context,
                supervisor=models["supervisor"],
                worker=models["worker"],
                config=replace(config, on_event=on_event),
            )
        log.forget_answers(result)
        # Now, as a model server has told its model.
        names: dict[Role, str] = {role: model_and_place(each) for role, each in models.items()}
        return result, names


def _print_result(result: RunResult, names: Mapping[Role, str], log: RunLog) -> None:
    from ...sandbox_image.text import printable
    from ..terminal import wrapped
    from .failures import print_failures
    from .summary import summary

    answer = "(no answer)" if result.answer is None else result.answer
    # Escape sequences could deceive on a terminal; a file gets the answer as it is.
    print(printable(answer) if sys.stdout.isatty() else answer, flush=True)
    for line in summary(result, names):
        print(wrapped(line), file=sys.stderr)
    print_failures(result)
    # Not wrapped: a command in parts could not be copied.
    for line in log.what_to_type(result):
        print(printable(line), file=sys.stderr)
