"""Paid answers that cannot be stored: never in silence, tried again, and told at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from eval_support import config, play
from lookup_task import Lookup, python_path
from process_support import COMMAND, clean_environment, ended, started
from support import SMALL_CONFIG, block

from supdist.engine import LogError, RunResult, arun
from supdist.engine.broker import answers as answers_module
from supdist.engine.broker.broker import CallSettings, open_broker
from supdist.engine.broker.cache import ResponseCache, cache_key
from supdist.engine.events import BlockEnded, BlockStarted, Event, Warned
from supdist.engine.runlog.events import CacheFault, RunEnd
from supdist.engine.runlog.reader import RunLogReader
from supdist.engine.runlog.writer import RunLogger
from supdist.engine.sandbox import WorkerCall
from supdist.handlers import Completion, Message, ModelHandler, ScriptedHandler, Usage
from supdist.tools.evals.records import RECORDS, Record, read_records
from supdist.tools.evals.runner import run_experiment
from supdist.tools.testing.fake_openai import FakeOpenAI, Request, Text

pytestmark = pytest.mark.anyio


class Worker(ModelHandler):
    """Counts what it is paid for; its answers can be kept."""

    model = "worker"
    samples = False

    def __init__(self, on_call: Callable[[str], None] | None = None) -> None:
        self.paid = 0
        self._on_call = on_call

    async def chat(self, messages: Sequence[Message]) -> Completion:
        self.paid += 1
        if self._on_call is not None:
            self._on_call(messages[-1]["content"])
        return Completion(messages[-1]["content"].upper(), Usage(1, 1, 1))

    def identity(self) -> dict[str, Any]:
        return {"model": self.model}


@contextmanager
def locked(path: Path, how: str = "IMMEDIATE") -> Generator[sqlite3.Connection]:
    """Hold the write lock as another process would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute(f"BEGIN {how}")
        yield other


def count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    return int(found)


async def run(path: Path, worker: Worker, *replies: str, **options: Any) -> RunResult:
    options = {"query": "q", "context": "c", "sandbox": SMALL_CONFIG, **options}
    cache = options.pop("cache", None) or ResponseCache(path, timeout=0.05)
    return await arun(supervisor=ScriptedHandler(replies), worker=worker, cache=cache, **options)


def faults(folder: Path) -> list[CacheFault]:
    return [event for event in RunLogReader(folder).supervisor() if isinstance(event, CacheFault)]


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
async def test_law_3_a_lock_that_stays_is_told_at_once_and_counted_at_the_end(
    tmp_path: Path, how: str
) -> None:
    path, seen = tmp_path / "answers", list[Event]()
    async with ResponseCache(path):
        pass
    with contextlib.ExitStack() as stack:
        lock: list[object] = []

        def on_call(_: str) -> None:
            if not lock:
                lock.append(stack.enter_context(locked(path, how)))

        code = "print(worker_batch([str(n) for n in range(300)])[:2])"
        worker = Worker(on_call)
        done = await run(
            path, worker, block(code), block("FINAL('yes')"), log_dir=tmp_path / "logs", on_event=seen.append
        )
    assert (done.answer, done.unstored_answers, worker.paid) == ("yes", 300, 300)
    first, last = done.warnings
    assert "another process holds it for too long" in first
    held = f"{path}: another process holds it for too long; end that process, or choose another path"
    assert last == f"300 paid answers are not in the cache: {held}"
    at = {type(event): number for number, event in reversed(list(enumerate(seen)))}
    assert at[Warned] < at[BlockEnded], "before the block ends"
    (fault,) = faults(tmp_path / "logs")
    assert fault.error
    assert fault.unstored > 0
    *_, end = RunLogReader(tmp_path / "logs").supervisor()
    assert isinstance(end, RunEnd)
    assert (end.unstored_answers, end.warnings) == (300, list(done.warnings))
    assert count(path) == 0


async def test_law_3_a_lock_that_goes_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_FIRST_WAIT", 0.01)
    path, freed = tmp_path / "answers", asyncio.Event()
    async with ResponseCache(path):
        pass
    with locked(path) as lock:

        def on_event(event: Event) -> None:
            if isinstance(event, Warned) and not freed.is_set():
                lock.execute("ROLLBACK")
                freed.set()

        worker = Worker()
        done = await run(
            path, worker, block("for n in range(20): worker(str(n))"), block("FINAL('yes')"),
            log_dir=tmp_path / "logs", on_event=on_event, cache=Late(path, lock),
        )  # fmt: skip
    assert freed.is_set()
    assert (done.answer, done.unstored_answers, count(path)) == ("yes", 0, 20)
    assert "no paid answer is lost" in done.warnings[-1]
    assert [event.error is None for event in faults(tmp_path / "logs")] == [False, True]


class Late(ResponseCache):
    """Opens before another process takes the lock."""

    def __init__(self, path: Path, lock: sqlite3.Connection) -> None:
        super().__init__(path, timeout=0.05)
        self._lock = lock

    async def __aenter__(self) -> Late:
        self._lock.execute("ROLLBACK")
        await super().__aenter__()
        self._lock.execute("BEGIN IMMEDIATE")
        return self


async def test_while_the_cache_fails_calls_do_not_wait_for_it(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    async with (
        ResponseCache(path, timeout=0.5) as cache,
        open_broker(
            ScriptedHandler([]), Worker(), RunLogger(None, "r"), settings=CallSettings(cache)
        ) as broker,
    ):
        calls = broker.worker_calls
        assert calls is not None
        with locked(path):
            started_at = asyncio.get_running_loop().time()
            for number in range(50):
                assert await calls.answer(WorkerCall(1, number, [str(number)])) == [str(number)]
            assert asyncio.get_running_loop().time() - started_at < 3
        assert await broker.store_answers() == 0
    assert count(path) == 50


async def test_answers_in_memory_are_found_while_the_cache_fails(tmp_path: Path) -> None:
    path, worker = tmp_path / "answers", Worker()
    async with (
        ResponseCache(path, timeout=0.05) as cache,
        open_broker(
            ScriptedHandler([]), worker, RunLogger(None, "r"), settings=CallSettings(cache)
        ) as broker,
    ):
        calls = broker.worker_calls
        assert calls is not None
        with locked(path):
            for _ in range(2):
                await calls.answer(WorkerCall(1, 1, ["a"]))
            assert worker.paid == 1
            assert await broker.store_answers() == 1


@pytest.mark.parametrize("spoil", ["removed", "replaced", "overwritten"])
async def test_a_file_that_is_spoiled_during_the_run_is_told(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "answers"

    def on_call(prompt: str) -> None:
        if prompt != "1":
            return
        if spoil == "overwritten":
            path.write_bytes(b"\xff" * 100_000)
            return
        path.unlink()
        if spoil == "replaced":
            path.write_bytes(b"")

    code = "for n in range(3): worker(str(n))"
    done = await run(path, Worker(on_call), block(code), block("FINAL('yes')"))
    assert done.answer == "yes"
    assert done.unstored_answers == 3, "nobody can read any of them"
    why = "no SQLite database" if spoil == "overwritten" else "it was removed or replaced"
    assert why in done.warnings[-1]


# Answers are stored before code sees them


class Held(ResponseCache):
    """Stores nothing before it is let."""

    async def __aenter__(self) -> Held:
        await super().__aenter__()
        return self

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun, self.let = asyncio.Event(), asyncio.Event()

    async def put_many(
        self, completions: Mapping[bytes, Completion], *, seconds: float | None = None
    ) -> None:
        self.begun.set()
        await self.let.wait()
        await super().put_many(completions, seconds=seconds)


async def turns(number: int = 200) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_law_3_a_worker_answer_is_stored_before_code_sees_it(tmp_path: Path) -> None:
    async with (
        Held(tmp_path / "answers") as cache,
        open_broker(
            ScriptedHandler([]), Worker(), RunLogger(None, "r"), settings=CallSettings(cache)
        ) as broker,
    ):
        assert broker.worker_calls is not None
        answering = asyncio.create_task(broker.worker_calls.answer(WorkerCall(1, 1, ["a", "b"])))
        await cache.begun.wait()
        await turns()
        assert not answering.done()
        cache.let.set()
        assert await answering == ["A", "B"]
        assert count(tmp_path / "answers") == 2


async def test_law_3_a_reply_of_the_supervisor_is_stored_before_it_is_used(tmp_path: Path) -> None:
    async with (
        Held(tmp_path / "answers") as cache,
        open_broker(Worker(), None, RunLogger(None, "r"), settings=CallSettings(cache)) as broker,
    ):
        asking = asyncio.create_task(
            broker.supervisor.ask([{"role": "user", "content": "a"}], lambda _: None)
        )
        await cache.begun.wait()
        await turns()
        assert not asking.done()
        cache.let.set()
        assert (await asking)[0].text == "A"


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_cache_faults import Worker, block
from supdist.engine import HostTool, SandboxConfig, arun
from supdist.handlers import ScriptedHandler

def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(arun(
    query="q", context="c", supervisor=ScriptedHandler([block("worker('a'); worker('b'); die()")]),
    worker=Worker(), cache=sys.argv[1], sandbox=SandboxConfig(memory="256MiB"), tools={"die": HostTool(die)},
))
"""


async def test_law_3_a_kill_by_what_code_saw_finds_every_answer_stored(tmp_path: Path) -> None:
    path, here = tmp_path / "answers", str(Path(__file__).parent)
    async with started(sys.executable, "-c", KILLED, str(path), here) as process:
        assert (await ended(process))[0] == -9
    keys = [cache_key({"model": "worker"}, [{"role": "user", "content": text}]) for text in "ab"]
    async with ResponseCache(path) as cache:
        assert {each.text for each in (await cache.get_many(keys)).values()} == {"A", "B"}


# The commands


@asynccontextmanager
async def task(folder: Path, on_request: Callable[[Request], None]) -> AsyncGenerator[list[str]]:
    """Yield a command that pays for 200 answers."""
    code = block("worker_batch([str(n) + 'x' * 2000 for n in range(200)])\nFINAL('the answer')")

    def reply(request: Request) -> Text:
        on_request(request)
        return Text(code if request.model == "big" else "y" * 100_000)

    async with FakeOpenAI(reply) as server:
        model = {"handler": "openai", "base_url": server.base_url, "temperature": 0.0}
        (folder / "task.json").write_text(
            json.dumps(
                {
                    "query": "q",
                    "context": "c",
                    "cache": "answers.sqlite",
                    "sandbox": {"scratch": "4MiB"},
                    "supervisor": {**model, "model": "big"},
                    "worker": {**model, "model": "small"},
                }
            )
        )
        yield [*COMMAND, "run", str(folder / "task.json"), "--trust-endpoint"]


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
os.execv(sys.argv[1], sys.argv[1:])
"""


async def test_a_full_disk_prints_the_answer_and_exits_with_6(tmp_path: Path) -> None:
    async with task(tmp_path, lambda _: None) as command:
        limited = [sys.executable, "-c", LIMITED, *command]
        async with started(*limited, cwd=tmp_path, env=clean_environment(OPENAI_API_KEY="k")) as process:
            code, out, err = await ended(process)
    assert (code, out) == (6, "the answer\n"), err
    lost = [line for line in err.splitlines() if "paid answers are not in the cache" in line]
    assert len(lost) == 2, "as it ends, and in the summary"
    assert "make room" in lost[0]
    assert "Traceback" not in err


async def test_the_result_as_json_says_how_many_are_lost(tmp_path: Path) -> None:
    async with task(tmp_path, lambda _: None) as command:
        limited = [sys.executable, "-c", LIMITED, *command, "--json"]
        async with started(*limited, cwd=tmp_path, env=clean_environment(OPENAI_API_KEY="k")) as process:
            code, out, _ = await ended(process)
    result = json.loads(out)
    assert code == 6
    assert 0 < result["unstored_answers"] <= 201
    assert result["answer"] == "the answer"


@pytest.mark.slow
async def test_an_eval_that_cannot_store_answers_exits_with_6(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        taken: list[object] = []

        def reply(request: Request) -> Text:
            if not taken:
                taken.append(stack.enter_context(locked(tmp_path / "run/cache.sqlite")))
            return play(request)

        async with FakeOpenAI(reply) as server:
            settings = config(server, n=1, task_options={"judged": False}).model_dump(mode="json")
            (tmp_path / "experiment.json").write_text(json.dumps(settings))
            command = [
                *COMMAND[:2],
                "supdist.tools.cli",
                "eval",
                "--config",
                "experiment.json",
                "--out",
                "run",
            ]
            environment = clean_environment(PYTHONPATH=python_path(tmp_path))
            allowed = ["--out", "run", "--trust-endpoint"]
            async with started(*command, *allowed, cwd=tmp_path, env=environment) as process:
                code, out, err = await ended(process)
    assert code == 6, err
    assert "3 paid answers are not in the cache" in err
    assert "not stored" in out
    assert len(read_records(tmp_path / "run")) == 1


# Results of an eval, and logs on a full disk


class Reading:
    """Reads results.jsonl when an example has ended, as a kill at that moment would leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[bool] = []

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        pass

    def ended(self, record: Record) -> None:
        written = (self.folder / RECORDS).read_text().splitlines()
        self.found.append(json.loads(written[-1])["example"] == record.example)


async def test_law_3_an_example_that_ended_is_in_the_file_at_once(tmp_path: Path) -> None:
    observer = Reading(tmp_path / "run")
    async with FakeOpenAI(play) as server:
        whole = config(server, n=6, concurrency=3)
        await run_experiment(whole, tmp_path / "run", task=Lookup(judged=False), observer=observer)
    assert observer.found == [True] * 6


async def test_law_3_an_answer_that_was_found_survives_a_log_that_fails(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Event) -> None:
        if isinstance(event, BlockStarted):
            size = max(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1, old[1]))

    replies = [block("print('x' * 50_000)\nFINAL('y' * 5000)")]
    try:
        done = await arun(
            query="q", context="c", supervisor=ScriptedHandler(replies), worker=None, sandbox=SMALL_CONFIG,
            log_dir=tmp_path, on_event=fill,
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert done.answer == "y" * 5000
    assert "cannot write the logs" in (done.log_error or "")
    assert done.warnings == (done.log_error,)


async def test_an_eval_on_a_full_disk_stops_and_goes_on_without_paying_again(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Reading):
        def ended(self, record: Record) -> None:
            super().ended(record)
            size = (self.folder / RECORDS).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))

        def note(self, text: str) -> None:
            pass

    async with FakeOpenAI(play) as server:
        settings = config(server, n=4, concurrency=1, strategy="direct", window=8000, cache="off")
        try:
            with pytest.raises(
                LogError, match=r"Raise the limit on the size of files \(`ulimit -f`\), or choose"
            ):
                await run_experiment(
                    settings, tmp_path / "run", task=Lookup(judged=False), observer=Filling(tmp_path / "run")
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert len((tmp_path / "run" / RECORDS).read_text().splitlines()) == 1
        summary = await run_experiment(settings, tmp_path / "run", task=Lookup(judged=False), resume=True)
    assert summary.examples == 4
