"""What of the walls holds on this machine: found by trying, from inside a real sandbox.

Every probe does what an attacker would: it reads a file of the host that was made for it, dials a listener that
waits for it, opens each socket family, makes each forbidden system call, allocates and forks past the limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import SandboxError, SandboxUnavailable
from .config import GVISOR, CellResult, Outcome, SandboxConfig
from .factory import open_sandbox
from .sandbox import Sandbox

_LIMITS = SandboxConfig.model_validate(
    {
        "memory": "96MiB",
        "pids": 16,
        "scratch": "8MiB",
        "timeout": 10.0,
        "grace": 0.3,
        "isolation": "best_effort",
    }
)
_LIBSECCOMP = "Install libseccomp: `apt-get install libseccomp2` (or your distribution's package)."
_CGROUPS = (
    "Run the engine where it may make control groups: as root, in a service with `Delegate=yes`, or with "
    "`systemd-run --user --scope -p Delegate=yes supdist-engine ...`. Until then a watchdog looks ten times a second."
)
_DOCKER_TELLS = "Docker tells its containers, in their mounts, where its data lies."
_OWN_KERNEL = "Under gVisor it is its own kernel that answers, not the host's."
_GVISOR_COUNTS = "Let the runtime apply the limits: configure runsc without `--ignore-cgroups`."
_REPORT = "This should hold wherever a sandbox starts; please report it with the output of `supdist-engine doctor --json`."


@dataclass(frozen=True, slots=True)
class Finding:
    """One layer on this machine.

    Attributes:
        layer: its name.
        holds: whether the probes were stopped.
        required: whether the default level asks for it; what is not required is an addition.
        measured: what the probes saw.
        remedy: what to do where it does not hold; empty where it does.
    """

    layer: str
    holds: bool
    required: bool
    measured: str
    remedy: str = ""


async def examine(
    backend: Literal["process", "docker"] = "process", image: str | None = None, runtime: str | None = None
) -> list[Finding]:
    """Every layer of a backend. Takes some seconds. Raises nothing: what cannot be had is a finding.

    Args:
        backend: what the walls are made of.
        image: docker: its name; by default ours.
        runtime: docker: the daemon's runtime.
    """
    config = _LIMITS.model_copy(update={"backend": backend, "image": image, "runtime": runtime})
    try:
        async with open_sandbox(config) as sandbox:
            findings = [_namespaces(sandbox)]
            findings += await _look_around(sandbox)
        for probe in (_memory, _processes, _time):
            async with open_sandbox(config) as sandbox:
                findings.append(await probe(sandbox))
    except SandboxUnavailable as error:
        return [
            Finding("sandbox", holds=False, required=True, measured=error.capability, remedy=error.remedy)
        ]
    except SandboxError as error:
        return [Finding("sandbox", holds=False, required=True, measured=str(error), remedy=_REPORT)]
    return findings


def default_level_holds(findings: list[Finding]) -> bool:
    """Whether everything that the default level asks for is there."""
    return all(finding.holds for finding in findings if finding.required)


def _finding(
    layer: str, holds: bool, measured: str, remedy: str = _REPORT, *, required: bool = True
) -> Finding:
    return Finding(layer, holds, required, measured, "" if holds else remedy)


def _namespaces(sandbox: Sandbox) -> Finding:
    isolation = sandbox.isolation
    return _finding(
        "namespaces", not isolation.shared_namespaces(), ", ".join(isolation.namespaces) or "none"
    )


async def _look_around(sandbox: Sandbox) -> list[Finding]:
    """The probes that leave the sandbox alive, all in one cell."""
    secret, accepted = secrets.token_hex(16), 0

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="supdist-doctor-"))
        file = _lay_out(folder, secret)
        os.environ["SUPDIST_DOCTOR"] = secret
        stack.callback(os.environ.pop, "SUPDIST_DOCTOR")
        tcp = await asyncio.start_server(accept, "127.0.0.1", 0)
        abstract = await asyncio.start_unix_server(accept, f"\0supdist-{secret}")
        path = await asyncio.start_unix_server(accept, f"{folder}/socket")
        try:
            port = tcp.sockets[0].getsockname()[1]
            result = await sandbox.execute(
                f"SECRET, FILE, PORT, ABSTRACT, PATH = {secret!r}, {str(file)!r}, {port}, {f'supdist-{secret}'!r}, "
                f"{folder + '/socket'!r}\n{_PROBES}"
            )
        finally:
            for server in (tcp, abstract, path):
                server.close()
                await server.wait_closed()
    seen = _read(result) | {"walls": sandbox.isolation.backend}
    return [make(seen, accepted) for make in _JUDGEMENTS]


def _lay_out(folder: str, secret: str) -> Path:
    """A file of the host that anybody may read: only the walls keep a guest from it."""
    file = Path(folder, "secret")
    file.write_text(secret)
    file.chmod(0o644)
    Path(folder).chmod(0o755)
    return file


def _read(result: CellResult) -> dict[str, Any]:
    """What the probes report. A guest's word: it says what it saw, the verdicts are made here."""
    try:
        seen = json.loads(result.final or "")
    except ValueError:
        seen = None
    if not isinstance(seen, dict):
        raise SandboxError(
            f"the probes did not come back ({result.outcome.value}): {result.detail or result.stderr[-300:]}"
        )
    return seen  # pyright: ignore[reportUnknownVariableType]


def _of_the_kernel(
    seen: dict[str, Any], layer: str, holds: bool, measured: str, remedy: str = _LIBSECCOMP
) -> Finding:
    """What the kernel that the guest sees refuses: under gVisor that is no wall of the host's."""
    own = seen["walls"] == GVISOR
    return _finding(layer, holds, measured, _OWN_KERNEL if own else remedy, required=not own)


_JUDGEMENTS: tuple[Callable[[dict[str, Any], int], Finding], ...] = (
    lambda seen, _: _finding(
        "file system", not seen["leaks"] and not seen["writable"], f"host file {'read' if seen['leaks'] else 'absent'}, "
        f"written to: {', '.join(seen['writable']) or 'nothing but /work, /tmp and /dev/shm'}",
    ),
    lambda seen, _: _finding(
        "paths", not seen["paths"], "none of the host's in mountinfo or maps" if not seen["paths"] else str(seen["paths"][0])[:60],
        "The kernel refuses overlays in user namespaces (Linux 5.11 has them); libraries are bound instead."
        if seen["walls"] == "process" else _DOCKER_TELLS, required=False,
    ),
    lambda seen, _: _finding("environment", not seen["environment"], "the host's secret is not there" if not seen["environment"] else "leaks"),
    lambda seen, accepted: _finding(
        "network", accepted == 0 and seen["interfaces"] == ["lo"] and not seen["routes"],
        f"{accepted} connections arrived; interfaces {', '.join(seen['interfaces'])}; {seen['routes']} routes",
    ),
    lambda seen, _: _finding(
        "identity", seen["uid"] == 65534 and seen["capabilities"] == 0 and (seen["no_new_privs"] or seen["walls"] == GVISOR),
        f"uid {seen['uid']}, capabilities {seen['capabilities']:#x}, no_new_privs {seen['no_new_privs']}",
    ),
    lambda seen, _: _of_the_kernel(
        seen, "system calls", seen["seccomp"] and not seen["allowed"],
        f"{seen['tried']} forbidden calls refused" if not seen["allowed"] else f"allowed: {', '.join(seen['allowed'])}",
    ),
    lambda seen, _: _of_the_kernel(
        seen, "socket families", set(seen["families"]) <= {1, 2, 10}, f"open: {', '.join(map(str, seen['families']))} of 0-45",
    ),
    lambda seen, _: _of_the_kernel(seen, "devices", not seen["devices"], "null, zero, full, random, urandom" if not seen["devices"] else str(seen["devices"]), _REPORT),
    lambda seen, _: _finding("scratch size", seen["scratch"] == 28, "ends with ENOSPC" if seen["scratch"] == 28 else f"errno {seen['scratch']}"),
    lambda seen, _: _finding(
        "Landlock", seen["dial"] == 13, "TCP refused by rule" if seen["dial"] == 13 else "not active",
        "Boot a kernel with Landlock (CONFIG_SECURITY_LANDLOCK, `lsm=landlock,...`), Linux 6.7 or newer."
        if seen["walls"] == "process" else "The process backend has it.", required=False,
    ),
)  # fmt: skip


async def _memory(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(
        "import os, time\nfor _ in range(8):\n  if os.fork() == 0:\n    held = bytearray(24 << 20)\n"
        "    for at in range(0, len(held), 4096): held[at] = 1\n    time.sleep(5)\n    os._exit(0)\n"
        "for _ in range(8):\n  if os.wait()[1]: break"  # the first that is killed tells
    )
    by = result.usage.source
    holds = result.outcome is Outcome.OOM
    measured = f"eight processes of 24 MiB under a limit of 96 MiB: {result.outcome.value}, counted by {by}"
    remedy = _GVISOR_COUNTS if sandbox.isolation.backend == GVISOR else _CGROUPS
    return Finding("memory", holds, required=True, measured=measured, remedy="" if by == "cgroup" else remedy)


async def _processes(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(
        "import os, time\nn = 0\ntry:\n  while n < 200:\n    if os.fork() == 0: time.sleep(5); os._exit(0)\n    n += 1\n"
        "except BlockingIOError: pass\nFINAL(n)"
    )
    forked = int(result.final) if result.final and result.final.isdecimal() else -1
    return _finding("processes", 0 < forked < 24, f"{forked} children under a limit of 16")


async def _time(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", timeout=0.2
    )
    took = result.elapsed
    return _finding(
        "time",
        result.outcome is Outcome.TIMEOUT and took < 2,
        f"killed {took:.1f} s after a start with 0.2 s",
    )


_PROBES = """
import ctypes, errno, os, platform, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
seen = {}
def text(path):
    try:
        with open(path, errors="replace") as file: return file.read()
    except OSError: return ""
seen["leaks"] = SECRET in text(FILE)
writable = []
for path in ("/", "/etc", "/usr/lib", "/bin", os.path.dirname(os.__file__), "/proc/sys/kernel", "/dev"):
    try:
        open(path + "/supdist-probe", "w").close(); writable.append(path)
    except OSError: pass
seen["writable"] = writable
lines = [line.split() for line in text("/proc/self/mountinfo").splitlines()]
seen["paths"] = [line[3] for line in lines if line[line.index("-") + 1] not in ("overlay", "tmpfs", "proc", "devtmpfs")]
seen["environment"] = any(SECRET in text(f"/proc/{pid}/environ") for pid in os.listdir("/proc") if pid.isdecimal())
def dial(family, address):
    with socket.socket(family) as s:
        s.settimeout(1)
        try: s.connect(address)
        except OSError as e: return e.errno
        return 0
seen["dial"] = dial(socket.AF_INET, ("127.0.0.1", PORT))
dial(socket.AF_UNIX, "\\0" + ABSTRACT); dial(socket.AF_UNIX, PATH)
seen["interfaces"] = [line.split(":")[0].strip() for line in text("/proc/net/dev").splitlines()[2:]]
seen["routes"] = len(text("/proc/net/route").splitlines()[1:])
status = {"NoNewPrivs": "0"} | dict(line.split(":", 1) for line in text("/proc/self/status").splitlines() if ":" in line)
seen["uid"] = os.getuid()
seen["capabilities"] = int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16)
seen["no_new_privs"] = status["NoNewPrivs"].strip() == "1"
seen["seccomp"] = status.get("Seccomp", "0").strip() == "2"
# name: (number on x86_64, number on aarch64); arguments that are harmless where the call is allowed
calls = {"ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "unshare": (272, 97),
  "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
  "add_key": (248, 217), "io_uring_setup": (425, 425), "open_by_handle_at": (304, 265), "process_vm_readv": (310, 270),
  "pidfd_getfd": (438, 438), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
  "reboot": (169, 142), "swapon": (167, 224), "syslog": (103, 116), "fsopen": (430, 430), "move_mount": (429, 429),
  "clone3": (435, 435), "kcmp": (312, 272), "quotactl": (179, 60), "acct": (163, 89), "chroot": (161, 51)}
column = 0 if platform.machine() == "x86_64" else 1
allowed = []
for name, numbers in calls.items():
    ctypes.set_errno(0)
    result = libc.syscall(numbers[column], -1, 0, 0, 0, 0, 0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS): allowed.append(name)
seen["allowed"], seen["tried"] = allowed, len(calls)
families = []
for family in range(46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        fd = libc.socket(family, kind, 0)
        if fd >= 0: os.close(fd); families.append(family); break
seen["families"] = families
devices = []
for folder, _, names in os.walk("/dev"):
    for path in (os.path.join(folder, name) for name in names):
        try:
            with open(path, "rb", buffering=0, opener=lambda path, _: os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as file:
                found = os.fstat(file.fileno())
        except OSError: continue
        if (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)) and found.st_rdev not in {os.makedev(1, n) for n in (3, 5, 7, 8, 9)}:
            devices.append(path)
seen["devices"] = sorted(devices)
try:
    with open("/work/fill", "wb") as file:
        for _ in range(64): file.write(bytes(1 << 20))
    seen["scratch"] = 0
except OSError as e: seen["scratch"] = e.errno
FINAL(seen)
"""
