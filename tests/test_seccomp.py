"""The system-call filter, loaded into child processes: what it refuses, and what it must leave alone."""

from __future__ import annotations

import errno
import json
import platform
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support import syscall_number

from supdist.engine.jail import seccomp

LOW_32_BITS = (1 << 32) - 1
A_HIGH_BIT = 1 << 32

CONFINE = """
import sys
from supdist.engine.jail import seccomp
from supdist.sandbox_image import linux
linux.set_no_new_privs()
seccomp.install(open(sys.argv[1], "rb").read())
"""
# Arguments are passed as 64 bits each, so that a test can set those that the kernel ignores.
CALL = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(each) for each in arguments))
    return ctypes.get_errno() if result == -1 else 0
print(json.dumps([call(*each) for each in json.loads(sys.stdin.read())]))
"""

FORBIDDEN = """
    unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount
    mount_setattr open_by_handle_at name_to_handle_at bpf perf_event_open userfaultfd keyctl add_key
    request_key ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise
    io_uring_setup io_uring_enter io_uring_register kexec_load kexec_file_load init_module finit_module
    delete_module reboot swapon swapoff syslog acct quotactl iopl ioperm nfsservctl lookup_dcookie
    vhangup settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname shmget semget
    msgget mq_open memfd_secret seccomp fanotify_init modify_ldt clone3 splice sendfile vmsplice tee
""".split()  # noqa: SIM905 - sixty quoted names are not easier to read


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled filter, in a file for the children."""
    path = tmp_path_factory.mktemp("seccomp") / "program"
    try:
        path.write_bytes(seccomp.compile_filter())
    except seccomp.SeccompUnavailable as error:
        pytest.skip(str(error))
    return path


def run(code: str, program: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, str(program)]
    # A session of its own has no terminal that vhangup could end, should the filter fail.
    return subprocess.run(
        command,
        input=stdin,
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )


def errnos(program: Path, calls: list[tuple[int, ...]], *, confined: bool = True) -> list[int]:
    """Each call's errno, 0 where it succeeded; all made by one child, with the filter or without."""
    done = run((CONFINE if confined else "import sys") + CALL, program, json.dumps(calls))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The profile


def test_profile_gives_no_call_two_verdicts():
    """An unconditional rule must be a call's only rule: libseccomp would let it swallow the others."""
    profile = seccomp.parse_profile(seccomp.PROFILE.read_bytes())
    rules = Counter(name for rule in profile.syscalls for name in rule.names)
    unconditional = Counter(name for rule in profile.syscalls if not rule.args for name in rule.names)
    assert {name for name in unconditional if rules[name] > 1} == set()


def test_profile_refuses_foreign_abis():
    profile = seccomp.parse_profile(seccomp.PROFILE.read_bytes())
    assert [each.sub_architectures for each in profile.arch_map] == [(), ()]


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"SCMP_ACT_ALLOW"', '"SCMP_ACT_LOG"'),
        ('"SCMP_CMP_MASKED_EQ"', '"SCMP_CMP_LIKE"'),
        ('"names"', '"includes": {"caps": ["CAP_SYS_ADMIN"]}, "names"'),
        ('"subArchitectures": []', '"subArchitectures": ["SCMP_ARCH_X86"]'),
        ("[", ""),
    ],
)
def test_profile_with_something_unknown_is_refused(was: str, becomes: str):
    text = seccomp.PROFILE.read_text().replace(was, becomes, 1)
    with pytest.raises(ValueError, match="seccomp profile"):
        seccomp.parse_profile(text.encode())


def test_missing_library_has_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(seccomp.SeccompUnavailable, match="libseccomp"):
        seccomp.compile_filter()


def test_what_is_no_program_is_not_installed():
    with pytest.raises(OSError, match=r"Invalid argument|Permission denied"):
        seccomp.install(bytes(8))


# Refusals. The arguments are ones that the kernel itself would refuse, with another errno.


def test_forbidden_calls_are_refused(program: Path):
    calls = {
        name: (syscall_number(name), *[(1 << 64) - 1] * 6) for name in FORBIDDEN if syscall_number(name) >= 0
    }
    got = dict(zip(calls, errnos(program, list(calls.values())), strict=True))
    assert {name: code for name, code in got.items() if code not in (errno.EPERM, errno.ENOSYS)} == {}
    controls = [calls[name] for name in ("ptrace", "process_vm_readv", "shmget")]
    reached = errnos(program, controls, confined=False)
    assert not {errno.EPERM, errno.ENOSYS} & set(reached)


def test_calls_that_callers_can_do_without_do_not_exist(program: Path):
    names = ["clone3", "io_uring_setup", "landlock_create_ruleset"]
    calls = [(syscall_number(name), *[(1 << 64) - 1] * 6) for name in names]
    of_the_future = (500, 0)
    assert set(errnos(program, [*calls, of_the_future])) == {errno.ENOSYS}


def test_numbers_that_mean_nothing_are_refused(program: Path):
    assert errnos(program, [(400,), (5000,)]) == [errno.EPERM] * 2


def test_clone_makes_no_namespace(program: Path):
    """CLONE_THREAD without CLONE_SIGHAND is invalid, so nothing starts in any case."""
    thread = 0x10000
    spaces = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
    calls = [
        (syscall_number("clone"), flags | thread, 0, 0, 0, 0)
        for flags in [*spaces, spaces[4] | A_HIGH_BIT, 0]
    ]
    assert errnos(program, calls) == [errno.EPERM] * 8 + [errno.EINVAL]
    assert set(errnos(program, calls, confined=False)) == {errno.EINVAL}


def test_high_bits_do_not_carry_a_terminal_request_past(program: Path):
    tiocsti, tioclinux, tiocgwinsz = 0x5412, 0x541C, 0x5413
    calls = [
        (syscall_number("ioctl"), 0, request | high, 0)
        for request in (tiocsti, tioclinux, tiocgwinsz)
        for high in (0, A_HIGH_BIT, LOW_32_BITS << 32)
    ]
    assert errnos(program, calls) == [errno.EPERM] * 6 + [errno.ENOTTY] * 3
    assert errnos(program, calls, confined=False) == [errno.ENOTTY] * 9


def test_sockets_are_of_three_families(program: Path):
    """AF_UNIX, AF_INET, AF_INET6. In numbers, because not every Python names them all."""
    calls = [(syscall_number("socket"), family, socket.SOCK_DGRAM, 0) for family in range(46)]
    pairs = [(syscall_number("socketpair"), *call[1:], 0) for call in calls]
    got = errnos(program, calls + pairs)
    assert {family for family, code in enumerate(got[:46]) if code != errno.EPERM} == {1, 2, 10}
    assert {family for family, code in enumerate(got[46:]) if code != errno.EPERM} == {1}


def test_no_socket_gets_a_buffer_of_megabytes(program: Path):
    """What a buffer holds is counted by no process. A bad descriptor: what is let through ends with EBADF."""
    sizes, usual = (7, 8, 32, 33), (2, 9, 13, 20)
    calls = [
        (syscall_number("setsockopt"), 1 << 20, level, option, 0, 4)
        for level in (1, 1 | A_HIGH_BIT)
        for option in (*sizes, sizes[0] | A_HIGH_BIT, *usual)
    ]
    assert errnos(program, calls) == ([errno.EPERM] * 5 + [errno.EBADF] * 4) * 2
    assert set(errnos(program, calls, confined=False)) == {errno.EBADF}


def test_only_the_caller_gets_other_limits_and_another_priority(program: Path):
    """Init has the guest's user. A bad pointer: what is let through does not end with EPERM."""
    nofile, bad, itself, init, nobody = 7, 1, 0, 1, (1 << 31) - 1
    refused = [
        ("prlimit64", init, nofile, bad, 0),
        ("prlimit64", init | A_HIGH_BIT, nofile, bad, 0),
        ("prlimit64", init, nofile, A_HIGH_BIT, 0),
        ("setpriority", 0, init, 0),
        ("setpriority", 1, itself, 0),
        ("setpriority", 2, itself, 0),
        ("sched_setscheduler", init, 0, bad),
        ("sched_setparam", init, bad),
    ]
    allowed = [
        ("prlimit64", itself, nofile, bad, 0),
        ("prlimit64", A_HIGH_BIT, nofile, bad, 0),
        ("prlimit64", nobody, nofile, 0, bad),  # ESRCH: reading is left to the kernel
        ("setpriority", 0, itself, 0),
        ("sched_setscheduler", itself, 0, bad),
        ("sched_setparam", itself, bad),
    ]
    calls = [(syscall_number(name), *arguments) for name, *arguments in refused + allowed]
    got = errnos(program, calls)
    assert set(got[: len(refused)]) == {errno.EPERM}
    assert errno.EPERM not in got[len(refused) :]


def test_calls_can_be_refused_besides(tmp_path: Path):
    path = tmp_path / "program"
    path.write_bytes(seccomp.compile_filter(refused=frozenset({"memfd_create"})))
    assert errnos(path, [(syscall_number("memfd_create"), 0, 1)]) == [errno.EPERM]


def test_inet_sockets_are_tcp_or_udp(program: Path):
    """Another protocol would make the kernel load a module; so no control here."""
    sctp, mptcp, icmp = 132, 262, 1
    kinds = [(1, sctp), (5, sctp), (1, mptcp), (2, icmp), (2, 136), (3, 255), (6, 0), (1, 6 | A_HIGH_BIT)]
    codes = errnos(program, [(syscall_number("socket"), socket.AF_INET, *kind) for kind in kinds])
    assert codes == [errno.EPERM] * 7 + [0]


def test_arguments_decide(program: Path):
    """Pairs of calls that differ in one flag: huge pages, the personality, the type of a node."""
    private, exclusive, hugetlb, no_randomize = 0x22, 1, 0x40000, 0x0040000
    directory = 1 << 20  # a bad descriptor: what the filter lets through ends with EBADF
    calls = {
        "mmap": (syscall_number("mmap"), 0, 4096, 3, private, (1 << 64) - 1, 0),
        "mmap huge": (syscall_number("mmap"), 0, 2 << 20, 3, private | hugetlb, (1 << 64) - 1, 0),
        "memfd": (syscall_number("memfd_create"), 0, exclusive),
        "memfd huge": (syscall_number("memfd_create"), 0, exclusive | 4),
        "ask": (syscall_number("personality"), LOW_32_BITS),
        "personality": (syscall_number("personality"), no_randomize),
        "fifo": (syscall_number("mknodat"), directory, 0, 0o010600, 0),
        "socket": (syscall_number("mknodat"), directory, 0, 0o140600, 0),
        "device": (syscall_number("mknodat"), directory, 0, 0o020600, 0x103),
    }
    got = dict(zip(calls, errnos(program, list(calls.values())), strict=True))
    refused = {"mmap huge", "memfd huge", "personality", "socket", "device"}
    assert {name for name, code in got.items() if code == errno.EPERM} == refused


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 and i386 are ABIs of x86_64")
@pytest.mark.parametrize(
    "machine_code",
    [
        pytest.param("b8 27 00 00 40 0f 05 c3", id="x32"),  # mov eax, getpid | x32 bit; syscall; ret
        pytest.param("b8 14 00 00 00 cd 80 c3", id="i386"),  # mov eax, getpid; int 0x80; ret
    ],
)
def test_a_call_of_a_foreign_abi_kills(program: Path, machine_code: str):
    code = f"""
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("{machine_code}"))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    if run("import sys" + code, program).returncode == -signal.SIGSEGV:
        pytest.skip("this kernel has no such ABI")
    assert run(CONFINE + code, program).returncode == -signal.SIGSYS


def test_programs_that_the_guest_starts_are_under_it_too(program: Path):
    code = CONFINE + 'import os; os.execvp("grep", ["grep", "Seccomp:", "/proc/self/status"])'
    assert run(code, program).stdout.split() == ["Seccomp:", "2"]


# What must work


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        pytest.param(
            """
from concurrent.futures import ThreadPoolExecutor
print(sum(ThreadPoolExecutor(8).map(abs, range(-100, 0))))
""",
            "5050",
            id="threads",
        ),
        pytest.param(
            """
import subprocess
print(subprocess.run("seq 5 | sort -r | head -1; ls -l / >/dev/null && echo listed",
    shell=True, capture_output=True, text=True, close_fds=True, start_new_session=True).stdout.split())
""",
            "['5', 'listed']",
            id="subprocess",
        ),
        *(
            pytest.param(
                f"""
import multiprocessing
context = multiprocessing.get_context("{method}")
with context.Pool(2) as pool:
    lock = context.Lock()
    with lock:
        print(pool.map(abs, [-1, -2, -3]))
""",
                "[1, 2, 3]",
                id=f"multiprocessing-{method}",
            )
            for method in ("fork", "spawn")
        ),
        pytest.param(
            """
import asyncio
async def echo(reader, writer):
    writer.write(await reader.read(5))
    writer.close()
async def main():
    child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    out, _ = await child.communicate(b"hello")
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    return out + await reader.read(5)
print(asyncio.run(main()))
""",
            "b'hellohello'",
            id="asyncio",
        ),
        pytest.param(
            """
import sqlite3
for mode in ("delete", "wal"):
    base = sqlite3.connect(f"{mode}.db", isolation_level=None)
    base.execute(f"pragma journal_mode={mode}")
    base.execute("create table t (x)")
    base.execute("insert into t values (7)")
    print(*base.execute("select x from t").fetchone(), end=" ")
""",
            "7 7",
            id="sqlite3",
        ),
        pytest.param(
            """
import mmap, os, shutil, stat, tempfile
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, 4096)
        print(len(mmap.mmap(file.fileno(), 0)))
    os.mkfifo("fifo")
    print(stat.S_ISFIFO(os.stat("fifo").st_mode))
    with open("a", "w") as file:
        file.write("text")
    shutil.copy2(shutil.copyfile("a", "b"), "c")
    print(open("c").read())
    os.chdir("/")
""",
            "4096 True text",
            id="files",
        ),
        pytest.param(
            """
import os, resource, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
signal.setitimer(signal.ITIMER_REAL, 0.001)
print(signal.sigwait([signal.SIGALRM]).name)
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.nice(0), os.setuid(os.getuid()), time.sleep(0), resource.getrlimit(resource.RLIMIT_CPU)
resource.prlimit(0, resource.RLIMIT_CORE, resource.prlimit(os.getpid(), resource.RLIMIT_CORE))
print(len(os.getrandom(4)), os.isatty(0))
""",
            "SIGALRM 4 False",
            id="processes",
        ),
    ],
)
def test_python_works(program: Path, code: str, printed: str):
    done = run(CONFINE + code, program)
    assert (done.stdout.split(), done.stderr) == (printed.split(), "")


def test_shared_memory_without_a_file_can_be_refused(program: Path, tmp_path: Path) -> None:
    """Private memory, and files that are shared, stay."""
    path = tmp_path / "program"
    path.write_bytes(seccomp.compile_filter(shared_anonymous=False))
    code = (
        "import mmap, tempfile\nfile = tempfile.TemporaryFile(); file.truncate(9)\n"
        "mmap.mmap(-1, 9, flags=mmap.MAP_PRIVATE); mmap.mmap(file.fileno(), 9)\n"
        "try: mmap.mmap(-1, 9); print('shared')\nexcept PermissionError: print('refused')"
    )
    for filter_path, says in ((path, "refused\n"), (program, "shared\n")):
        done = subprocess.run(
            [sys.executable, "-c", CONFINE + code, str(filter_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == says, done.stderr
