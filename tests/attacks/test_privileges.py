"""Group 12: privileges and system calls.

Only the guest sees how a call was refused, so its word is taken for that. Every call has arguments that the
kernel itself finds wrong: outside, it says so (EFAULT, EINVAL, EBADF ...) without doing anything; inside, the
filter's EPERM or ENOSYS must come first.
"""

from __future__ import annotations

import json
import os

import psutil
import pytest
from attacks.lab import ATTEMPT, Arena, outside, timed
from support import syscall_number

from supdist.engine import Outcome

BAD = 1
"""A pointer to nowhere."""
MINUS = (1 << 64) - 1

CALL = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(each) for each in arguments))
    code = ctypes.get_errno()
    return "did" if result != -1 else errno.errorcode.get(code, str(code))
print(json.dumps([call(*each) for each in {calls}]))
"""

# Row, call, arguments, and the kernel's answer outside to root and to an ordinary user. Where that is already
# EPERM or ENOSYS, the refusal inside proves nothing more, but must still come.
CALLS: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "SY2": [
        ("unshare", (0x10000000 | 1,)), ("unshare", (0x7E020000 | 1,)), ("clone", (0x10010000, 0, 0, 0, 0)),
        ("clone3", (BAD, 64)), ("clone3", (0, 0)),
    ],
    "SY3": [
        ("mount", (BAD, BAD, BAD, 0, 0)), ("umount2", (BAD, 0)), ("pivot_root", (BAD, BAD)),
        ("chroot", (BAD,)), ("fsopen", (BAD, 0)), ("fsconfig", (MINUS, 0, 0, 0, 0)),
        ("fsmount", (MINUS, 0, 0)), ("fspick", (MINUS, BAD, 0)), ("open_tree", (MINUS, BAD, 0)),
        ("move_mount", (MINUS, BAD, MINUS, BAD, 0)), ("mount_setattr", (MINUS, BAD, 0, BAD, 0)),
    ],
    "SY4": [("setns", (MINUS, 0))],
    "SY5": [("bpf", (999, BAD, 8))],
    "SY6": [("perf_event_open", (BAD, 0, MINUS, MINUS, 0))],
    "SY7": [("io_uring_setup", (1, BAD)), ("io_uring_enter", (MINUS, 0, 0, 0, 0, 0)),
        ("io_uring_register", (MINUS, 0, 0, 0))],
    "SY8": [("userfaultfd", (0xFFFF,))],
    "SY9": [
        ("kexec_load", (0, 0, 0, 0xFFFF)), ("kexec_file_load", (MINUS, MINUS, 0, 0, 0xFFFF)),
        ("init_module", (BAD, 16, BAD)), ("finit_module", (MINUS, BAD, 0)), ("delete_module", (BAD, 0)),
        ("reboot", (0, 0, 0, 0)), ("swapon", (BAD, 0)), ("swapoff", (BAD,)), ("syslog", (99, 0, 0)),
        ("acct", (BAD,)), ("quotactl", (MINUS, BAD, 0, 0)), ("iopl", (99,)), ("ioperm", (70_000, 70_000, 1)),
        ("settimeofday", (BAD, BAD)), ("sethostname", (BAD, 1)),
    ],
    "SY10": [
        ("ptrace", (0xFFFF, 0, 0, 0)), ("ptrace", (16, 0, 0, 0)), ("process_vm_readv", (0, 0, 0, 0, 0, 99)),
        ("process_vm_writev", (0, 0, 0, 0, 0, 99)), ("kcmp", (0, 0, 99, 0, 0)),
        ("pidfd_getfd", (MINUS, 0, 0)), ("process_madvise", (MINUS, 0, 0, 0, 99)),
    ],
    "EN5": [
        ("keyctl", (9999, 0, 0, 0, 0)), ("keyctl", (0, 0xFFFFFFFD, 0)), ("add_key", (BAD, BAD, BAD, 0, 0)),
        ("request_key", (BAD, BAD, BAD, 0)),
    ],
    "FS5": [("open_by_handle_at", (MINUS, BAD, 0)), ("name_to_handle_at", (MINUS, BAD, BAD, BAD, 0))],
}  # fmt: skip
_FAMILIES = [(row, *each) for row, calls in CALLS.items() for each in calls]


@pytest.mark.parametrize("row", CALLS)
async def test_a_call_is_refused_before_the_kernel_looks_at_it(arena: Arena, row: str) -> None:
    calls = [
        [syscall_number(syscall), *arguments]
        for syscall, arguments in CALLS[row]
        if syscall_number(syscall) >= 0
    ]
    assert calls
    code = CALL.format(calls=calls)
    async with arena.open() as sandbox:
        inside = json.loads((await timed(sandbox, code)).stdout)
    assert set(inside) <= {"EPERM", "ENOSYS"}, list(zip(CALLS[row], inside, strict=False))
    control: list[str] = json.loads(await outside(code))
    reached = [answer for answer in control if answer not in ("EPERM", "ENOSYS")]
    assert reached, "without walls the kernel itself answers"
    if os.geteuid() == 0:
        assert "EPERM" not in control


async def test_sy1_no_privilege_is_held_or_to_be_had(arena: Arena) -> None:
    code = """
import json, os, stat, subprocess
with open("/proc/self/status") as file:
    status = dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)
names = ("NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
print(json.dumps({name: status[name] for name in names if name in status}))
print(os.getresuid(), os.getresgid(), os.getgroups())
gained = []
for folder in ("/bin", "/usr/bin", "/usr/sbin", "/usr/lib/openssh", "/usr/libexec"):
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            try: mode = os.stat(path).st_mode
            except OSError: continue
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID): gained.append(path)
for path in gained:
    if os.statvfs(path).f_flag & os.ST_NOSUID == 0: print("honoured", path)
for action in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0),
               lambda: os.setgroups([0]),
               lambda: os.chown("/work", 0, 0)):
    try: action(); print("did")
    except OSError: pass
try: os.nice(-5); print("hurried")
except OSError: pass
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    status, ids, *rest = result.stdout.splitlines()
    told: dict[str, str] = json.loads(status)
    walls = {"NoNewPrivs": "1", "Seccomp": "2"}
    if arena.machine.tells_walls:
        assert {name: told.pop(name) for name in walls} == walls
        assert "CapAmb" in told
    assert told.keys() >= {"CapInh", "CapPrm", "CapEff", "CapBnd"}
    assert {value for name, value in told.items() if name not in walls} == {"0" * 16}
    assert ids.startswith("(65534, 65534, 65534) (65534, 65534, 65534)")
    assert rest == ([] if arena.machine.guards_priority else ["hurried"])


async def test_sy1_the_outer_user_is_not_the_engines(arena: Arena) -> None:
    """Where the engine is root, a guest that broke out would be nobody; a user can only be itself."""
    async with arena.open() as sandbox:
        await timed(sandbox, "1")
        uids = {psutil.Process(pid).uids().real for pid in arena.machine.inits()}
    if arena.machine.has_own_users:
        assert 0 not in uids
        assert len(uids) >= 2, "each sandbox has its own"
    else:
        assert uids == {os.geteuid() or 65534}


async def test_sy2_no_process_gets_a_namespace(arena: Arena) -> None:
    code = """
import ctypes, os, subprocess
before = {n: os.readlink("/proc/self/ns/" + n) for n in os.listdir("/proc/self/ns")}
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000,
             0x04000000, 0x02000000, 0x80, 0x7e020000):
    if libc.unshare(flag) == 0: print("did", hex(flag))
for tool in (["unshare", "-U", "true"], ["unshare", "-r", "true"], ["nsenter", "-t", "1", "-a", "true"]):
    try:
        if subprocess.run(tool, capture_output=True).returncode == 0: print("did", tool)
    except OSError: pass
print(before == {n: os.readlink("/proc/self/ns/" + n) for n in before})
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout == "True\n"


async def test_sy13_no_terminal_can_be_typed_into(arena: Arena) -> None:
    code = (
        ATTEMPT
        + """
import ctypes, pty
libc = ctypes.CDLL(None, use_errno=True)
def ioctl(fd, request):
    ctypes.set_errno(0)
    if libc.syscall(SYS_IOCTL, fd, ctypes.c_ulong(request), ctypes.c_char_p(b"x")) == -1:
        raise OSError(ctypes.get_errno(), "")
for request in (0x5412, 0x541C, (1 << 32) | 0x5412, (0xdeadbeef << 32) | 0x541C):
    print(attempt(ioctl, 0, request), attempt(ioctl, 1, request), attempt(ioctl, -1, request))
print(attempt(lambda: os.open("/dev/tty", os.O_RDWR)), attempt(pty.openpty))
""".replace("SYS_IOCTL", str(syscall_number("ioctl")))
    )
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    *rows, terminal = result.stdout.splitlines()
    assert rows == ["EPERM EPERM EPERM"] * 4, "in the filter, whatever stands in the upper half"
    assert "did" not in terminal
    assert "EBADF" in await outside(code), "without the filter the kernel looks at the descriptor"


async def test_sy18_calls_unknown_to_the_filter_are_refused(arena: Arena) -> None:
    """Numbers up to 600. The answer must not depend on whether this kernel knows them."""
    known = ["close_range", "openat2", "faccessat2", "epoll_pwait2", "futex_waitv", "fchmodat2", "cachestat",
             "clone3", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "futex_wake",
             "futex_wait", "futex_requeue", "statmount", "listmount", "getxattrat", "listxattrat",
             "setxattrat", "removexattrat", "map_shadow_stack", "mseal", "set_mempolicy_home_node",
             "pidfd_getfd", "process_mrelease"]  # fmt: skip
    spared = {syscall_number(syscall) for syscall in known}
    unknown = [call for call in range(440, 600) if call not in spared]
    code = CALL.format(calls=[[call, *[MINUS] * 6] for call in unknown])
    async with arena.open() as sandbox:
        inside = json.loads((await timed(sandbox, code)).stdout)
    assert {
        call: said for call, said in zip(unknown, inside, strict=True) if said not in ("EPERM", "ENOSYS")
    } == {}


@pytest.mark.parametrize("abi", ["SY18-x32", "SY18-int80"])
async def test_another_abi_is_no_way_around(arena: Arena, abi: str) -> None:
    if os.uname().machine != "x86_64":
        assert abi
        return
    code = {
        "SY18-x32": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.syscall(ctypes.c_long(0x40000000 | 39)))",
        "SY18-int80": (
            # mov eax, 20 (getpid of i386); int 0x80; ret
            "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
            "m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
            "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nprint(f())"
        ),
    }[abi]
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.outcome is Outcome.CRASHED or result.stdout in ("-1\n", "-38\n"), result
