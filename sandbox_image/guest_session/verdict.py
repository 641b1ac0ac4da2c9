"""Explain the death of a guest."""

from __future__ import annotations

import os
import signal

from ..protocol import Outcome, ReplExit, Violation


def check_exit_status(status: int) -> None:
    """Check a wait status from the guest.

    Raises:
        Violation: no process ends with it.
    """
    # The functions of ``os`` raise ValueError or OverflowError for any other number.
    if not (0 <= status <= 0xFFFF and (os.WIFEXITED(status) or os.WIFSIGNALED(status))):
        raise Violation("an exit status that no process has")


def verdict_on_death(last: ReplExit | None) -> tuple[Outcome, str]:
    """Return outcome and text for the last message of a guest's init; None if there was none."""
    if last is None:
        return Outcome.CRASHED, "the sandbox closed its stream or its init died"
    if last.hung_up:
        return Outcome.CRASHED, "the interpreter closed its stream"
    status = last.status
    if not os.WIFSIGNALED(status):
        return Outcome.CRASHED, f"the interpreter left with status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    if number == signal.SIGKILL:
        return Outcome.KILLED, "the interpreter was killed (SIGKILL)"
    if number in (signal.SIGXCPU, signal.SIGXFSZ):
        return Outcome.RESOURCE_LIMIT, f"the interpreter was ended by {name}"
    return Outcome.CRASHED, f"the interpreter was ended by {name}"
