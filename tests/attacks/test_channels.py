"""Group 17: what two sandboxes could tell each other past the host."""

from __future__ import annotations

import os

import pytest
from attacks.lab import ATTEMPT, Arena, timed

from supdist.sandbox_image import protocol

SHARED = ["/usr/bin/env", "/etc/passwd", "/usr/lib", "/dev/null", "/", "/dev/urandom"]

CONTEXT = [protocol.CONTEXT_FILE, os.path.dirname(protocol.CONTEXT_FILE)]

HOLD = ATTEMPT + """
import fcntl
held = []
for path in {paths}:
    fd = os.open(path, os.O_RDONLY)
    held.append(fd)
    print(attempt(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB), attempt(fcntl.fcntl, fd, 1024, 0), path)
"""  # fmt: skip
TEST = ATTEMPT + """
import fcntl
for path in {paths}:
    fd = os.open(path, os.O_RDONLY)
    print(attempt(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB), path)
    os.close(fd)
"""  # fmt: skip


def own(text: str) -> list[str]:
    """Return the lines about a sandbox's own files; only root can make device nodes."""
    return [line for line in text.splitlines() if os.geteuid() == 0 or "/dev/" not in line]


async def test_sc1_a_lock_of_one_is_not_seen_by_the_other(arena: Arena) -> None:
    context = "the same for both " * 100
    async with arena.open(context=context) as one, arena.open(context=context) as other:
        packages = "os.path.dirname(os.__file__) + '/site-packages'"
        exist = await timed(
            one, f"import os; print(*filter(os.path.exists, [*{[*SHARED, *CONTEXT]}, {packages}]))"
        )
        paths = [*exist.stdout.split(), "/work", "/tmp"]
        free = await timed(other, TEST.format(paths=paths))
        held = await timed(one, HOLD.format(paths=paths))
        tested = await timed(other, TEST.format(paths=paths))
        again = await timed(one, TEST.format(paths=["/work"]))
    assert "did" in held.stdout
    assert own(tested.stdout) == own(free.stdout), "what it can lock does not depend on the other"
    assert again.stdout.startswith("EAGAIN"), "the same lock holds within a sandbox"


PLACES = {
    "SC2-shm": ("open('/dev/shm/mark', 'w').close()", "import os; print(os.path.exists('/dev/shm/mark'))"),
    "SC2-tmp": ("open('/tmp/mark', 'w').close()", "import os; print(os.path.exists('/tmp/mark'))"),
    "SC2-work": ("open('/work/mark', 'w').close()", "import os; print(os.path.exists('/work/mark'))"),
    "SC2-hostname": (
        "import socket\ntry: socket.sethostname('mark')\nexcept OSError: pass",
        "import socket; print(socket.gethostname() == 'mark')",
    ),
    "SC2-sysv": (
        (
            "import ctypes; libc = ctypes.CDLL(None); x = [libc.shmget(4242, 4096, 0o1666), libc.msgget(4242,"
            " 0o1666), libc.semget(4242, 1, 0o1666)]"
        ),
        (
            "import ctypes; libc = ctypes.CDLL(None); print(max(libc.shmget(4242, 4096, 0), libc.msgget(4242,"
            " 0), libc.semget(4242, 1, 0)) >= 0)"
        ),
    ),
    "SC2-nice": (
        (
            "import os\nfor n in range(1, 100):\n  try: os.setpriority(os.PRIO_USER, 0, 5)\n"
            "  except OSError: pass"
        ),
        "import os; print(os.getpriority(os.PRIO_PROCESS, 0) != 0)",
    ),
    "SC2-atime": (
        "import os\ntry: os.utime('/usr/bin/env', (1, 1))\nexcept OSError: pass",
        "import os; print(os.stat('/usr/bin/env').st_atime == 1)",
    ),
    "SC2-sysctl": (
        (
            "for f in ('kernel/domainname', 'kernel/msgmax', 'net/ipv4/ip_forward',"
            " 'user/max_net_namespaces', 'kernel/ns_last_pid'):\n"
            "  try: open('/proc/sys/' + f, 'w').write('4242')\n  except OSError: pass"
        ),
        (
            "import glob; print(any('4242' in open('/proc/sys/' + f).read() for f in ('kernel/domainname',"
            " 'kernel/msgmax') if __import__('os').path.exists('/proc/sys/' + f)))"
        ),
    ),
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_mark_of_one_is_not_found_by_the_other(arena: Arena, place: str) -> None:
    leave, look = PLACES[place]
    async with arena.open() as one, arena.open() as other:
        assert (await timed(one, leave)).error is None
        result = await timed(other, look)
        if place in ("SC2-shm", "SC2-tmp", "SC2-work"):
            assert (await timed(one, look)).stdout == "True\n"
    assert result.stdout == "False\n"


async def test_sc5_no_session_sees_what_another_left(arena: Arena, canary: str) -> None:
    leave = f"""
import builtins, os, sys, threading
for folder in ("/work", "/tmp", "/dev/shm"): open(folder + "/left", "w").write({canary!r})
builtins.left = sys.left = left = {canary!r}
os.environ["LEFT"] = left
block = left * 500_000
"""
    look = """
import builtins, gc, os, sys
print([f for f in ("/work", "/tmp", "/dev/shm") if os.listdir(f)],
      hasattr(builtins, "left"), hasattr(sys, "left"), "LEFT" in os.environ)
x = bytearray(24 << 20)
print(any(x))
"""
    async with arena.open() as sandbox:
        await timed(sandbox, leave)
        assert "True True True" in (await timed(sandbox, look)).stdout
        await sandbox.reset()
        again = await timed(sandbox, look)
    for _ in range(3):
        async with arena.open() as sandbox:
            assert (await timed(sandbox, look)).stdout == again.stdout == "[] False False False\nFalse\n"
