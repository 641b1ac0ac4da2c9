"""Equal requests of runs that share a cache: one run sends and pays, and the others get its answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.engine.broker import pending
from supdist.engine.broker.answers import RunAnswers
from supdist.engine.broker.broker import Broker, CallSettings, open_broker
from supdist.engine.broker.budget import Budget, BudgetLimits
from supdist.engine.broker.cache import ResponseCache
from supdist.engine.broker.metered_model import MeteredModel, meter
from supdist.engine.broker.run_account import RunAccount
from supdist.engine.broker.worker_calls import WorkerCalls
from supdist.engine.runlog.writer import CallStats, RunLogger
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import Completion, HandlerError, Message, Price, ScriptedHandler, Unavailable, Usage

ANSWER = Completion("paid", Usage(1, 1, 1))


class Endpoint:
    """What the handlers of several runs lead to. It answers a prompt when that is let through."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.paid = Counter[str]()
        self.inside = Counter[str]()
        self.fails: set[str] = set()
        self.has_failed: set[str] = set()
        self._let: dict[str, asyncio.Event] = {}
        self._is_open = False

    async def reply(self, messages: Sequence[Message]) -> Completion | HandlerError:
        text = messages[-1]["content"]
        self.asked.append(text)
        self.inside[text] += 1
        try:
            if not self._is_open:
                await self._let.setdefault(text, asyncio.Event()).wait()
        finally:
            self.inside[text] -= 1
        if text in self.fails:
            self.has_failed.add(text)
            return Unavailable("overloaded")
        self.paid[text] += 1
        return Completion(text.upper(), Usage(10, 5, 1))

    def let(self, text: str) -> None:
        """Answer those who ask for this text now."""
        self._let.pop(text, asyncio.Event()).set()

    def open(self) -> None:
        self._is_open = True
        for text in list(self._let):
            self.let(text)


class Model(ScriptedHandler):
    """Deterministic, so that its answers are kept."""

    price = Price(1.0, 1.0)
    samples = False
    max_tokens = 10

    def __init__(self, endpoint: Endpoint, *, slots: int = 8) -> None:
        super().__init__(endpoint.reply)
        self.max_concurrency = slots

    def identity(self) -> dict[str, Any]:
        return {"model": "capitals"}

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return 10


@asynccontextmanager
async def run_of(
    path: Path,
    model: Model,
    limits: BudgetLimits | None = None,
    *,
    seconds: float | None = None,
    charged: bool = False,
) -> AsyncGenerator[Broker]:
    """The broker of one run, with a cache of its own on a shared file."""
    async with ResponseCache(path) as cache:
        settings = CallSettings(cache, call_seconds=seconds, cache_counts=charged)
        log, account = RunLogger(None, "x"), RunAccount("x", Budget(limits))
        async with open_broker(ScriptedHandler([]), model, log, account=account, settings=settings) as broker:
            yield broker
            calls = calls_of(broker)
            assert (calls.queued, calls.in_flight) == (0, 0)


def calls_of(broker: Broker) -> WorkerCalls:
    assert broker.worker_calls is not None
    return broker.worker_calls


def call(*prompts: str) -> WorkerCall:
    return WorkerCall(1, 1, list(prompts))


def ask(broker: Broker, *prompts: str) -> asyncio.Task[Sequence[str | CallError]]:
    return asyncio.create_task(calls_of(broker).answer(call(*prompts)))


def codes(results: Sequence[str | CallError]) -> list[str]:
    return [result if isinstance(result, str) else result.code for result in results]


async def until_asked(endpoint: Endpoint, count: int) -> None:
    async with asyncio.timeout(10):
        while len(endpoint.asked) < count:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)  # what could be asked besides, would be by now


def nothing_is_pending() -> bool:
    return not pending._pending  # pyright: ignore[reportPrivateUsage]  # the test looks at private state


async def test_the_first_run_pays_and_the_others_count_its_answer_as_one_of_the_cache(tmp_path: Path) -> None:
    endpoint, file = Endpoint(), tmp_path / "answers"
    async with run_of(file, Model(endpoint)) as first, run_of(file, Model(endpoint)) as second:
        one = ask(first, "a")
        await until_asked(endpoint, 1)
        other = ask(second, "a", "b", "a")
        await until_asked(endpoint, 2)
        endpoint.open()
        assert (codes(await one), codes(await other)) == (["A"], ["A", "B", "A"])
        assert endpoint.asked == ["a", "b"]
        totals = calls_of(second).model.totals
        assert (totals.cached, totals.earlier) == (2, Usage(10, 5, 1))
        assert calls_of(first).model.usage == calls_of(second).model.usage == Usage(10, 5, 1)
        assert codes(await ask(second, "a")) == ["A"], "it has it in its cache now"
        assert endpoint.asked == ["a", "b"]
    assert nothing_is_pending()


async def test_when_the_one_that_pays_is_cancelled_the_next_one_sends_and_pays(tmp_path: Path) -> None:
    endpoint, file, limits = Endpoint(), tmp_path / "answers", BudgetLimits(max_worker_calls=3)
    async with (
        run_of(file, Model(endpoint), limits) as first,
        run_of(file, Model(endpoint), limits) as second,
        run_of(file, Model(endpoint), limits) as third,
    ):
        one = ask(first, "a")
        await until_asked(endpoint, 1)
        others = [ask(second, "a"), ask(third, "a")]
        await until_asked(endpoint, 1)
        one.cancel()
        await until_asked(endpoint, 2)
        assert endpoint.asked == ["a", "a"]
        endpoint.open()
        assert [codes(await other) for other in others] == [["A"], ["A"]]
        left = [run.budget.left().worker_calls for run in (first, second, third)]
        assert sorted(map(str, left)) == ["2", "3", "3"]
        assert left[0] == 3, "a cancelled call is not billed"
        assert endpoint.paid == {"a": 1}
    assert nothing_is_pending()


async def test_after_a_failure_each_run_asks_for_itself(tmp_path: Path) -> None:
    """The reason may be the sender's own. None waits for the failures of all others, one after another."""
    endpoint, file = Endpoint(), tmp_path / "answers"
    endpoint.fails = {"a"}
    async with AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(run_of(file, Model(endpoint))) for _ in range(4)]
        tasks = [ask(run, "a") for run in runs]
        await until_asked(endpoint, 1)
        assert endpoint.asked == ["a"]
        endpoint.let("a")
        await until_asked(endpoint, 4)
        assert endpoint.inside["a"] == 3
        endpoint.fails = set()
        endpoint.open()
        results = sorted([codes(await task) for task in tasks])
    assert results == [["A"], ["A"], ["A"], ["unavailable"]]
    assert nothing_is_pending()


async def test_a_run_without_budget_gets_an_answer_that_another_pays_for(tmp_path: Path) -> None:
    endpoint, file, limits = Endpoint(), tmp_path / "answers", BudgetLimits(max_worker_calls=1)
    async with (
        run_of(file, Model(endpoint)) as rich,
        run_of(file, Model(endpoint), limits) as poor,
        run_of(file, Model(endpoint), limits, charged=True) as charged,
    ):
        one = ask(rich, "a", "b")
        await until_asked(endpoint, 2)
        others = [ask(poor, "a", "b"), ask(charged, "a")]
        await until_asked(endpoint, 2)
        endpoint.open()
        assert codes(await one) == ["A", "B"]
        assert [codes(await other) for other in others] == [["A", "B"], ["A"]]
        assert (poor.budget.left().worker_calls, charged.budget.left().worker_calls) == (1, 0)


async def test_the_wait_for_another_run_has_the_calls_own_deadline(tmp_path: Path) -> None:
    endpoint, file = Endpoint(), tmp_path / "answers"
    async with (
        run_of(file, Model(endpoint)) as patient,
        run_of(file, Model(endpoint), seconds=0.05) as hasty,
    ):
        one = ask(patient, "a")
        await until_asked(endpoint, 1)
        assert codes(await ask(hasty, "a")) == ["timeout"]
        assert endpoint.inside["a"] == 1, "the other run's request goes on"
        endpoint.open()
        assert codes(await one) == ["A"]
    assert nothing_is_pending()


async def test_a_request_keeps_its_turn_while_an_equal_one_waits_behind_a_flood(tmp_path: Path) -> None:
    endpoint, file = Endpoint(), tmp_path / "answers"
    flooded, other = Model(endpoint, slots=1), Model(endpoint, slots=1)
    async with run_of(file, flooded) as first, run_of(file, other) as second:
        flood = ask(first, *(f"f{number}" for number in range(50)), "a")
        await until_asked(endpoint, 1)
        one = ask(second, "a")
        await until_asked(endpoint, 2)
        endpoint.let("a")
        assert codes(await one) == ["A"]
        endpoint.open()
        assert codes(await flood)[-1] == "A"
        assert endpoint.paid["a"] == 1, "the flood's own request for it was answered while it waited"


async def test_metered_models_share_a_request_too(tmp_path: Path) -> None:
    """As supervisors, judges and the direct strategy use them."""
    endpoint, file = Endpoint(), tmp_path / "answers"
    conversation: list[Message] = [{"role": "user", "content": "q"}]
    async with ResponseCache(file) as one, ResponseCache(file) as two:
        models: list[MeteredModel] = [
            await meter(Model(endpoint), Budget(), RunAnswers(cache)) for cache in (one, two)
        ]
        texts: list[str] = []
        tasks: list[asyncio.Task[tuple[Completion, CallStats]]] = []
        for model in models:
            tasks.append(asyncio.create_task(model.ask(conversation, texts.append)))
            await until_asked(endpoint, 1)
        assert endpoint.asked == ["q"]
        tasks[0].cancel()
        await until_asked(endpoint, 2)
        again = asyncio.create_task(models[0].ask(conversation, texts.append))
        await asyncio.sleep(0.02)
        endpoint.open()
        (completion, numbers), (second, cached) = await tasks[1], await again
        assert (completion.text, second.text, texts) == ("Q", "Q", ["Q", "Q"])
        assert (numbers.cached, cached.cached, second.usage) == (False, True, Usage())
        assert models[0].totals.earlier == models[1].usage == Usage(10, 5, 1)
    assert nothing_is_pending()


def test_runs_in_threads_of_their_own_share_a_request(tmp_path: Path) -> None:
    asked, started, done = [0], threading.Event(), threading.Event()
    results: list[list[str]] = []

    async def reply(messages: Sequence[Message]) -> str:
        asked[0] += 1
        started.set()
        while not done.is_set():
            await asyncio.sleep(0.001)
        return "A"

    class Threaded(Model):
        def __init__(self) -> None:
            ScriptedHandler.__init__(self, reply)

    async def one() -> None:
        async with run_of(tmp_path / "answers", Threaded()) as run:
            task = ask(run, "a")
            while not (calls_of(run).in_flight and started.is_set()):
                await asyncio.sleep(0.001)
            arrived.release()
            results.append(codes(await task))

    arrived = threading.Semaphore(0)
    threads = [threading.Thread(target=lambda: asyncio.run(one())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert arrived.acquire(timeout=10)
    done.set()
    for thread in threads:
        thread.join(10)
    assert results == [["A"]] * 3
    assert asked == [1]
    assert nothing_is_pending()


TEXTS = "abc"

Step = tuple[str, Any] | tuple[str, int, list[str]]


@dataclass(frozen=True)
class Asked:
    run: int
    prompts: list[str]
    task: asyncio.Task[Sequence[str | CallError]]


asks = st.tuples(st.just("ask"), st.integers(0, 2), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
steps = (
    asks
    | asks
    | st.tuples(st.just("let"), st.sampled_from(TEXTS))
    | st.tuples(st.just("fail"), st.sampled_from(TEXTS))
    | st.tuples(st.just("cancel"), st.integers(0, 11))
    | st.tuples(st.just("wait"), st.sampled_from([0, 0, 0.003]))
)


async def take(
    step: tuple[str, Any] | tuple[str, int, list[str]],
    runs: list[Broker],
    asked: list[Asked],
    endpoint: Endpoint,
) -> None:
    match step:
        case "ask", number, prompts:
            number %= len(runs)
            asked.append(Asked(number, prompts, ask(runs[number], *prompts)))
        case "let", text:
            endpoint.let(text)
        case "fail", text:
            endpoint.fails = {text}
            endpoint.let(text)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            endpoint.fails = set()
        case "cancel", number if asked:
            asked[int(number) % len(asked)].task.cancel()
        case "wait", seconds:
            await asyncio.sleep(seconds)
        case _:
            pass


def check_results(asked: list[Asked], limits: list[int | None], endpoint: Endpoint) -> None:
    for each in asked:
        if each.task.cancelled():
            continue
        for prompt, result in zip(each.prompts, codes(each.task.result()), strict=True):
            allowed = {prompt.upper()}
            allowed |= {"budget_exceeded"} if limits[each.run] is not None else set()
            allowed |= {"unavailable"} if prompt in endpoint.has_failed else set()
            assert result in allowed


def check_counts(asked: list[Asked], runs: list[Broker]) -> None:
    """Each answer that a run has was paid for by it, or counts once as another's."""
    for number, run in enumerate(runs):
        answered = {
            result
            for each in asked
            if each.run == number and not each.task.cancelled()
            for result in each.task.result()
            if isinstance(result, str)
        }
        model = calls_of(run).model
        assert model.usage.calls + model.totals.earlier.calls >= len(answered)


def check_bills(runs: list[Broker], limits: list[int | None], endpoint: Endpoint) -> None:
    for run, most in zip(runs, limits, strict=True):
        paid = calls_of(run).model.usage.calls
        if most is not None:
            assert run.budget.spent().worker_calls == paid
            assert run.budget.left().worker_calls == most - paid, "nothing is still reserved"
    assert sum(calls_of(run).model.usage.calls for run in runs) <= endpoint.paid.total()
    for text in set(TEXTS) - endpoint.has_failed:
        assert endpoint.paid[text] <= 1, "paid once over all runs"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.none() | st.integers(1, 4), min_size=2, max_size=3),
    st.integers(1, 3),
    st.lists(steps, min_size=2, max_size=14),
)
def test_no_interleaving_pays_twice_bills_a_cancelled_call_or_leaves_somebody_waiting(
    limits: list[int | None], slots: int, plan: list[Step]
) -> None:
    async def play(file: Path) -> None:
        endpoint = Endpoint()
        asked: list[Asked] = []
        async with AsyncExitStack() as stack:
            runs = [
                await stack.enter_async_context(
                    run_of(file, Model(endpoint, slots=slots), BudgetLimits(max_worker_calls=most))
                )
                for most in limits
            ]
            for step in plan:
                await take(step, runs, asked, endpoint)
            endpoint.open()
            async with asyncio.timeout(20):
                await asyncio.gather(*(each.task for each in asked), return_exceptions=True)
            check_results(asked, limits, endpoint)
            check_bills(runs, limits, endpoint)
            check_counts(asked, runs)

    with TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder) / "answers"))
    assert nothing_is_pending()


async def test_an_answer_stays_though_a_failed_sender_wakes_later() -> None:
    request = pending.SharedRequest()
    request.pending = pending.join("cache", b"k", request)
    request.wake(ANSWER)
    request.wake(None)
    assert await request.other_answer() == ANSWER
    request.leave(failed=False)
    assert nothing_is_pending()


async def test_a_waiter_that_raises_keeps_the_answer_from_no_other() -> None:
    class Broken:
        def wake(self, answer: Completion | None) -> None:
            raise ValueError("broken")

    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    sender, other = pending.SharedRequest(), pending.SharedRequest()
    for each in (sender, Broken(), other):
        joined = pending.join("cache", b"k", each)
    sender.pending = other.pending = joined
    assert sender.claim()
    sender.resolve(ANSWER)
    assert await other.other_answer() == ANSWER
    assert [str(report["exception"]) for report in reports] == ["broken"]


def test_the_sender_of_a_closed_loop_leaves_no_waiter_behind() -> None:
    sender, waiter = pending.SharedRequest(), pending.SharedRequest()

    async def claim() -> None:
        sender.pending = pending.join("cache", b"k", sender)
        assert sender.claim()

    async def wait() -> None:
        waiter.pending = pending.join("cache", b"k", waiter)
        waiting = asyncio.create_task(waiter.other_answer())
        await asyncio.sleep(0)
        # The garbage collector does so, in a thread without a loop.
        await asyncio.to_thread(sender.leave, failed=False)
        async with asyncio.timeout(5):
            assert await waiting is None
        assert waiter.claim()
        waiter.resolve(ANSWER)

    asyncio.run(claim())
    asyncio.run(wait())
    assert nothing_is_pending()


def test_a_forked_process_waits_for_no_sender_of_its_parent() -> None:
    program = """
import asyncio, os
from supdist.engine.broker import pending

async def claim() -> bool:
    request = pending.SharedRequest()
    request.pending = pending.join("cache", b"k", request)
    return request.claim()

assert asyncio.run(claim())
pending._lock.acquire()
child = os.fork()
if not child:
    os._exit(0 if asyncio.run(claim()) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
