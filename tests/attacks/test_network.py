"""Group 3: the network. Every address here is this machine's own; nothing is sent anywhere else."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from attacks.lab import ATTEMPT, RAW, Arena, Listener, assert_alive, outside, settled, timed
from process_support import processes_named

from supdist.engine.jail import rootfs

DIAL = """
import socket, time
family, kind, address = {family}, {kind}, {address!r}
started = time.monotonic()
try:
    sock = socket.socket(family, kind)
    sock.settimeout(3)
    sock.connect(address)
    sock.send(b"x")
    print("did", flush=True)
except OSError as error: print("refused", error)
print(time.monotonic() - started < 1)
"""


@contextlib.contextmanager
def listening(family: int, address: object, kind: int = socket.SOCK_STREAM) -> Generator[Listener]:
    listener = Listener(family, address, kind)
    try:
        yield listener
    finally:
        listener.close()


async def dial(arena: Arena, listener: Listener, family: int, kind: int = socket.SOCK_STREAM) -> None:
    """The guest's call must not arrive, and must fail at once; the same call from outside arrives."""
    code = DIAL.format(family=family, kind=int(kind), address=listener.address)
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout.endswith("True\n"), result
    assert listener.count() == 0
    assert (await outside(code)).startswith("did")
    assert listener.count() == 1


@pytest.mark.parametrize("row", ["NW1", "NW2", "NW4"])
async def test_there_is_no_interface_and_no_route(arena: Arena, row: str) -> None:
    """What has neither reaches no address at all: no foreign one, no metadata service, no gateway."""
    code = """
import socket
lines = open("/proc/self/net/dev").read().splitlines()[2:]
print([line.split(":")[0].strip() for line in lines if "lo:" not in line])
print(open("/proc/self/net/route").read().splitlines()[1:])
routes = "/proc/self/net/ipv6_route"
found = open(routes) if __import__("os").path.exists(routes) else []
print([line for line in found if not line.split()[-1] == "lo"])
names = []
for name in ("host.docker.internal", "metadata", "gateway.docker.internal"):
    try: names.append(socket.getaddrinfo(name, 80))
    except OSError: pass
print(names)
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert result.stdout == "[]\n" * 4, row


async def test_nw1_tcp_to_the_host_fails_at_once(arena: Arena) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        await dial(arena, listener, socket.AF_INET)


async def test_nw1_udp_to_the_host_never_arrives(arena: Arena) -> None:
    with listening(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM) as listener:
        await dial(arena, listener, socket.AF_INET, socket.SOCK_DGRAM)


async def test_nw3_the_hosts_loopback_of_ipv6_is_another(arena: Arena) -> None:
    with listening(socket.AF_INET6, ("::1", 0)) as listener:
        await dial(arena, listener, socket.AF_INET6)


async def test_nw3_no_port_of_the_hosts_loopback_answers(arena: Arena) -> None:
    """Listeners of this test at thirty ports, and the first thousand besides."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listening(socket.AF_INET, ("127.0.0.1", 0))) for _ in range(30)]
        ports = [listener.address[1] for listener in listeners]
        code = f"""
import socket
open_ports = []
for port in {ports} + list(range(1, 1000)):
    for address in ("127.0.0.1", "0.0.0.0", "localhost"):
        with socket.socket() as sock:
            sock.settimeout(0.2)
            try: sock.connect((address, port)); open_ports.append(port)
            except OSError: pass
print(open_ports)
"""
        async with arena.open() as sandbox:
            slowness = arena.machine.slowness
            result = await timed(sandbox, code, timeout=2 * slowness, within=4 * slowness)
        assert result.stdout == "[]\n"
        assert [listener.count() for listener in listeners] == [0] * 30


async def test_nw5_an_abstract_socket_of_the_host_is_out_of_reach(arena: Arena) -> None:
    with listening(socket.AF_UNIX, b"\0canary" + secrets.token_hex(8).encode()) as listener:
        await dial(arena, listener, socket.AF_UNIX)


KNOCK = """
import os, socket, stat
tried = 0
folders = ["/"]
while folders:
    try: entries = list(os.scandir(folders.pop()))
    except OSError: continue
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.path != "/proc": folders.append(entry.path)
        elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
            if not stat.S_ISSOCK(entry.stat().st_mode): continue
            tried += 1
            try:
                with socket.socket(socket.AF_UNIX) as sock: sock.connect(entry.path)
            except OSError: pass
for path in {paths!r}:
    try:
        with socket.socket(socket.AF_UNIX) as sock: sock.connect(path)
    except OSError: pass
print(tried)
"""


async def test_nw6_no_socket_file_of_the_host_answers(arena: Arena) -> None:
    """One in every folder of the host that a sandbox sees, as far as this user may put one there."""
    plan = rootfs.find_layout()
    folders = {
        source: target
        for source, target in plan["binds"]
        if Path(source).is_dir() and os.access(source, os.W_OK)
    }
    word = f"canary-{secrets.token_hex(4)}.sock"
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
        folders[short] = short
        listeners: list[Listener] = []
        for source in folders:
            listeners.append(stack.enter_context(listening(socket.AF_UNIX, f"{source}/{word}")))
            stack.callback(os.unlink, f"{source}/{word}")
        code = KNOCK.format(paths=[f"{target}/{word}" for target in folders.values()])
        async with arena.open() as sandbox:
            result = await timed(sandbox, code, timeout=8, within=10)
        assert result.stdout.strip().isdecimal(), result
        assert [listener.count() for listener in listeners] == [0] * len(listeners)
        control = DIAL.format(family=socket.AF_UNIX, kind=1, address=listeners[-1].address)
        assert (await outside(control)).startswith("did")
        assert listeners[-1].count() == 1


async def test_nw7_there_is_no_way_to_a_hypervisor(arena: Arena) -> None:
    code = ATTEMPT + "import socket\nfor kind in (1, 2, 5): print(attempt(socket.socket, 40, kind))"
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
    assert set(result.stdout.split()) <= {"EPERM", "EAFNOSUPPORT", "EACCES"}
    # ENODEV, ESOCKTNOSUPPORT: the kernel's own words for a type that it has no transport for.
    assert "EPERM" not in await outside(code), "without the filter the kernel's own answer comes"


FAMILIES = (
    ATTEMPT
    + """
import socket
opened = set()
for family in range(46):
    for kind in (1, 2, 3, 5, 10, 1 | socket.SOCK_CLOEXEC, 3 | socket.SOCK_NONBLOCK):
        for protocol in (0, 1, 255):
            if attempt(lambda: socket.socket(family, kind, protocol).close()) == "did":
                opened.add((family, kind & 15))
print(sorted(opened))
"""
)


async def test_nw9_only_harmless_families_of_sockets_open(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, FAMILIES)
    # Only the guest can see this: which sockets it was given.
    families = {1: (1, 2, 5), 2: (1, 2), 10: (1, 2)}
    allowed = {(family, kind) for family, kinds in families.items() for kind in (*kinds, 3)}
    opened = {(int(family), int(kind)) for family, kind in re.findall(r"\((\d+), (\d+)\)", result.stdout)}
    assert opened <= allowed - {(2, 3), (10, 3)}, opened
    assert (1, 1) in opened
    control = await outside(FAMILIES)
    assert "(16, 3)" in control, "netlink opens without walls"


async def test_nw8_no_name_is_resolved(arena: Arena) -> None:
    code = """
import socket, time
started = time.monotonic()
try: print(socket.getaddrinfo("canary.invalid", 80))
except OSError as error: print("refused")
print(time.monotonic() - started < 1)
"""
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
        local = await timed(sandbox, "import socket; print(socket.gethostbyname('localhost'))")
    assert result.stdout == "refused\nTrue\n"
    assert local.stdout == "127.0.0.1\n", "what needs no server is resolved"


async def test_nw10_descriptors_do_not_pass_the_session(arena: Arena) -> None:
    code = (
        RAW
        + """
import array, errno, socket
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", held))]
here, there = socket.socketpair()
here.sendmsg([b"x"], rights)
print(len(there.recvmsg(1, 4096)[1][0][2]) // 4)
for number in range(50):
    data = protocol.frame(protocol.encode(protocol.Final(cell - 1, "late")))
    while True:
        try: channel._sock.sendmsg([data], rights); break
        except OSError as error:
            # Since Linux 6.16 the shim can refuse them.
            if error.errno == errno.EPERM: channel._sock.sendall(data); break
            if error.errno != errno.ETOOMANYREFS: raise  # more in flight than this process may have open
"""
    )
    async with arena.open() as sandbox:
        await timed(sandbox, "1")
        await settled(arena.machine)  # the next sandbox is being built meanwhile
        held = {
            pid: psutil.Process(pid).num_fds()
            for pid in processes_named("supdist-shim")
            if psutil.pid_exists(pid)
        }
        result = await timed(sandbox, code)
        # One message's would be a hundred; a shim whose sandbox is still being built opens some of its own.
        assert all(
            psutil.Process(pid).num_fds() < count + 50
            for pid, count in held.items()
            if psutil.pid_exists(pid)
        )
        await assert_alive(sandbox)
    assert result.stdout == "100\n", "within the guest they pass"
    assert result.dropped == 50, "the frames beside them were read"


async def test_nw10_descriptors_in_flight_of_one_do_not_stop_another(arena: Arena) -> None:
    """The kernel counts them by uid, which sandboxes of an ordinary user share."""
    code = """
import array, errno, os, socket
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
pairs, sent = [], 0
try:
    while True:
        pairs.append(socket.socketpair())
        for _ in range(20):
            pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", held))])
            sent += len(held)
except OSError as error: print(errno.errorcode[error.errno], sent)
"""
    async with arena.open() as one, arena.open() as other:
        word, sent = (await timed(one, code)).stdout.split()
        assert (word, int(sent) > 100) == ("ETOOMANYREFS", True)
        await assert_alive(other)
        async with arena.open() as third:
            await assert_alive(third)


async def test_nw11_two_sandboxes_do_not_meet(arena: Arena) -> None:
    listen = """
import socket
sockets = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket()]
for sock, address in zip(sockets, (b"\\0meet", "/tmp/meet", ("0.0.0.0", 5555))):
    sock.settimeout(0.1)
    try: sock.bind(address); sock.listen()
    except OSError: pass  # some kinds cannot be had at all
def met():
    count = 0
    for sock in sockets:
        try: sock.accept(); count += 1
        except OSError: pass
    return count
"""
    knock = """
import socket
for family, address in ((1, b"\\0meet"), (1, "/tmp/meet"), (2, ("127.0.0.1", 5555)), (2, ("0.0.0.0", 5555))):
    sock = socket.socket(family)
    sock.settimeout(0.2)
    try: sock.connect(address)
    except OSError: pass
"""
    async with arena.open() as one, arena.open() as other:
        await timed(one, listen)
        await timed(other, knock)
        assert (await timed(one, "print(met())")).stdout == "0\n"
        await timed(one, knock)
        assert int((await timed(one, "print(met())")).stdout) >= 1, "among themselves they do"


async def test_pm1_installing_a_package_fails_cleanly(arena: Arena) -> None:
    code = """
import subprocess, sys
pip = [sys.executable or "python3", "-m", "pip", "install", "--retries", "0", "--timeout", "1", "idna"]
done = subprocess.run(pip,
                      capture_output=True, text=True)
print(done.returncode != 0)
"""
    async with arena.open(timeout=8.0, memory="512MiB") as sandbox:
        result = await timed(sandbox, code, timeout=8, within=9)
        await assert_alive(sandbox)
    assert result.stdout == "True\n" or result.error is not None
