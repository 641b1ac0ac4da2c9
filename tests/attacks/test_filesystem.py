"""Group 1: the guest and the files of the host, of its own runtime, and of other sessions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from attacks.lab import ATTEMPT, OK, REFUSALS, Arena, assert_alive, outside, timed
from support import REPOSITORY, syscall_number

from supdist.engine import Outcome
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.engine.sandbox.context import new_memory, write_sealed

READ = """
import os, subprocess
path = {path!r}
def plain(): return open(path, "rb").read()
def by_link():
    link = os.path.join(os.environ.get("TMPDIR", "/tmp"), "link-%d" % os.getpid())
    os.symlink(path, link)
    try: return open(link, "rb").read()
    finally: os.unlink(link)
def by_root(): return open("/proc/self/root" + path, "rb").read()
def by_parent(): return open("/proc/%d/root%s" % (os.getppid(), path), "rb").read()
def by_dots(): return open("../" * 40 + path, "rb").read()
def by_child(): return subprocess.run(["cat", path], capture_output=True).stdout
way = {way}
try: print(way())
except OSError as error: print(error)
"""


@pytest.mark.parametrize("way", ["plain", "by_link", "by_root", "by_parent", "by_dots", "by_child"])
async def test_fs1_a_file_of_the_host_cannot_be_read(
    arena: Arena, tmp_path: Path, canary: str, way: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(canary)
    code = READ.format(path=str(secret), way=way)
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert canary not in result.stdout + result.stderr
    assert canary in await outside(code), "the same code reads it without walls"


async def test_fs1_neither_the_hosts_users_nor_its_code_are_there(arena: Arena) -> None:
    paths = ["/etc/shadow", "/etc/ssh", "/root", "/home", "/var", "/sys", "/boot", "/etc/hostname",
             str(REPOSITORY), str(Path.home() / ".ssh"), "/etc/machine-id", "/run/systemd",
             "/hostlib"]  # fmt: skip
    code = """
import json, os
def content(path):
    try: return sorted(os.listdir(path)) if os.path.isdir(path) else open(path).read()
    except PermissionError: return None
print(json.dumps({path: content(path) for path in PATHS if os.path.exists(path)}))
"""
    with contextlib.ExitStack() as stack:
        canaries = [
            stack.enter_context(tempfile.NamedTemporaryFile(dir=folder)).name
            for folder in ("/var/tmp", "/tmp", "/dev/shm")
        ]
        async with arena.open() as sandbox:
            result = await timed(sandbox, code.replace("PATHS", repr(paths)))
            left = await timed(sandbox, f"import os; print([p for p in {canaries} if os.path.exists(p)])")
            passwd = await timed(sandbox, "print(open('/etc/passwd').read(), end='')")
    assert left.stdout == "[]\n"
    seen: dict[str, object] = json.loads(result.stdout)
    assert set(seen) <= arena.machine.own_paths, "an image has some of its own"
    assert all(not seen[path] for path in seen.keys() - {"/etc/hostname", "/var", "/sys"})
    assert seen.get("/etc/hostname", "sandbox\n") == "sandbox\n"
    assert passwd.stdout != Path("/etc/passwd").read_text()


async def test_fs2_nothing_outside_scratch_can_be_written(arena: Arena, tmp_path: Path, canary: str) -> None:
    own = tmp_path / "host"
    own.write_text(canary)
    library = Path(os.__file__)
    unchanged = hashlib.sha256(library.read_bytes()).digest()
    code = (
        ATTEMPT
        + f"""
def write(path):
    with open(path, "ab") as file: file.write(b"x")
paths = ["/x", "/etc/x", "/usr/x", "/usr/bin/x", "/bin/x", "/opt/x", "/proc/x", os.__file__, "/usr/bin/env",
         "/etc/passwd", "/etc/ld.so.preload", {str(own)!r}, {str(library)!r}]
for path in paths:
    for action in (write, os.unlink, lambda p: os.rename(p, p + "y"), lambda p: os.chmod(p, 0o777),
                   lambda p: os.utime(p), lambda p: os.truncate(p, 0), lambda p: os.mkdir(p + "d")):
        became = attempt(action, path)
        if became not in {set(REFUSALS | {"EBUSY", "EINVAL", "ENOTDIR", "EXDEV"})}: print(path, became)
print(attempt(write, "/work/x"), attempt(os.unlink, "/work/x"))
"""
    )
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout == "did did\n", "in scratch the same calls work, elsewhere none"
    assert own.read_text() == canary
    assert hashlib.sha256(library.read_bytes()).digest() == unchanged


async def test_fs2_a_device_node_is_no_way_to_the_hosts(arena: Arena) -> None:
    devices = ("null", "zero", "full", "random", "urandom")
    code = ATTEMPT + f"print([attempt(os.chmod, '/dev/' + name, 0) for name in {devices}])"
    modes = [os.stat(f"/dev/{device}").st_mode for device in devices]
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert "did" not in result.stdout
    assert [os.stat(f"/dev/{device}").st_mode for device in devices] == modes


async def test_fs3_no_inherited_descriptor_leads_out(arena: Arena) -> None:
    code = """
import json, os, stat
seen = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        kind = stat.S_IFMT(os.fstat(int(fd)).st_mode)
    except OSError:
        continue  # listdir's own
    ways = []
    for dots in ("..", "../..", "../../.."):
        try:
            found = os.stat(f"/proc/self/fd/{fd}/{dots}")
            ways.append((found.st_dev, found.st_ino) == (os.stat("/").st_dev, os.stat("/").st_ino))
        except OSError: pass
    seen[fd] = [kind, os.readlink(f"/proc/self/fd/{fd}"), ways]
print(json.dumps(seen))
"""
    async with arena.open(context="x" * 100_000) as sandbox:
        result = await timed(sandbox, code)
    seen: dict[str, tuple[int, str, list[bool]]] = json.loads(result.stdout)
    assert {int(fd) for fd in seen} >= {0, 1, 2}
    assert len(seen) <= 6, seen
    for fd, (_, link, ways) in seen.items():
        assert link.startswith(("/dev/null", "pipe:", "socket:", "anon_inode:[eventpoll]")), (fd, link)
        assert all(ways), (fd, link)


async def test_fs4_the_root_of_every_process_is_the_guests(arena: Arena) -> None:
    code = """
import errno, os
own = {(os.stat(p).st_dev, os.stat(p).st_ino) for p in ("/", "/work")}
for pid in [p for p in os.listdir("/proc") if p.isdecimal()] + ["self", str(os.getppid())]:
    for name in ("root", "cwd", "root/..", "root/../..", "cwd/../..", "task/%s/root" % pid):
        try:
            found = os.stat(f"/proc/{pid}/{name}")
            if (found.st_dev, found.st_ino) not in own: print(pid, name, "leads elsewhere")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.ENOENT, errno.EPERM): print(pid, name, error)
print("looked")
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout == "looked\n"


async def test_fs5_files_cannot_be_opened_by_handle(arena: Arena) -> None:
    code = (
        ATTEMPT
        + f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
handle = (ctypes.c_uint32 * 34)(128)
mount = ctypes.c_int()
print(attempt(call, {syscall_number("name_to_handle_at")},
              -100, b"/", ctypes.byref(handle), ctypes.byref(mount), 0),
      attempt(call, {syscall_number("open_by_handle_at")}, -1, ctypes.byref(handle), 0))
"""
    )
    async with arena.open() as sandbox:
        name_to_handle, open_by_handle = (await timed(sandbox, code)).stdout.split()
    assert name_to_handle in ("EPERM", "ENOSYS")
    assert open_by_handle in ("EPERM", "ENOSYS")
    named, opened = (await outside(code)).split()
    assert named in ("did", "EOPNOTSUPP"), "without walls the kernel hands out a handle"
    assert os.geteuid() != 0 or opened == "EBADF"


POISONED = ("sitecustomize.py", "usercustomize.py", "poison.pth", ".pythonrc.py", "json.py")


async def test_fs6_a_poisoned_runtime_is_not_the_next_sessions(arena: Arena, tmp_path: Path) -> None:
    plant = f"""
import builtins, os, site, sys
os.environ.update(PYTHONPATH="/work", PYTHONSTARTUP="/work/.pythonrc.py", PYTHONHOME="/work")
builtins.POISON = sys.POISON = True
for folder in ("/work", "/tmp", "/dev/shm", *site.getsitepackages(), os.path.dirname(os.__file__)):
    for name in {POISONED}:
        try:
            with open(os.path.join(folder, name), "w") as file: file.write("print('POISON', flush=True)")
        except OSError: pass
"""
    look = """
import builtins, os, sys
print([d for d in ("/work", "/tmp", "/dev/shm") if os.listdir(d)],
      hasattr(builtins, "POISON"), hasattr(sys, "POISON"),
      {n: value for n, value in os.environ.items() if n.startswith("PYTHON")})
"""
    async with arena.open() as sandbox:
        await timed(sandbox, plant)
        same = await timed(sandbox, "print('own')")
        await sandbox.reset()
        after = await timed(sandbox, look)
    async with arena.open() as sandbox:
        other = await timed(sandbox, look)
    assert same.stdout == "own\n"
    assert after.stdout == other.stdout
    assert after.stdout.startswith("[] False False {")
    assert "/work" not in after.stdout, "the sandbox's own variables, and none of the cell's"
    (tmp_path / "sitecustomize.py").write_text("print('POISON', flush=True)")
    assert "POISON" in await outside("", PYTHONPATH=str(tmp_path)), (
        "it would have run in an interpreter that looks"
    )


async def test_fs7_a_shadowed_library_does_not_reach_the_runtime(arena: Arena, tmp_path: Path) -> None:
    shadows = ("json", "zmq", "random", "msgspec", "pickle", "traceback", "linecache", "socket", "supdist")
    plant = f"""
import os, sys
for name in {shadows}:
    with open(name + ".py", "w") as file: file.write("raise RuntimeError('SHADOW')")
sys.path.insert(0, os.getcwd())
"""
    asked: list[str] = []

    async def answer(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=answer) as sandbox:
        await timed(sandbox, plant)
        result = await timed(sandbox, "print(worker('x')); FINAL({'a': [1]})")
        failed = await timed(sandbox, "1 / 0")
    assert (result.outcome, result.stdout, result.final) == (OK, "answer\n", '{"a": [1]}')
    assert asked == ["x"]
    assert failed.error is not None
    assert failed.error.type == "ZeroDivisionError"
    (tmp_path / "random.py").write_text("print('SHADOW')")
    assert "SHADOW" in await outside(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import random")


async def test_fs8_planted_programs_are_not_run_by_the_host(arena: Arena) -> None:
    plant = """
import os, subprocess
os.mkdir("/work/bin")
for name in ("timeout", "ps", "tar", "python3", "kill", "sh", "mount"):
    with open("/work/bin/" + name, "w") as file: file.write("#!/bin/sh\\ntouch /work/RAN\\n")
    os.chmod("/work/bin/" + name, 0o755)
os.environ["PATH"] = "/work/bin:" + os.environ["PATH"]
subprocess.run(["timeout", "1", "true"])
print(os.path.exists("/work/RAN"))
os.unlink("/work/RAN")
"""
    async with arena.open() as sandbox:
        planted = await timed(sandbox, plant)
        endless = await timed(sandbox, "while True: pass", timeout=0.3)
        await sandbox.interrupt()
        after = await timed(sandbox, "print(os.path.exists('/work/RAN'))")
    assert planted.stdout == "True\n", "where the guest itself looks for it, it runs"
    assert endless.outcome is Outcome.TIMEOUT
    assert after.stdout == "False\n"


@pytest.mark.timing  # free space is the whole machine's
async def test_fs9_the_disk_cannot_be_filled(arena: Arena, tmp_path: Path) -> None:
    code = """
import errno, os
written, number, piece = 0, 0, b"x" * (1 << 20)
try:
    while written < 1 << 30:
        number += 1
        for folder in ("/work", "/tmp", "/dev/shm"):
            with open(f"{folder}/{number}", "wb", buffering=0) as file:
                for _ in range(4): written += file.write(piece)
except OSError as error: print(errno.errorcode[error.errno], written >> 20)
"""
    free = [os.statvfs(path).f_bfree * os.statvfs(path).f_bsize for path in ("/", tmp_path, "/dev/shm")]
    async with arena.open() as sandbox:
        result = await timed(sandbox, code, timeout=5)
        now = [os.statvfs(path).f_bfree * os.statvfs(path).f_bsize for path in ("/", tmp_path, "/dev/shm")]
        await assert_alive(sandbox)
    word, mebibytes = result.stdout.split()
    assert word == "ENOSPC"
    assert 32 <= int(mebibytes) <= 64
    assert all(then - later < 32 << 20 for then, later in zip(free, now, strict=True))


@pytest.mark.timing  # free inodes are the whole machine's
async def test_fs10_inodes_cannot_be_used_up(arena: Arena) -> None:
    code = """
import errno, os
made, words = 0, set()
for folder in ("/work", "/tmp", "/dev/shm"):
    try:
        while made < 1_000_000:
            os.close(os.open(f"{folder}/{made}", os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error: words.add(errno.errorcode[error.errno])
print(*words, made)
"""
    free = os.statvfs("/dev/shm").f_ffree
    async with arena.open(scratch_files=2000) as sandbox:
        result = await timed(sandbox, code)
        assert free - os.statvfs("/dev/shm").f_ffree < 1000
        await assert_alive(sandbox)
    word, made = result.stdout.split()
    assert word == "ENOSPC"
    assert 1500 < int(made) < 2000


TREES = [
    ("deep", "import os\nfor _ in range(6_000): os.mkdir('d'); os.chdir('d')"),
    ("wide", "for i in range(20_000): open(f'/work/{i}', 'w').close()"),
    ("long", "import os\nfor i in range(3_000): os.mkdir('/work/' + str(i).rjust(255, 'n'))"),
]


@pytest.mark.timing
@pytest.mark.parametrize("code", [code for _, code in TREES], ids=[word for word, _ in TREES])
async def test_fs12_a_monstrous_tree_is_torn_down_in_time(arena: Arena, code: str) -> None:
    arena.most_seconds *= arena.machine.slowness
    async with arena.open(scratch_files=50_000) as sandbox:
        slowness = arena.machine.slowness
        result = await timed(sandbox, code, timeout=8 * slowness, within=9 * slowness)
        assert result.outcome is OK, result
        started = time.monotonic()
        await sandbox.close()
        assert time.monotonic() - started < 2 + arena.machine.start_seconds


async def test_fs14_no_hard_link_reaches_a_protected_file(arena: Arena) -> None:
    code = (
        ATTEMPT
        + """
sources = ["/etc/passwd", "/usr/bin/env", os.__file__, "/dev/null", "/proc/self/exe", "/proc/self/fd/0"]
print([attempt(os.link, path, f"/work/{n}", follow_symlinks=True) for n, path in enumerate(sources)])
open("/work/own", "w").close()
print(attempt(os.link, "/work/own", "/work/second"))
"""
    )
    async with arena.open() as sandbox:
        refused, own = (await timed(sandbox, code)).stdout.splitlines()
    assert set(json.loads(refused.replace("'", '"'))) <= REFUSALS | {"EXDEV"}
    assert own == "did"


async def test_fs16_a_context_cannot_be_changed_for_others(arena: Arena) -> None:
    context = "the same for all " * 10_000
    wanted = hashlib.sha256(context.encode()).hexdigest()
    attack = (
        ATTEMPT
        + """
def overwrite(path):
    with open(path, "r+b") as file: file.write(b"EVIL")
for pid in [p for p in os.listdir("/proc") if p.isdecimal()]:
    for folder in ("fd", "map_files"):
        try: names = os.listdir(f"/proc/{pid}/{folder}")
        except OSError: continue
        for name in names:
            path = f"/proc/{pid}/{folder}/{name}"
            try:
                if "memfd" in os.readlink(path): print(attempt(overwrite, path))
            except OSError: pass
context = "EVIL" + context
"""
    )
    check = "import hashlib; print(hashlib.sha256(context.encode()).hexdigest())"
    async with arena.open(context=context) as first, arena.open(context=context) as second:
        result = await timed(first, attack)
        assert "did" not in result.stdout
        assert (await timed(second, check)).stdout.strip() == wanted
        async with arena.open(context=context) as third:
            assert (await timed(third, check)).stdout.strip() == wanted
    sealed, unsealed = new_memory(), os.memfd_create("unsealed")
    write_sealed(sealed, "same")
    os.write(unsealed, b"same")
    try:
        for fd, allowed in ((sealed, False), (unsealed, True)):
            try:
                with open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as file:
                    file.write(b"EVIL")
            except OSError:
                assert not allowed
            assert (os.pread(fd, 4, 0) == b"EVIL") is allowed
    finally:
        os.close(sealed)
        os.close(unsealed)
