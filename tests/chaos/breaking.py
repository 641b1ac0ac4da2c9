"""Makes the faults of a step while its program runs."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time

import psutil

from .faults import Fault, find, send
from .programs import Step
from .watch import Watch, alive

# On an idle machine a step takes seconds. A hang is what has no end.
MOST_SECONDS = 150.0
# What was below a killed process is gone in milliseconds on an idle machine.
_ORPHAN_SECONDS = 15.0
# Then there will be no such process any more.
_TARGET_SECONDS = 30.0
_BUSY_SECONDS = 1.0


class Breaking:
    """Breaks one program.

    Attributes:
        hit: the faults that met a process.
        problems: processes that outlived a kill above them.
    """

    def __init__(
        self, step: Step, program: subprocess.Popen[bytes], helpers: dict[str, int], watch: Watch
    ) -> None:
        self.hit = set[str]()
        self.problems = list[str]()
        self._program = program
        self._helpers = helpers
        self._watch = watch
        self._seed = step.seed
        signals = [fault for fault in step.faults if fault.kind == "signal"]
        self._due = sorted(signals, key=lambda fault: fault.at)
        self._stopped = list[tuple[float, int]]()
        self._orphans = list[tuple[float, psutil.Process]]()
        self._seen = dict[str, float]()
        self._began = time.monotonic()
        self._busy_at = 0.0

    def until_end(self) -> int | None:
        """Make the faults in time, and wait for the program; None: it had to be killed."""
        while self._program.poll() is None and (now := time.monotonic() - self._began) < MOST_SECONDS:
            self._watch.look(self._program.pid)
            for fault in list(self._due):
                self._make_if_due(fault, now)
            for each in [each for each in self._stopped if each[0] <= now]:
                self._stopped.remove(each)
                send(each[1], "CONT")
            self._check_orphans(now)
            if self._due or self._stopped or self._orphans:
                self._busy_at = now
            elif now > self._busy_at + _BUSY_SECONDS:
                self._tell_to_end()
            time.sleep(0.01)
        if self._program.poll() is None:
            self._program.kill()
            self._program.wait()
            return None
        return self._program.returncode

    def _make_if_due(self, fault: Fault, now: float) -> None:
        found = find(fault.target, self._program.pid, self._helpers)
        if not found:
            if now > fault.at + _TARGET_SECONDS:
                self._due.remove(fault)
            return
        if now < self._seen.setdefault(fault.target, now) + fault.at:
            return
        self._due.remove(fault)
        pid = random.Random(f"{self._seed}:{fault}").choice(found)
        self.hit.add(str(fault))
        if fault.value == "KILL" and pid != self._program.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                below = psutil.Process(pid).children(recursive=True)
                self._orphans += [(now + _ORPHAN_SECONDS, process) for process in below]
        send(pid, fault.value)
        if fault.seconds is not None:
            self._stopped.append((now + fault.seconds, pid))

    def _check_orphans(self, now: float) -> None:
        self._orphans = [each for each in self._orphans if alive(each[1])]
        for each in [each for each in self._orphans if each[0] < now]:
            self._orphans.remove(each)
            self.problems.append(f"process {each[1].pid} outlived a kill above it")

    def _tell_to_end(self) -> None:
        stdin = self._program.stdin
        assert stdin is not None
        if not stdin.closed:
            with contextlib.suppress(OSError):
                stdin.write(b"stop\n")
                stdin.close()
