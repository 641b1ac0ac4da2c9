"""Group 4: what a guest does to its init, which has the guest's user and reports how the guest ends."""

from __future__ import annotations

import os
from pathlib import Path

from attacks.lab import ATTEMPT, DEATHS, OK, Arena, outside, timed

STEER = (
    ATTEMPT
    + """
import resource, subprocess
pid = PID
lowest = os.sched_param(0)
print(attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (0, 0)),
      attempt(resource.prlimit, pid, resource.RLIMIT_FSIZE, (0, 0)),
      attempt(resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1)),
      attempt(os.setpriority, os.PRIO_PROCESS, pid, 19),
      attempt(os.setpriority, os.PRIO_PGRP, os.getpgid(pid), 19),
      attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, lowest),
      attempt(os.sched_setparam, pid, lowest),
      attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE), flush=True)
"""
)

OWN = """
import os, resource
for pid in {0, os.getpid()} if os.getpid() == 2 else {0}:  # in a container the repl is not the second process
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    os.setpriority(os.PRIO_PROCESS, pid, 10)
"""


async def test_pr17_no_guest_lowers_the_limits_or_the_priority_of_its_init(arena: Arena) -> None:
    """With no descriptors, or behind sixty busy processes, init reports nothing and moves no file."""
    before = set(arena.machine.inits())
    async with arena.open() as sandbox:
        (init,) = set(arena.machine.inits()) - before
        was = steered(init)
        result = await timed(sandbox, STEER.replace("PID", "1"))
        if not arena.machine.protects_init:
            assert result.outcome in (OK, *DEATHS), "its own loss, and told"
            return
        assert result.outcome is OK, result
        assert steered(init) == was, result.stdout
        await sandbox.put("kept", b"x" * 1000)
        assert await sandbox.get("kept") == b"x" * 1000
        assert (await timed(sandbox, OWN)).error is None, "its own limits are its own"
    child = "subprocess.Popen(['sleep', '9'], start_new_session=True).pid"
    control = await outside(STEER.replace("PID", child) + "\nos.kill(pid, 9)")
    assert control.split() == ["did"] * 8, "without walls a user's processes are at its mercy"


def steered(pid: int) -> tuple[str, int, int]:
    """What of a process another one can change, as this machine sees it."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return limits, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)
