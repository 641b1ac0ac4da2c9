"""How a guest died, from the last message of its init."""

from __future__ import annotations

import os
import signal

from ..protocol import Outcome, ReplExit


def verdict_on_death(last: ReplExit | None) -> tuple[Outcome, str]:
    """Return the outcome and its text for a guest whose stream has ended; None where init sent no last message.

    A limit that was exceeded explains a death better, and comes first.
    """
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
