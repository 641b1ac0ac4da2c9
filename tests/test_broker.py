"""The broker: budgets that hold, answers that are paid once, calls that end with their cell."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL_CONFIG, block, run_pending

from supdist.engine import LogError, RunLimits, TaskError, arun
from supdist.engine.broker.broker import Broker, CallSettings, open_broker
from supdist.engine.broker.budget import Budget, BudgetLimits
from supdist.engine.broker.cache import ResponseCache
from supdist.engine.broker.run_account import RunAccount
from supdist.engine.broker.worker_calls import WorkerCalls
from supdist.engine.events import Metrics
from supdist.engine.runlog.writer import RunLogger
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import Completion, Message, ModelHandler, Price, ScriptedHandler, Unavailable, Usage
from supdist.tools.testing.fake_openai import FakeOpenAI, Reply, Request, Text


class Model(ModelHandler):
    """Answers each prompt with itself in capitals, once it is let through; deterministic, and so kept."""

    model = "capitals"
    price = Price(1.0, 1.0)
    samples = False
    max_tokens = 10

    def __init__(self, *, let: bool = True) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.answer: dict[str, Completion | Exception] = {}
        if let:
            self.gate.set()

    async def chat(self, messages: Sequence[Message]) -> Completion:
        text = messages[-1]["content"]
        self.asked.append(text)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        special = self.answer.get(text)
        if isinstance(special, Exception):
            raise special
        return special or Completion(text.upper(), Usage(10, 5, 1))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return 10

    def identity(self) -> dict[str, Any]:
        return {"model": self.model}


class Drawing(Model):
    """The same at a temperature: each answer is another."""

    samples = True

    async def chat(self, messages: Sequence[Message]) -> Completion:
        await super().chat(messages)
        return Completion(f"{messages[-1]['content']} {len(self.asked)}")


@asynccontextmanager
async def broker(
    model: ModelHandler,
    limits: BudgetLimits | None = None,
    *,
    cache: ResponseCache | None = None,
    cache_sampled: bool = False,
    call_seconds: float | None = None,
    supervisor: ModelHandler | None = None,
) -> AsyncGenerator[Broker]:
    call_settings = CallSettings(cache, cache_sampled, call_seconds)
    told: list[Metrics] = []
    opened = open_broker(
        supervisor or Model(),
        model,
        RunLogger(None, "x"),
        told.append,
        account=RunAccount("x", Budget(limits)),
        settings=call_settings,
    )
    async with opened as own:
        yield own
    assert told == [] or (told[-1].in_flight, told[-1].queued) == (0, 0)


def calls_of(broker: Broker) -> WorkerCalls:
    assert broker.worker_calls is not None
    return broker.worker_calls


def call(*prompts: str) -> WorkerCall:
    return WorkerCall(1, 1, list(prompts))


def codes(results: Sequence[str | CallError]) -> list[str]:
    return [result if isinstance(result, str) else result.code for result in results]


class Tokenizing(Model):
    """Knows its window and, to a character, its tokens; notes in which thread it counted."""

    window = 50_000

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        self.threads.add(threading.get_ident())
        return sum(len(message["content"]) for message in messages)


async def test_of_calls_by_the_hundred_a_few_are_looked_up_at_once() -> None:
    """When a look ends, what follows holds the event loop: for a few of them, not for all."""
    looking, most = 0, 0

    class Looked(ResponseCache):
        async def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
            nonlocal looking, most
            looking += 1
            most = max(most, looking)
            try:
                return await super().get_many(keys)
            finally:
                looking -= 1

    async with Looked() as cache, broker(Model(), cache=cache) as own:
        answers = await asyncio.gather(*(calls_of(own).answer(call(f"a{number}")) for number in range(200)))
    assert answers == [[f"A{number}"] for number in range(200)]
    assert most == 4


async def test_long_prompts_are_counted_outside_of_the_loops_thread_and_refused_to_the_token() -> None:
    model = Tokenizing()
    async with broker(model, BudgetLimits(max_worker_calls=9)) as own:
        fits, too_long = "x" * 49_999, "x" * 50_000
        assert codes(await calls_of(own).answer(call(fits, too_long, "short"))) == [
            fits.upper(),
            "too_long",
            "SHORT",
        ]
        assert model.asked == [fits, "short"]
        assert threading.get_ident() not in model.threads
        assert own.budget.left().worker_calls == 7


# Budgets


async def test_a_batch_over_budget_is_served_as_far_as_it_goes() -> None:
    model = Model()
    async with broker(model, BudgetLimits(max_worker_calls=3)) as own:
        assert codes(await calls_of(own).answer(call("a", "b"))) == ["A", "B"]
        assert codes(await calls_of(own).answer(call("c", "d", "e"))) == [
            "C",
            "budget_exceeded",
            "budget_exceeded",
        ]
        assert own.budget.left().worker_calls == 0
        assert model.asked == ["a", "b", "c"]


async def test_what_is_set_aside_too_carefully_is_used_by_the_next() -> None:
    """Each call may take 20 tokens and takes 15: 100 tokens are enough for six, one after another."""
    async with broker(Model(), BudgetLimits(max_tokens=100)) as own:
        results = codes(await calls_of(own).answer(call(*"abcdefghij")))
        assert results == [*"ABCDEF", *["budget_exceeded"] * 4]
        assert calls_of(own).model.usage == Usage(60, 30, 6)
        assert own.budget.left().tokens == 10


async def test_dollars_are_limited_and_an_unknown_price_is_said_before_anything_is_spent() -> None:
    model = Model()
    async with broker(model, BudgetLimits(max_cost_usd=0.00005)) as own:
        assert codes(await calls_of(own).answer(call("a", "b", "c", "d"))) == [
            "A",
            "B",
            "C",
            "budget_exceeded",
        ]
        assert own.cost_usd == pytest.approx(45e-6)
    unpriced = Model()
    unpriced.price = None
    with pytest.raises(TaskError, match="price"):
        async with broker(unpriced, BudgetLimits(max_cost_usd=1.0)):
            pass
    async with broker(unpriced) as own:
        await calls_of(own).answer(call("a"))
        assert own.cost_usd is None, "unknown is not nothing"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_interleaving_of_answers_failures_and_cancellations_passes_a_limit_or_leaks(
    data: st.DataObject,
) -> None:
    most = data.draw(st.integers(1, 200))

    async def play() -> None:
        model = Model(let=False)
        model.max_concurrency = data.draw(st.integers(1, 4))
        async with broker(model, BudgetLimits(max_tokens=most)) as own:
            tasks: list[asyncio.Task[Any]] = []
            for number in range(data.draw(st.integers(1, 8))):
                prompts = [f"{number} {index}" for index in range(data.draw(st.integers(1, 4)))]
                if data.draw(st.booleans()):
                    model.answer[prompts[0]] = Unavailable("x")
                tasks.append(asyncio.create_task(calls_of(own).answer(call(*prompts))))
                match data.draw(st.integers(0, 3)):
                    case 0:
                        await run_pending()
                    case 1:
                        model.gate.set()
                        await run_pending()
                        model.gate.clear()
                    case 2:
                        data.draw(st.sampled_from(tasks)).cancel()
                    case _:
                        pass
                assert own.budget.spent().tokens <= most
            model.gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            spent = own.budget.spent()
            assert (
                spent.tokens
                == calls_of(own).model.usage.input_tokens + calls_of(own).model.usage.output_tokens
                <= most
            )
            assert own.budget.left().tokens == most - spent.tokens, "nothing is still set aside"

    asyncio.run(play())


async def test_the_best_answers_share_is_kept_from_the_workers() -> None:
    supervisor = Model()
    async with broker(Model(), BudgetLimits(max_tokens=80), supervisor=supervisor) as own:
        conversation: list[Message] = [{"role": "user", "content": "q"}]
        await own.supervisor.reserve_best_answer(conversation)
        assert codes(await calls_of(own).answer(call(*"abcdef"))).count("budget_exceeded") == 3
        await own.supervisor.ask(conversation, lambda _: None, best_answer=True)
        assert supervisor.asked == ["q"]


# The cache


async def test_an_answer_is_paid_once() -> None:
    model = Model()
    async with ResponseCache() as cache, broker(model, cache=cache) as own:
        assert codes(await calls_of(own).answer(call("a", "b", "a"))) == ["A", "B", "A"]
        assert codes(await calls_of(own).answer(call("b", "a", "c"))) == ["B", "A", "C"]
        assert model.asked == ["a", "b", "c"]
        assert calls_of(own).model.usage.calls == 3
        assert calls_of(own).model.totals.cached == 3


async def test_equal_calls_under_way_share_one_request_that_lives_as_long_as_one_wants_it() -> None:
    model = Model(let=False)
    async with ResponseCache() as cache, broker(model, cache=cache) as own:
        first = asyncio.create_task(calls_of(own).answer(call("a")))
        second = asyncio.create_task(calls_of(own).answer(call("a", "b")))
        await asyncio.sleep(0.05)
        first.cancel()
        await run_pending()
        assert model.cancelled == []
        model.gate.set()
        assert codes(await second) == ["A", "B"]
        assert model.asked == ["a", "b"]
        model.gate.clear()
        third = [asyncio.create_task(calls_of(own).answer(call("c"))) for _ in range(2)]
        await asyncio.sleep(0.05)
        for task in third:
            task.cancel()
        await asyncio.gather(*third, return_exceptions=True)
        await run_pending()
        assert model.cancelled == ["c"]


class FullDisk(RunLogger):
    """A log that cannot be written."""

    @property
    def is_on(self) -> bool:
        return True

    def worker(self, *args: object, **kwargs: object) -> None:
        raise LogError("no room")


async def test_a_log_that_cannot_be_written_ends_every_call_that_shares_the_request() -> None:
    model = Model(let=False)
    async with ResponseCache() as cache:
        call_settings = CallSettings(cache)
        async with open_broker(Model(), model, FullDisk(None, "x"), settings=call_settings) as own:
            both = [asyncio.create_task(calls_of(own).answer(call("a"))) for _ in range(2)]
            while not model.asked:
                await asyncio.sleep(0.001)
            await run_pending()
            model.gate.set()
            async with asyncio.timeout(5):
                ends = await asyncio.gather(*both, return_exceptions=True)
    assert [type(end) for end in ends] == [LogError, LogError]
    assert model.asked == ["a"]


async def test_what_is_drawn_at_random_is_kept_only_where_that_is_asked_for() -> None:
    async with ResponseCache() as cache, broker(Drawing(), cache=cache) as own:
        assert len(set(codes(await calls_of(own).answer(call("a", "a", "a"))))) == 3
        assert calls_of(own).model.totals.cached == 0
    async with ResponseCache() as cache, broker(Drawing(), cache=cache, cache_sampled=True) as own:
        drawn = codes(await calls_of(own).answer(call("a", "a", "b")))
        assert len(set(drawn)) == 3, "each of a batch is drawn for itself"
        assert codes(await calls_of(own).answer(call("a", "a", "b"))) == drawn


async def test_failures_are_not_kept() -> None:
    model = Model()
    model.answer["a"] = Unavailable("x")
    async with ResponseCache() as cache, broker(model, cache=cache) as own:
        assert codes(await calls_of(own).answer(call("a", "a"))) == ["unavailable"] * 2
        del model.answer["a"]
        assert codes(await calls_of(own).answer(call("a"))) == ["A"]


# Ends


async def test_too_long_is_said_unpaid() -> None:
    model = Model()
    model.window = 10
    async with broker(model) as own:
        assert codes(await calls_of(own).answer(call("a"))) == ["too_long"]
        assert model.asked == []


async def test_a_call_has_a_deadline() -> None:
    async with broker(Model(let=False), call_seconds=0.02) as own:
        assert codes(await calls_of(own).answer(call("a", "b"))) == ["timeout"] * 2


async def test_a_cancelled_call_is_neither_finished_nor_paid() -> None:
    model = Model(let=False)
    model.max_concurrency = 1
    async with broker(model, BudgetLimits(max_worker_calls=5)) as own:
        task = asyncio.create_task(calls_of(own).answer(call("a", "b")))
        await run_pending()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model.gate.set()
        await run_pending()
        assert (model.asked, model.cancelled) == (["a"], ["a"])
        assert own.budget.left().worker_calls == 5
        assert calls_of(own).model.usage == Usage()


# Whole runs


async def ask(replies: Sequence[str], worker: ModelHandler | None = None, **options: Any) -> Any:
    return await arun(
        query="q",
        context="c",
        supervisor=ScriptedHandler(replies),
        worker=worker or Model(),
        sandbox=SMALL_CONFIG,
        **options,
    )


async def test_a_run_whose_budget_is_used_up_ends_in_a_best_answer() -> None:
    code = "r = worker_batch(list('abc'), return_errors=True)\nprint([str(x)[:15] for x in r], budget())"
    result = await ask([block(code), "the best"], limits=RunLimits(max_worker_calls=2), max_iterations=1)
    assert result.answer == "the best"
    supervisor = ScriptedHandler(lambda m: "the best" if "budget" in m[-1]["content"] else block("print(1)"))
    supervisor.max_tokens = 100
    result = await arun(query="q", context="c", supervisor=supervisor, worker=Model(), sandbox=SMALL_CONFIG,
                        limits=RunLimits(max_tokens=12_000), max_iterations=1000)  # fmt: skip
    assert (result.answer, result.stop_reason) == ("the best", "budget")
    used = result.supervisor_usage
    assert used.input_tokens + used.output_tokens <= 12_000


async def test_code_and_supervisor_are_told_what_is_left() -> None:
    seen: list[str] = []

    def play(messages: Sequence[Message]) -> str:
        seen.append(messages[-1]["content"])
        return block("worker('a')\nFINAL(budget())" if len(seen) > 1 else "print(worker('a'))")

    result = await arun(
        query="q",
        context="c",
        supervisor=ScriptedHandler(play),
        worker=Model(),
        sandbox=SMALL_CONFIG,
        cache="off",
        limits=RunLimits(max_worker_calls=7),
    )
    assert json.loads(result.answer or "") == {
        "worker_calls": 5,
        "tokens": None,
        "dollars": None,
        "seconds": None,
    }
    assert "Left of the budget: 6 worker calls." in seen[1]


async def test_a_supervisor_whose_window_ends_goes_on_and_its_code_has_the_history(tmp_path: Path) -> None:
    sent: list[int] = []

    def play(messages: Sequence[Message]) -> str:
        sent.append(sum(len(message["content"]) for message in messages))
        turn = sum(message["role"] == "assistant" for message in messages)
        if turn < 12:
            return block(f"print('{turn:02}' * 2000)")
        left_out = [n for n, message in enumerate(messages) if "left out" in message["content"]]
        assert left_out[0] == 3
        return block("FINAL([history(3)[0]['content'].count('00'), len(history())])")

    supervisor = ScriptedHandler(play)
    supervisor.window = 20_000
    supervisor.count_tokens = lambda messages: sum(len(m["content"]) for m in messages) // 2  # type: ignore[method-assign]  # a model that counts tokens
    supervisor.max_tokens = 1000
    result = await arun(query="q", context="c", supervisor=supervisor, worker=Model(), sandbox=SMALL_CONFIG,
                        output_limit=4000, log_dir=tmp_path)  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "supervisor.jsonl").read_text().splitlines()]
    noted: list[tuple[int, str]] = [pair for event in log if event["event"] == "left_out"
             for pair in zip(event["messages"], event["notes"], strict=True)]  # fmt: skip
    assert noted
    assert all(supervisor.calls[-1][number]["content"] == note for number, note in noted)
    count, length = json.loads(result.answer or "")
    assert count >= 1900
    assert length == 27
    assert max(sent) < 36_000


class Slow(Model):
    """Takes a moment for each prompt, four at once."""

    max_concurrency = 4

    async def chat(self, messages: Sequence[Message]) -> Completion:
        self.asked.append(messages[-1]["content"])
        await asyncio.sleep(0.002)
        return Completion("ok")


async def test_a_flood_of_one_run_neither_grows_the_engine_nor_delays_another() -> None:
    model = Slow()
    code = block("worker_batch(['flood'] * 100_000)")
    flood = asyncio.create_task(ask([code], model, cache="off"))
    while len(model.asked) < 50:
        await asyncio.sleep(0.01)
    before, arrived = psutil.Process().memory_info().rss, list[int]()

    def note(event: object) -> None:
        if isinstance(event, Metrics) and event.in_flight + event.queued and not arrived:
            arrived.append(len(model.asked))

    result = await ask([block("FINAL(worker('other'))")], model, cache="off", on_event=note)
    assert result.answer == "ok"
    assert not flood.done()
    # What had its slot already but had not begun, and one round.
    assert model.asked.index("other") <= arrived[0] + 2 * model.max_concurrency
    assert psutil.Process().memory_info().rss - before < 64 << 20
    flood.cancel()
    await asyncio.gather(flood, return_exceptions=True)
    asked = len(model.asked)
    await asyncio.sleep(0.05)
    assert len(model.asked) == asked < 50_000


def task_file(folder: Path, url: str) -> Path:
    model = {"handler": "openai", "base_url": url, "temperature": 0.0, "max_retries": 0}
    task = {
        "query": "q",
        "context": "c",
        "supervisor": {**model, "model": "big"},
        "worker": {**model, "model": "small"},
        "cache": str(folder / "answers.sqlite"),
        "limits": {"max_iterations": 3},
    }
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    return path


async def test_a_killed_run_that_is_started_again_pays_only_for_what_was_not_finished(tmp_path: Path) -> None:
    """The server's own ledger is the witness. The first run is killed while the second half hangs."""
    halfway, hang = asyncio.Event(), True
    asked = Counter[str]()
    code = (
        "r = worker_batch([str(n) for n in range(10)]); r += worker_batch([str(n) for n in range(10,"
        " 20)]); FINAL(len(r))"
    )

    def play(request: Request) -> Reply:
        if request.model == "big":
            return Text(block(code))
        prompt = request.body["messages"][-1]["content"]
        asked[prompt] += 1
        if hang and int(prompt) >= 10:
            if len(asked) == 20:  # all that the first run sends: what came after its death would be answered
                halfway.set()
            return Text("never", delay=600)
        return Text(f"answer {prompt}")

    async with FakeOpenAI(play) as server:
        command = [
            sys.executable,
            "-m",
            "supdist.engine",
            "run",
            str(task_file(tmp_path, server.base_url)),
            "--json",
        ]
        first = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENAI_API_KEY": "k"},
        )
        async with asyncio.timeout(30):
            await halfway.wait()
        os.kill(first.pid, signal.SIGKILL)
        first.wait(10)
        hang = False
        billed = Counter(entry.model for entry in server.ledger)
        assert billed == {"big": 1, "small": 10}
        again = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, env={**os.environ, "OPENAI_API_KEY": "k"}
        )
        out, _ = await asyncio.wait_for(again.communicate(), 60)
        assert json.loads(out)["answer"] == "20"
        total = Counter(entry.model for entry in server.ledger)
        assert total == {"big": 1, "small": 20}, "the turn and the first ten were in the file"
        assert all(asked[str(number)] == 1 for number in range(10))
