"""What was paid for is found again, by any process, and no kill loses or spoils it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine import CacheError
from supdist.engine.broker.cache import ResponseCache, cache_key, long_cache_key
from supdist.engine.slices import finish
from supdist.handlers import Completion, FinishReason, Message, Usage

pytestmark = pytest.mark.anyio

KEY, OTHER = bytes(32), bytes([1] * 32)
ASKED: list[Message] = [{"role": "user", "content": "x"}]


def answer(text: str = "yes", **more: Any) -> Completion:
    return Completion(text, Usage(10, 2, 1), **more)


@pytest.fixture(params=["memory", "file"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ResponseCache:
    return ResponseCache(None if request.param == "memory" else tmp_path / "deep" / "down" / "answers.sqlite")


async def test_an_answer_is_given_back_as_it_was_but_for_how_long_it_took(cache: ResponseCache) -> None:
    given = answer("\ud800 \x00 é", finish_reason="length", reasoning="because", retries=3, queued=1.5)
    async with cache:
        assert await cache.get(KEY) is None
        await cache.put(KEY, given)
        assert await cache.get(KEY) == answer("\ud800 \x00 é", finish_reason="length", reasoning="because")
        assert await cache.get(OTHER) is None


async def test_many_are_put_and_got_at_once(cache: ResponseCache) -> None:
    answers = {bytes([number] * 32): answer(str(number)) for number in range(100)}
    async with cache:
        await cache.put_many(answers)
        assert await cache.get_many([*answers, b"no such key"]) == answers
        assert await cache.get_many([]) == {}


async def test_the_first_answer_stays(cache: ResponseCache) -> None:
    async with cache:
        await cache.put(KEY, answer("first"))
        await cache.put(KEY, answer("second"))
        assert await cache.get(KEY) == answer("first")


@pytest.mark.parametrize(("reason", "kept"), [("stop", 1), ("length", 1), ("refusal", 0), ("other", 0)])
async def test_refusals_and_odd_ends_are_not_kept(
    cache: ResponseCache, reason: FinishReason, kept: int
) -> None:
    async with cache:
        await cache.put(KEY, answer(finish_reason=reason))
        assert len(await cache.get_many([KEY])) == kept


async def test_a_cache_is_used_while_it_is_open_and_opened_once(cache: ResponseCache) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="async with"):
            await cache.get(KEY)
        async with cache:
            with pytest.raises(RuntimeError, match="is open"):
                await cache.__aenter__()
            await cache.put(KEY, answer())


async def test_a_file_keeps_and_a_memory_forgets(tmp_path: Path) -> None:
    for path, found in ((tmp_path / "answers", answer()), (None, None)):
        async with ResponseCache(path) as cache:
            await cache.put(KEY, answer())
        async with ResponseCache(path) as cache:
            assert await cache.get(KEY) == found


async def test_after_the_end_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    async with ResponseCache(path) as cache:
        await cache.put(KEY, answer())
        assert len(threads()) == 1
    all_threads_end()
    assert [file.name for file in tmp_path.iterdir()] == ["answers"]
    assert not any(str(path) in link for link in open_files())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("response-cache")]


def all_threads_end() -> None:
    for thread in threads():
        thread.join(5)
    assert threads() == []


def open_files() -> list[str]:
    links: list[str] = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return links


async def test_cancelling_an_opening_at_any_moment_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "answers"

    async def use() -> None:
        async with ResponseCache(path) as cache:
            await cache.put(KEY, answer())

    for turn in range(20):
        task = asyncio.create_task(use())
        await asyncio.sleep(turn * 0.0003)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    all_threads_end()
    assert not any(str(path) in link for link in open_files())


async def test_an_end_that_is_cancelled_behind_a_write_closes_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    cache = await ResponseCache(path).__aenter__()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(cache.put(KEY, answer()))
        ending = asyncio.create_task(cache.__aexit__(None, None, None))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    await writing
    all_threads_end()
    assert not any(str(path) in link for link in open_files())


# Keys


@given(st.data())
def test_a_key_depends_on_everything_that_was_asked_and_on_nothing_else(data: st.DataObject) -> None:
    asked = st.tuples(
        st.dictionaries(st.sampled_from("ab"), st.integers(0, 1) | st.text(max_size=2), max_size=2),
        st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "system"]), "content": st.text('a"\\, \ud800', max_size=2)}
            ),
            max_size=2,
        ),
        st.integers(0, 1),
    )
    one: Any = data.draw(asked)
    two: Any = data.draw(st.just(one) | asked)
    assert (cache_key(*one) == cache_key(*two)) == (one == two)


@given(
    st.dictionaries(st.text("ab", max_size=2), st.integers() | st.text(max_size=3), max_size=3),
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "system"]),
                "content": st.text('a"\\\x01\u20ac\ud800\U0001f600'),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 2),
)
def test_the_key_of_long_messages_is_made_in_slices_and_the_same(
    identity: dict[str, Any], messages: list[Any], sample: int
) -> None:
    patch = pytest.MonkeyPatch()
    with patch.context() as small:
        small.setattr("supdist.engine.slices.SLICE", 3)
        key = finish(long_cache_key(identity, messages, sample))
    assert key == cache_key(identity, messages, sample)


def test_the_order_of_an_identitys_fields_does_not_matter() -> None:
    one, two = cache_key({"a": 1, "b": 2}, ASKED), cache_key({"b": 2, "a": 1}, ASKED)
    assert one == two
    assert len(one) == 32


@pytest.mark.parametrize("identity", [{"a": float("nan")}, {"a": object()}, {"a": b""}])
def test_an_identity_that_is_no_json_is_refused(identity: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        cache_key(identity, ASKED)


def test_keys_do_not_change_between_versions_without_notice() -> None:
    """A changed key forgets every answer; raise ``_KEY_VERSION`` where that is meant."""
    key = cache_key({"model": "m", "temperature": 0.2}, [{"role": "user", "content": "é\ud800"}], 1)
    content = r'[1,{"model":"m","temperature":0.2},[{"content":"\u00e9\ud800","role":"user"}],1]'
    assert key == hashlib.sha256(content.encode()).digest()


# Files that cannot be used


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE precious (content)")


def numbered(path: Path) -> None:
    """Another program's too, with nothing in it yet."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 7")


def text(path: Path) -> None:
    path.write_text("no database\n" * 1000)


async def make(path: Path, count: int) -> None:
    async with ResponseCache(path) as cache:
        await cache.put_many({bytes([n] * 32): answer("x" * 1000) for n in range(count)})


def newer(path: Path) -> None:
    asyncio.run(make(path, 1))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (foreign, "another program's"),
        (numbered, "another program's"),
        (text, "no SQLite database"),
        (newer, "its schema version is 2"),
        (Path.mkdir, "cannot be opened"),
    ],
)
def test_a_file_that_is_not_ours_is_left_as_it_is(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "answers"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None

    async def use() -> None:
        with pytest.raises(CacheError, match=message):
            await ResponseCache(path).__aenter__()

    asyncio.run(use())
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [file.name for file in tmp_path.iterdir()] == ["answers"]


async def test_a_damaged_file_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    await make(path, 100)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(CacheError, match="damaged"):
        async with ResponseCache(path) as cache:
            await cache.get(KEY)


@pytest.mark.parametrize("row", ["", "7", '{"text": 5}', '{"usage": {}}', b"\xff", None, 5])
async def test_an_answer_that_is_none_is_damage(row: object, tmp_path: Path) -> None:
    path = tmp_path / "answers"
    await make(path, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE other (key BLOB PRIMARY KEY, answer)")
        connection.execute("INSERT INTO other VALUES (?, ?)", (KEY, row))
        connection.execute("DROP TABLE answers")
        connection.execute("ALTER TABLE other RENAME TO answers")
    with pytest.raises(CacheError, match="damaged"):
        async with ResponseCache(path) as cache:
            await cache.get(KEY)


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file/answers: .*choose another path"):
        await ResponseCache(tmp_path / "file" / "answers").__aenter__()


PROGRAM = """
import asyncio, os, resource, sys
from supdist.engine import CacheError
from supdist.engine.broker.cache import ResponseCache
from supdist.handlers import Completion
from supdist.engine.jail.syscalls import drop_capabilities
def key(*numbers): return repr(numbers).encode()
async def main(path):
    {body}
asyncio.run(main(sys.argv[1]))
"""


def program(body: str, path: Path) -> subprocess.Popen[str]:
    """Another process with a cache; ``body`` is indented by four spaces."""
    command = [sys.executable, "-c", PROGRAM.format(body=body), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def printed(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output


OPEN = """
    if os.geteuid() == 0: drop_capabilities()
    try:
        async with ResponseCache(path) as cache: await cache.put(key(1), Completion("x"))
    except CacheError as error: print(error)
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_put(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if there:
        asyncio.run(make(folder / "answers", 1))
        (folder / "answers").chmod(0o444)
    folder.chmod(0o555)
    try:
        assert "folder that can be written" in printed(program(OPEN, folder / "answers"))
    finally:
        folder.chmod(0o755)


FILL = """
    async with ResponseCache(path) as cache:
        await cache.put(key(0), Completion("x"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            await cache.put_many({key(1, n): Completion("x" * 1000) for n in range(1000)})
        except CacheError as error: print(error)
        print(len(await cache.get_many([key(0), key(1, 0)])))
"""


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path: Path) -> None:
    output = printed(program(FILL, tmp_path / "answers"))
    assert "make room" in output
    assert output.endswith("\n1\n")


async def test_a_process_that_holds_the_file_too_long_is_said(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    async with ResponseCache(path, timeout=0.05) as cache:
        await cache.put(KEY, answer())
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CacheError, match="another process"):
                await cache.put(OTHER, answer())
            assert await cache.get(KEY) == answer(), "who reads waits for nobody"
        await cache.put(OTHER, answer())


# Processes

SHARE = """
    async with ResponseCache(path) as cache:
        for n in range(50):
            await cache.put(key(os.getpid(), n), Completion(f"{n}"))
        print(os.getpid())
"""


@pytest.mark.slow
def test_processes_that_open_the_same_new_file_at_once_share_it(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    pids = [int(printed(process)) for process in [program(SHARE, path) for _ in range(6)]]

    async def check() -> None:
        keys = [repr((pid, n)).encode() for pid in pids for n in range(50)]
        async with ResponseCache(path) as cache:
            assert len(await cache.get_many(keys)) == 300

    asyncio.run(check())


async def test_many_caches_open_the_same_new_file_at_once(tmp_path: Path) -> None:
    async def use(path: Path, number: int) -> None:
        async with ResponseCache(path) as cache:
            await cache.put(bytes([number]), answer())

    for path in (tmp_path / str(turn) for turn in range(10)):
        await asyncio.gather(*(use(path, number) for number in range(16)))
        async with ResponseCache(path) as cache:
            assert len(await cache.get_many([bytes([number]) for number in range(16)])) == 16


WRITE = """
    async with ResponseCache(path) as cache:
        for n in range(10_000):
            print("begin", n, flush=True)
            await cache.put_many({key(n, m): Completion("x" * 500) for m in range(200)})
            print("done", n, flush=True)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_loses_that_write_alone(tmp_path: Path) -> None:
    for moment in range(5):
        path = tmp_path / f"answers{moment}"
        with program(WRITE, path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2 * moment + 3)]
            process.kill()
            lines += process.stdout.read().splitlines(keepends=True)
        begun = {int(line.split()[1]) for line in lines if line.startswith("begin")}
        done = {int(line.split()[1]) for line in lines if line.startswith("done")}

        async def count(n: int, path: Path = path) -> int:
            async with ResponseCache(path) as cache:
                return len(await cache.get_many([repr((n, m)).encode() for m in range(200)]))

        for n in begun:
            kept = asyncio.run(count(n))
            assert kept == 200 if n in done else kept in (0, 200)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
