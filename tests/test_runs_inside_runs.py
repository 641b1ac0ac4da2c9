"""A run that a host tool starts counts in the budget of the run whose code called the tool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from support import SMALL_CONFIG, block, read_events

from supdist.engine import HostTool, RunLimits, RunResult, TaskError, arun, run
from supdist.engine.events import Event, RunStarted
from supdist.handlers import Completion, ModelHandler, NoAccess, Price, ScriptedHandler, Usage

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]

FIVE_CALLS = block("r = [worker(str(n)) for n in range(5)]\nFINAL('inner')")


class Priced(ScriptedHandler):
    """A dollar for a call."""

    price = Price(1e6, 0)

    def __init__(self, replies: Any) -> None:
        super().__init__(replies)
        self.max_tokens = 1

    def count_tokens(self, messages: Any) -> int:
        return 1

    async def chat(self, messages: Any) -> Completion:
        return Completion((await super().chat(messages)).text, Usage(1, 0, 1))


def options(supervisor: ModelHandler, worker: ModelHandler | None, **more: Any) -> dict[str, Any]:
    models = {"supervisor": supervisor, "worker": worker}
    return {"query": "q", "context": "c", "sandbox": SMALL_CONFIG, **models, **more}


class Inner:
    """Starts runs, and keeps their results."""

    def __init__(self, worker: ModelHandler, *replies: str, **more: Any) -> None:
        self.worker = worker
        self.results: list[RunResult] = []
        self._replies = replies or (FIVE_CALLS, "no more calls")
        self._more = {"max_iterations": 1, **more}

    def _options(self) -> dict[str, Any]:
        return options(ScriptedHandler(self._replies), self.worker, **self._more)

    async def in_loop(self) -> str:
        self.results.append(await arun(**self._options()))
        return self.results[-1].answer or "none"

    def in_thread(self) -> str:
        self.results.append(run(**self._options()))
        return self.results[-1].answer or "none"

    async def in_task_of_its_own(self) -> str:
        return await asyncio.create_task(self.in_loop())

    async def in_worker_thread(self) -> str:
        return await asyncio.to_thread(self.in_thread)

    def in_own_thread(self) -> str:
        answers: list[str] = []
        work = copy_context().run
        thread = threading.Thread(target=work, args=(lambda: answers.append(self.in_thread()),))
        thread.start()
        thread.join()
        return answers[0]


WAYS: dict[str, Callable[[Inner], Callable[..., Any]]] = {
    "loop": lambda inner: inner.in_loop,
    "task": lambda inner: inner.in_task_of_its_own,
    "thread": lambda inner: inner.in_thread,
    "to_thread": lambda inner: inner.in_worker_thread,
    "own thread": lambda inner: inner.in_own_thread,
}


async def outer_of(inner: Inner, code: str = "FINAL(ask())", way: str = "loop", **more: Any) -> RunResult:
    tools = {"ask": HostTool(WAYS[way](inner))}
    supervisor = ScriptedHandler([block(code), "best"])
    return await arun(**options(supervisor, inner.worker, tools=tools, max_iterations=1, **more))


@pytest.mark.parametrize("way", WAYS)
async def test_worker_calls_of_an_inner_run_count_in_the_outer_limit(way: str) -> None:
    worker = ScriptedHandler(lambda _: "a")
    inner = Inner(worker)
    result = await outer_of(inner, way=way, limits=RunLimits(max_worker_calls=2))
    assert len(worker.calls) == result.worker_usage.calls == result.worker_calls - 1 == 2
    assert dict(result.failed_calls) == {"budget_exceeded": 1}
    assert inner.results[0].worker_usage.calls == 2
    assert result.answer == "no more calls"


async def test_tokens_and_dollars_count_too() -> None:
    inner = Inner(Priced(["a"] * 9))
    result = await outer_of(inner, limits=RunLimits(max_cost_usd=3.0))
    assert result.cost_usd == result.worker.cost_usd == inner.results[0].cost_usd == 3.0
    limits = RunLimits(max_tokens=60_000)
    tokens = await outer_of(Inner(ScriptedHandler(lambda _: "a")), "for _ in range(20): ask()", limits=limits)
    used = tokens.supervisor_usage + tokens.worker_usage
    assert used.calls > 2
    assert used.input_tokens + used.output_tokens <= 60_000


async def test_usage_counts_without_limits() -> None:
    inner = Inner(ScriptedHandler(lambda _: "a"))
    result = await outer_of(inner, "worker('x')\nFINAL(ask() + ask())")
    assert result.answer == "innerinner"
    assert result.worker_usage.calls == result.worker_calls == 11
    assert result.supervisor_usage.calls == 3


async def test_an_inner_run_keeps_its_own_limits() -> None:
    worker = ScriptedHandler(lambda _: "a")
    inner = Inner(worker, limits=RunLimits(max_worker_calls=1))
    result = await outer_of(inner, "ask(); ask(); FINAL('x')", limits=RunLimits(max_worker_calls=4))
    assert [each.worker_usage.calls for each in inner.results] == [1, 1]
    assert result.worker_usage.calls == 2


async def test_the_time_of_the_outer_run_bounds_the_inner_one() -> None:
    inner = Inner(ScriptedHandler(lambda _: "a"), block("while True: pass"), "inner best")
    result = await outer_of(inner, way="thread", limits=RunLimits(max_seconds=1.0))
    assert (result.stop_reason, result.answer) == ("timeout", "best")
    assert result.elapsed < 10


@pytest.mark.timing
async def test_an_inner_run_that_outlives_the_outer_one_spends_nothing_more() -> None:
    """A thread cannot be stopped. Its next call is refused."""
    ended, go = threading.Event(), threading.Event()
    worker = ScriptedHandler(lambda _: "a")
    results: list[RunResult] = []

    def ask() -> str:
        try:
            supervisor = ScriptedHandler(
                lambda _: Completion(block("worker('x')")) if go.wait(20) else Completion("late")
            )
            results.append(run(**options(supervisor, worker)))
        finally:
            ended.set()
        return "late"

    supervisor = ScriptedHandler([block("try: ask()\nexcept ToolError: FINAL('left behind')")])
    tools = {"ask": HostTool(ask, timeout=0.5)}
    result = await arun(**options(supervisor, worker, tools=tools))
    assert result.answer == "left behind"
    go.set()
    assert await asyncio.to_thread(ended.wait, 20)
    assert results[0].stop_reason == "timeout"
    assert worker.calls == []


async def test_several_levels_count_in_each() -> None:
    worker = ScriptedHandler(lambda _: "a")
    inner = Inner(worker)

    async def middle() -> str:
        supervisor = ScriptedHandler([block("FINAL(worker('m') + ask())")])
        tools = {"ask": HostTool(inner.in_thread)}
        return (await arun(**options(supervisor, worker, tools=tools))).answer or ""

    supervisor = ScriptedHandler([block("FINAL(worker('o') + ask())")])
    tools = {"ask": HostTool(middle)}
    result = await arun(**options(supervisor, worker, tools=tools))
    assert result.answer == "aainner"
    assert result.worker_usage.calls == 7
    assert result.supervisor_usage.calls == 3


async def test_inner_runs_at_once_share_the_limit_exactly() -> None:
    worker = ScriptedHandler(lambda _: "a")
    inner = Inner(worker)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(6) as pool:\n    r = list(pool.map(lambda _: ask(), range(6)))\nFINAL(r)"
    )
    result = await outer_of(inner, code, way="thread", limits=RunLimits(max_worker_calls=17))
    assert len(worker.calls) == result.worker_usage.calls == 17
    assert sum(each.worker_usage.calls for each in inner.results) == 17


async def test_runs_without_end_inside_each_other_are_refused() -> None:
    depth = 0

    async def ask() -> str:
        nonlocal depth
        depth += 1
        supervisor = ScriptedHandler([block("FINAL(ask())"), "stopped"])
        more = options(supervisor, None, tools={"ask": HostTool(ask)}, max_iterations=1)
        return (await arun(**more)).answer or ""

    result = await arun(
        **options(ScriptedHandler([block("FINAL(ask())")]), None, tools={"ask": HostTool(ask)})
    )
    assert (result.answer, depth) == ("stopped", 8)


async def test_the_log_of_an_inner_run_names_the_outer_one(tmp_path: Path) -> None:
    inner = Inner(ScriptedHandler(lambda _: "a"), log_dir=tmp_path / "inner")
    result = await outer_of(inner, log_dir=tmp_path / "outer")
    for stream in ("supervisor", "worker", "repl"):
        assert {event["parent_run_id"] for event in read_events(tmp_path / "inner", stream)} == {
            result.run_id
        }
        assert all("parent_run_id" not in event for event in read_events(tmp_path / "outer", stream))


async def test_a_dead_worker_of_an_inner_run_is_no_secret_of_its_tool() -> None:
    inner = Inner(ScriptedHandler(lambda _: NoAccess("wrong key")))
    result = await outer_of(inner)
    assert (result.answer, result.stop_reason) == ("none", "worker_failed")


async def test_what_on_event_or_a_later_task_starts_is_a_run_of_its_own() -> None:
    inner = Inner(ScriptedHandler(lambda _: "a"))
    tasks: list[asyncio.Task[str]] = []
    late = asyncio.Event()

    async def start_later() -> str:
        await late.wait()
        return await inner.in_loop()

    def schedule() -> str:
        return "scheduled"

    async def ask() -> str:
        # A pool or a server may start its tasks at the first use, in whatever context that is.
        tasks.append(asyncio.create_task(start_later()))
        return schedule()

    def on_event(event: Event) -> None:
        if isinstance(event, RunStarted):
            tasks.append(asyncio.create_task(inner.in_loop()))

    supervisor = ScriptedHandler([block("FINAL(ask())")])
    tools = {"ask": HostTool(ask)}
    limits = RunLimits(max_worker_calls=1)
    result = await arun(**options(supervisor, inner.worker, tools=tools, on_event=on_event, limits=limits))
    late.set()
    assert await asyncio.gather(*tasks) == ["inner", "inner"]
    assert (result.answer, result.worker_usage) == ("scheduled", Usage())


async def test_a_price_that_is_unknown_is_refused_if_an_outer_run_limits_dollars() -> None:
    class Unpriced(ScriptedHandler):
        price = None  # pyright: ignore[reportAssignmentType]  # as a model that no table lists

    errors: list[str] = []

    async def ask() -> str:
        try:
            await arun(**options(Unpriced([]), None))
        except TaskError as error:
            errors.append(str(error))
        return "refused"

    supervisor = ScriptedHandler([block("FINAL(ask())")])
    limits = RunLimits(max_cost_usd=1.0)
    result = await arun(**options(supervisor, None, tools={"ask": HostTool(ask)}, limits=limits))
    assert result.answer == "refused"
    assert "the price of scripted is unknown" in errors[0]
