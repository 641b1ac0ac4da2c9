"""Group 13: devices."""

from __future__ import annotations

import os

from attacks.lab import ATTEMPT, Arena, timed
from attacks.machine import CGROUPS

ALLOWED = {"null", "zero", "full", "random", "urandom", "shm", "pts", "fd", "stdin", "stdout", "stderr"}


async def test_dv1_dev_holds_what_python_needs_and_no_more(arena: Arena) -> None:
    code = """
import os, stat
def is_dead(path):
    try:
        if os.path.isdir(path): return not os.listdir(path) and not os.access(path, os.W_OK)
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError: return True
dead = [name for name in DEAD if is_dead("/dev/" + name)]
names = [name for name in os.listdir("/dev") if name not in dead]
print(*names)
for name in names:
    found = os.lstat("/dev/" + name)
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        print(name, os.major(found.st_rdev), os.minor(found.st_rdev), stat.S_ISCHR(found.st_mode))
""".replace("DEAD", str(sorted(arena.machine.dead_devices)))
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    names, *nodes = result.stdout.splitlines()
    assert set(names.split()) <= ALLOWED | arena.machine.devices
    assert {node for node in nodes if node.split()[0] not in arena.machine.devices} == {
        "null 1 3 True",
        # /dev/full, which cannot be mapped, where no control group counts shared memory.
        "zero 1 5 True" if CGROUPS else "zero 1 7 True",
        "full 1 7 True",
        "random 1 8 True",
        "urandom 1 9 True",
    }
    assert not set(os.listdir("/dev")) <= ALLOWED, "the host has more"


async def test_dv2_no_device_can_be_made(arena: Arena) -> None:
    code = (
        ATTEMPT
        + """
import stat
devices = ((stat.S_IFBLK, 8, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 3), (stat.S_IFBLK, 7, 0))
for kind, major, minor in devices:
    for folder in ("/work", "/tmp", "/dev/shm", "/dev"):
        print(attempt(os.mknod, f"{folder}/node", kind | 0o666, os.makedev(major, minor)))
print(attempt(os.mkfifo, "/work/fifo"))
"""
    )
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    *refused, fifo = result.stdout.split()
    assert set(refused) <= {"EPERM", "EROFS", "EACCES"}
    assert fifo == "did"


async def test_dv2_a_node_that_is_there_is_dead_on_scratch(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(
            sandbox,
            "import os; print(all(os.statvfs(p).f_flag & 4 for p in ('/work', '/tmp', '/dev/shm')))",
        )
    assert result.stdout == "True\n", "nodev"


async def test_dv3_no_device_of_the_host_is_there(arena: Arena) -> None:
    names = ["kvm", "fuse", "net/tun", "nvidia0", "nvidiactl", "dri", "mem", "kmem", "port", "vsock",
             "vhost-net", "vhost-vsock", "loop0", "loop-control", "sda", "vda", "tty", "console", "ptmx",
             "kmsg", "hpet", "snd", "input", "userfaultfd"]  # fmt: skip
    code = f"import os; print([n for n in {names} + {os.listdir('/dev')} if os.path.lexists('/dev/' + n)])"
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert set(eval(result.stdout)) <= ALLOWED | arena.machine.devices | arena.machine.dead_devices
    assert any(os.path.lexists(f"/dev/{name}") for name in names), "the host does have some"
