"""Stop and continue a sandbox that uses more than its share of the processors.

This is for sandboxes that no control group limits.
"""

from __future__ import annotations

import os
import signal

from .process_tree import INIT, Process, ProcessTree
from .processor_share import ProcessorShare

DUTY_CYCLE = "duty cycle of 0.1 s"
NOT_NEEDED = "all processors allowed"
# While processes are stopped, others may fork.
_STOP_ROUNDS = 20
_STOPPED_CHECK_SECONDS = 0.05
# An interrupted cell may use so much at once, or its grace would pass while it is stopped.
_INTERRUPT_SECONDS = 0.05
# A system call that works for long stops late. More is a guest that continues itself, with a timer that sends
# SIGCONT.
_MOST_WHILE_STOPPED_SECONDS = 1.0


class DutyCycle:
    """The processor time of one sandbox. Times are monotonic seconds.

    Its init is never stopped: it moves files and reports how the repl ended.
    """

    def __init__(self, tree: ProcessTree, share: ProcessorShare) -> None:
        self._tree = tree
        self._share = share
        self._stopped: dict[tuple[int, int], Process] = {}
        self._is_stopping = False
        self._used_while_stopped = 0.0

    @property
    def is_stopping(self) -> bool:
        """Whether the sandbox must not run now."""
        return self._is_stopping

    def next_check(self, now: float, threads: int) -> float:
        """Return when ``update`` is due, for a sandbox with so many threads that may run."""
        resume_at = self._share.resume_at
        if self._is_stopping and resume_at is not None:
            return min(resume_at, now + _STOPPED_CHECK_SECONDS)
        return self._share.check_at(threads)

    def update(self, used: float, now: float) -> str | None:
        """Count processor seconds, and stop or continue the sandbox; return why it must end."""
        self._share.use(used, now)
        if self._is_stopping:
            self._used_while_stopped += used
            if self._used_while_stopped > _MOST_WHILE_STOPPED_SECONDS:
                return "it ran on while it was stopped for its share of the processors"
        if self._share.resume_at is None:
            self._continue()
        else:
            self._stop()
        return None

    def let_run(self) -> None:
        """Continue the sandbox for a moment: it was interrupted."""
        self._share.grant(_INTERRUPT_SECONDS)
        self._continue()

    def _stop(self) -> None:
        self._is_stopping = True
        for _ in range(_STOP_ROUNDS):
            running = [each for each in self._tree.alive() if each.pid != INIT and not each.is_stopped]
            for each in running:
                self._tree.signal(each, signal.SIGSTOP)
            # A process with a signal waiting cannot fork (fork(2)), so the rounds end. What a process of its
            # own has stopped stays so when the others continue.
            found = {each.key: each for each in running if each.key not in self._stopped}
            if not found:
                return
            self._stopped |= found

    def _continue(self) -> None:
        for each in self._stopped.values():
            self._tree.signal(each, signal.SIGCONT)
        self._stopped.clear()
        self._is_stopping = False
        self._used_while_stopped = 0.0


def duty_cycle(tree: ProcessTree, cpus: float, now: float) -> DutyCycle | None:
    """Return the duty cycle of a sandbox; None if its share is all processors that it can have."""
    processors = len(os.sched_getaffinity(0))
    return DutyCycle(tree, ProcessorShare(cpus, processors, now)) if cpus < processors else None
