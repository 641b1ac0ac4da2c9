"""Group 2: secrets and names of the host, in /proc, in environments, in memory, in errors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path

import psutil
import pytest
from attacks.lab import ATTEMPT, Arena, outside, timed
from attacks.machine import DockerMachine
from support import REPOSITORY, block, scan_memory_for

from supdist.engine import SandboxConfig, arun
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import ScriptedHandler

ENVIRONMENT = """
import ctypes, os
libc = ctypes.CDLL(None)
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
number = 0
while environ[number]:
    print(environ[number].decode())
    number += 1
print(dict(os.environ), open("/proc/self/environ").read())
"""


async def test_en1_the_environment_holds_no_key(arena: Arena, canary: str) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, ENVIRONMENT)
    assert "HOME=/work" in result.stdout
    assert canary not in result.stdout + result.stderr
    assert canary in await outside(ENVIRONMENT), "the engine's environment does hold it"


OTHERS = """
import os
for pid in [p for p in os.listdir("/proc") if p.isdecimal()]:
    for name in ("cmdline", "environ", "maps", "comm", "mountinfo", "cgroup"):
        try: print(pid, name, open(f"/proc/{pid}/{name}", errors="replace").read())
        except OSError: pass
"""


async def test_en2_no_other_process_can_be_looked_at(arena: Arena, canary: str) -> None:
    pids = "import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdecimal()))"
    async with arena.open() as sandbox:
        result = await timed(sandbox, OTHERS)
        seen = json.loads((await timed(sandbox, pids)).stdout)
    assert len(seen) == (1 if arena.machine.hides_init else 2), "the repl; init at most"
    assert canary not in result.stdout
    assert str(os.getpid()) not in [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert canary in await outside(OTHERS)


async def test_en3_the_memory_of_the_runtime_holds_no_key(arena: Arena, canary: str) -> None:
    code = scan_memory_for(canary)
    async with arena.open() as sandbox:
        result = await timed(sandbox, code, timeout=5, within=6)
    async with arena.open(context=f"it is {canary} here") as told:
        control = await timed(told, code, timeout=5, within=6)
    assert control.stdout == "found\n", control
    assert result.stdout == "nothing\n", result


async def test_en4_no_argument_of_the_machinery_holds_a_secret(arena: Arena, canary: str) -> None:
    """``ps`` shows arguments to every user of the host; environments to the same user."""
    async with arena.open(context=canary, query=canary) as sandbox:
        await timed(sandbox, "x = 1")
        looked = 0
        for process in arena.machine.processes():
            try:
                assert canary not in " ".join(process.cmdline())
                environ = Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
            except (PermissionError, ProcessLookupError, psutil.NoSuchProcess):
                continue
            looked += 1
            assert canary not in environ
    assert looked >= 1
    assert canary in Path("/proc/self/environ").read_text() or canary in str(dict(os.environ))


async def test_en4_nothing_that_a_daemon_tells_holds_a_secret(arena: Arena, canary: str) -> None:
    """``docker inspect`` and ``docker history`` show arguments, environments, labels and layers."""
    assert isinstance(arena.machine, DockerMachine)

    async def ask(_: WorkerCall) -> list[str | CallError]:
        return [canary]

    async with arena.open(
        context=canary, query=canary, on_call=ask, tools={"tell": lambda: canary}
    ) as sandbox:
        seen = await timed(sandbox, "print(context, query, worker('x'), tell())")
        told = await asyncio.to_thread(arena.machine.told)
    assert seen.stdout.count(canary) == 4
    assert canary not in told
    assert "supdist.lease" in told


PROC_FILES = (
    "kcore",
    "kallsyms",
    "config.gz",
    "sched_debug",
    "timer_list",
    "kmsg",
    "keys",
    "key-users",
    "sysrq-trigger",
    "iomem",
    "ioports",
    "modules",
    "slabinfo",
    "vmallocinfo",
    "kpagecount",
    "latency_stats",
    "acpi",
    "scsi",
    "sys/kernel/core_pattern",
)


@pytest.mark.parametrize("file", PROC_FILES)
async def test_en6_the_kernels_own_files_are_closed(arena: Arena, file: str) -> None:
    code = (
        ATTEMPT
        + f"""
def read():
    if os.path.isdir("/proc/{file}"): found = os.listdir("/proc/{file}")
    else: found = open("/proc/{file}", "rb").read(64)
    if not found: raise OSError(errno.EACCES, "empty")
def write():
    if os.stat("/proc/{file}").st_rdev == os.makedev(1, 3): raise OSError(errno.EACCES, "covered")
    os.write(os.open("/proc/{file}", os.O_WRONLY), b"" if "sysrq" in "{file}" else b"\\n")
print(attempt(read), attempt(write))
"""
    )
    async with arena.open() as sandbox:
        reading, writing = (await timed(sandbox, code)).stdout.split()
    public = file == "sys/kernel/core_pattern"
    assert reading in ("EACCES", "EPERM", "ENOENT", "EIO") or public
    assert writing in ("EACCES", "EPERM", "ENOENT", "EROFS", "EIO", "EISDIR")


MACHINE_FILES = (
    "sys/kernel/random/boot_id", "cmdline", "version", "partitions", "diskstats", "devices", "consoles",
    "misc", "cgroups", "softirqs", "buddyinfo", "zoneinfo", "bus/pci/devices", "pressure/cpu",
)  # fmt: skip

READ_THEM = """
import json, sys
found = {}
for name in NAMES:
    try: found[name] = open("/proc/" + name, errors="replace").read()
    except OSError: pass
print(json.dumps(found))
"""


async def test_en11_no_file_tells_this_machine_from_another(arena: Arena) -> None:
    """Its boot, its command line, its disks, what it does; uname and what libraries read are seen."""
    code = READ_THEM.replace("NAMES", repr(MACHINE_FILES))
    async with arena.open() as sandbox:
        inside = json.loads((await timed(sandbox, code)).stdout)
        libraries = (
            "import os; print(os.cpu_count() > 0, len(os.getloadavg()), open('/proc/meminfo').read(3))"
        )
        assert (await timed(sandbox, libraries)).stdout == "True 3 Mem\n"
    here = json.loads(await outside(code))
    assert {"sys/kernel/random/boot_id", "cmdline", "version"} <= here.keys()
    named = ("sys/kernel/random/boot_id", "cmdline", "version")
    assert not [name for name in named if here[name].strip() and here[name].strip() in inside.get(name, "")]
    assert arena.machine.has_own_kernel or not any(inside.values()), inside.keys()


IDENTITY = """
import glob, os, socket, sys, sysconfig
for path in ["mountinfo", "mounts", "maps", "cgroup", "mountstats", "cmdline", "auxv"]:
    try: print(open("/proc/self/" + path, errors="replace").read())
    except OSError: pass
print(sys.path, sys.prefix, sys.executable, sys.argv, sys.flags, sysconfig.get_paths(), os.getcwd())
print([getattr(module, "__file__", "") for module in list(sys.modules.values())])
print([frame.f_code.co_filename for frame in sys._current_frames().values()])
try: 1 / 0
except ZeroDivisionError as error:
    frame = error.__traceback__.tb_frame
    while frame: print(frame.f_code.co_filename); frame = frame.f_back
print("NAMES", socket.gethostname(), os.uname().nodename, socket.getfqdn())
"""


async def test_en9_nothing_names_the_host(arena: Arena, tmp_path: Path) -> None:
    paths = {
        str(REPOSITORY),
        str(Path.home()),
        sys.prefix,
        sys.base_prefix,
        os.getcwd(),
        str(tmp_path.parent.parent),
    }
    paths -= {"/", "/usr", "/tmp"}
    async with arena.open() as sandbox:
        result = await timed(sandbox, IDENTITY)
    # A whole name: /hostlib/.../rootfs.py is no path below /root.
    assert {path for path in paths if re.search(rf"{re.escape(path)}(?![\w.-])", result.stdout)} == set()
    names = result.stdout.split("NAMES ")[1].split()
    assert set(names) <= {"sandbox", "localhost"}
    assert socket.gethostname() not in names
    assert sys.prefix in await outside(IDENTITY)


async def test_en10_the_hosts_words_of_a_failure_stay_on_the_host(
    canary: str, tmp_path: Path, limits: SandboxConfig
) -> None:
    def fail(_: object) -> str:
        raise RuntimeError(f"/host/secret/{canary}")

    code = """
import traceback
words = []
for ask in (lambda: worker("x"), lambda: worker_batch(["x", "y"])):
    try: ask()
    except WorkerError as error: words += [str(error), repr(error.__dict__), traceback.format_exc()]
FINAL(" ".join(words))
"""
    result = await arun(
        query="q", context="c", log_dir=tmp_path, sandbox=limits,
        supervisor=ScriptedHandler([block(code)]), worker=ScriptedHandler(fail),
    )  # fmt: skip
    assert result.answer is not None
    assert "unavailable" in result.answer
    assert canary not in result.answer
    assert "/host/" not in result.answer
    assert canary in (tmp_path / "worker.jsonl").read_text(), "the host's own log does have them"
