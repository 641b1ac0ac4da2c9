"""Group 14: files in and out. The host names a file; the guest has put something else there."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from attacks.lab import Arena, assert_alive, timed

from supdist.engine import Sandbox, SandboxError, SandboxFileError


async def refused(sandbox: Sandbox, path: str, *codes: str, most: int = 1 << 20) -> None:
    """``get`` must fail with one of these codes, at once."""
    started = time.monotonic()
    with pytest.raises(SandboxFileError) as caught:
        await sandbox.get(path, max_bytes=most)
    assert caught.value.code in codes, caught.value.code
    assert isinstance(caught.value, SandboxError)
    assert time.monotonic() - started < 1


async def test_ft1_what_is_there_and_regular_comes_and_goes(arena: Arena) -> None:
    """The control of this group."""
    data = bytes(range(256)) * 5000
    async with arena.open() as sandbox:
        await sandbox.put("in.bin", data)
        await sandbox.put("deep/er/in.txt", b"text")
        result = await timed(sandbox, "open('out.bin', 'wb').write(open('/work/in.bin', 'rb').read()[::-1])")
        assert result.error is None
        assert await sandbox.get("out.bin") == data[::-1]
        assert await sandbox.get("deep/er/in.txt") == b"text"
        await refused(sandbox, "absent", "not_found")
        await refused(sandbox, "out.bin", "too_large", most=1000)


LINKS = [
    "/etc/hostname",
    "/etc/passwd",
    "/proc/self/environ",
    "/proc/1/environ",
    "/dev/zero",
    "plain",
    "/work/plain",
    "../etc/passwd",
]


@pytest.mark.parametrize("target", LINKS, ids=lambda target: f"FT1-{target}")
async def test_a_link_is_not_followed(arena: Arena, target: str, canary: str) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, f"import os; open('plain', 'w').write('x'); os.symlink({target!r}, 'link')")
        await refused(sandbox, "link", "not_regular")
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.put("link", canary.encode())
        assert caught.value.code == "not_regular"
        assert (await timed(sandbox, "print(open('plain').read())")).stdout == "x\n"


async def test_ft2_no_folder_on_the_way_may_be_a_link(arena: Arena) -> None:
    code = (
        "import os; os.mkdir('d'); open('d/f', 'w').write('x'); os.symlink('/etc', 'etc');"
        " os.symlink('d', 'same'); os.symlink('/', 'd/up')"
    )
    async with arena.open() as sandbox:
        await timed(sandbox, code)
        for path in ("etc/passwd", "same/f", "d/up/etc/passwd"):
            await refused(sandbox, path, "not_regular", "outside")
            with pytest.raises(SandboxFileError):
                await sandbox.put(path, b"x")
        for path in ("../etc/passwd", "d/../../etc/passwd", "/etc/passwd", "d/../d/f", "..", "/", ".", ""):
            await refused(sandbox, path, "outside", "not_regular")
        assert await sandbox.get("d/f") == b"x"


async def test_ft3_a_file_that_is_swapped_meanwhile_is_one_or_refused(arena: Arena) -> None:
    race = """
import os, threading
open("real", "w").write("real")
stop = False
def swap():
    turn = 0
    while not stop:
        turn += 1
        os.symlink("/etc/passwd", "other") if turn % 2 else open("other", "w").write("real")
        os.replace("other", "file")
threading.Thread(target=swap, daemon=True).start()
"""
    contents, codes = set[bytes](), set[str]()
    async with arena.open() as sandbox:
        await timed(sandbox, race)
        for _ in range(150):
            try:
                contents.add(await sandbox.get("file"))
            except SandboxFileError as error:
                codes.add(error.code)
        await assert_alive(sandbox)
    assert contents <= {b"real", b""}
    assert codes <= {"not_regular", "not_found", "io"}


SPECIAL = {
    "FT4-fifo": "os.mkfifo('file')",
    "FT4-folder": "os.mkdir('file')",
    "FT4-socket": "import socket; socket.socket(socket.AF_UNIX).bind('file')",
}


@pytest.mark.parametrize("kind", SPECIAL)
async def test_what_is_no_regular_file_is_refused_at_once(arena: Arena, kind: str) -> None:
    async with arena.open() as sandbox:
        made = await timed(sandbox, "import os\n" + SPECIAL[kind])
        if made.error is None:
            await refused(sandbox, "file", "not_regular")
            with pytest.raises(SandboxFileError):
                async with asyncio.timeout(2):
                    await sandbox.put("file", b"x")
        else:  # the filter makes no socket files
            assert kind == "FT4-socket"
        await assert_alive(sandbox)


async def test_ft5_what_grows_while_it_is_read_is_cut(arena: Arena) -> None:
    grow = """
import threading
def grow():
    with open("log", "ab", buffering=0) as file:
        try:
            while True: file.write(b"x" * 65536)
        except OSError: pass
threading.Thread(target=grow, daemon=True).start()
"""
    async with arena.open() as sandbox:
        await timed(sandbox, grow)
        await asyncio.sleep(0.05)
        await refused(sandbox, "log", "too_large", most=100_000)
        await refused(sandbox, "/proc/self/environ", "outside")


async def test_ft6_a_sparse_terabyte_is_refused_by_its_size(arena: Arena) -> None:
    arena.most_growth = 32 << 20
    code = """
import errno
for size in (1 << 40, 60 << 20):
    try: open("sparse", "w").truncate(size); print(size); break
    except OSError: pass
"""
    async with arena.open() as sandbox:
        await timed(sandbox, code)
        await refused(sandbox, "sparse", "too_large")


async def test_ft7_a_hard_link_reaches_only_the_guests_own(arena: Arena) -> None:
    code = """
import os
linked = []
for path in ("/etc/passwd", "/usr/bin/env", "/proc/self/environ"):
    try: os.link(path, "/work/link"); linked.append(path)
    except OSError: pass
print(linked)
"""
    async with arena.open() as sandbox:
        assert (await timed(sandbox, code)).stdout == "[]\n"
        await refused(sandbox, "link", "not_found")


NAMES = [
    "new\nline", "\x1b]52;c;eA==\x07", "\u202egnp.exe", "-rf", "CON", "a" * 255, "sp ace", "%s{0}", "é", "~",
    "*", "\x01\x7f", "\\", "'\"",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NAMES)), ids=lambda number: f"FT10-{number}")
async def test_a_name_is_only_a_name(arena: Arena, number: int, tmp_path: Path) -> None:
    name = NAMES[number]
    before = sorted(Path.cwd().iterdir())
    async with arena.open() as sandbox:
        await sandbox.put(name, b"x")
        seen = await timed(sandbox, "import os; print(ascii(os.listdir('/work')))")
        assert seen.stdout == f"{[name]!a}\n"
        assert await sandbox.get(name) == b"x"
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize(
    "name",
    ["a\0b", "x" * 256, "d/" * 2100 + "f", "\ud800"],
    ids=["FT10-nul", "FT10-long", "FT10-deep", "FT10-surrogate"],
)
async def test_a_name_that_no_file_can_have_is_an_error(arena: Arena, name: str) -> None:
    async with arena.open() as sandbox:
        for use in (sandbox.get(name), sandbox.put(name, b"x")):
            with pytest.raises((SandboxFileError, ValueError)):
                await use
        await assert_alive(sandbox)


async def test_ft12_the_host_never_writes_through_a_guests_link(
    arena: Arena, tmp_path: Path, canary: str
) -> None:
    own = tmp_path / "own"
    own.write_text(canary)
    async with arena.open() as sandbox:
        await sandbox.put("context.txt", b"first")
        await timed(sandbox, f"import os; os.unlink('context.txt'); os.symlink({str(own)!r}, 'context.txt')")
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.put("context.txt", b"overwritten")
        assert caught.value.code == "not_regular"
    assert own.read_text() == canary


async def test_ft9_more_than_scratch_holds_is_an_error_and_no_crash(arena: Arena) -> None:
    async with arena.open(scratch="1MiB") as sandbox:
        with pytest.raises(SandboxFileError) as caught:
            await sandbox.put("large", bytes(4 << 20))
        assert caught.value.code == "no_room", "it is not sent at all"

        async def fill() -> None:
            for number in range(5):
                await sandbox.put(f"part {number}", bytes(300_000))

        # The engine cannot know what is there already.
        with pytest.raises(SandboxFileError) as caught:
            await fill()
        assert caught.value.code in ("io", "too_large")
        await assert_alive(sandbox)


async def test_ft5_a_guest_that_answers_for_init_is_still_bounded(arena: Arena) -> None:
    """The repl sends frames of file data that nobody asked for."""
    from attacks.lab import RAW

    from supdist.engine import Outcome

    async with arena.open() as sandbox:
        result = await timed(
            sandbox, RAW + "send(26, 1, b'forged', None)\nimport time; time.sleep(60)", timeout=1
        )
    assert result.outcome in (Outcome.PROTOCOL_VIOLATION, Outcome.TIMEOUT), result
