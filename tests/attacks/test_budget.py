"""Group 16, what a whole run adds: budgets that hold, deadlines, and a cache that keeps runs apart.

The verdict is what the model served, counted where it is served; the ledger must say the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from attacks.lab import RAW
from attacks.machine import Machine
from support import block

from supdist.engine import HostTool, RunLimits, RunResult, SandboxConfig, arun
from supdist.handlers import Completion, Message, ModelHandler, ScriptedHandler, Usage

_DEEPER_THAN_ALLOWED = 10


class Served(ModelHandler):
    """Answers a prompt with itself in capitals, deterministically; one that says ``hang`` never."""

    samples = False

    def __init__(self, model: str = "served") -> None:
        self.model = model
        self.asked: list[str] = []
        self.cancelled = 0

    async def chat(self, messages: Sequence[Message]) -> Completion:
        text = messages[-1]["content"]
        self.asked.append(text)
        try:
            await (asyncio.Event().wait() if text == "hang" else asyncio.sleep(0.001))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Completion(f"{self.model}:{text.upper()}", Usage(1, 1, 1))

    def identity(self) -> dict[str, Any]:
        return {"model": self.model}


async def attempt(code: str, worker: ModelHandler, box: SandboxConfig, **options: Any) -> RunResult:
    """A run whose supervisor writes this, and then gives an answer, whatever came of it."""
    supervisor = ScriptedHandler([block(code), block("FINAL('over')")])
    return await arun(
        query="q", context="c", supervisor=supervisor, worker=worker, sandbox=box, max_iterations=2, **options
    )


FLOODS = {
    "BR1-loop": "for i in range(1000):\n  try: worker(str(i))\n"
    "  except WorkerError as error: code = error.code",
    "BR1-batch": "code = worker_batch([str(i) for i in range(10_000)], return_errors=True)[-1].code",
    "BR1-forged": RAW
    + "for call in range(1, 2001): send(22, call, cell, [f'{call}-{i}' for i in range(5)])\n"
    "import time; time.sleep(0.5); code = 'budget_exceeded'",
    "BR1-blocks": "code = worker_batch([str(i) for i in range(20)], return_errors=True)[-1].code\n"
    "for name in ('budget', 'worker'): globals()[name] = lambda *_: {'worker_calls': 10**9}",
    "BR2-threads": """
import threading
ready, codes = threading.Barrier(12), []
def ask(n):
    ready.wait()
    for i in range(50):
        try: worker(f"{n}-{i}")
        except WorkerError as error: codes.append(error.code)
threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
code = codes[-1]
""",
    "BR2-batches": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(12) as pool:
    ask = lambda n: worker_batch([f"{n}-{i}" for i in range(50)], return_errors=True)
    results = [r for each in pool.map(ask, range(12)) for r in each]
code = "budget_exceeded" if sum(isinstance(r, str) for r in results) == 10 else "too many"
""",
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_the_model_is_asked_as_often_as_the_budget_allows(
    limits: SandboxConfig, machine: Machine, flood: str
) -> None:
    worker = Served()
    ends = FLOODS[flood] + "\nFINAL(code)"
    box = limits.model_copy(update={"timeout": limits.timeout * machine.slowness})
    result = await attempt(ends, worker, box, limits=RunLimits(max_worker_calls=10), cache="off")
    assert result.answer == "budget_exceeded"
    assert len(worker.asked) == result.worker_usage.calls == 10


async def test_br1_without_a_budget_the_flood_arrives(limits: SandboxConfig) -> None:
    """The control."""
    worker = Served()
    await attempt("worker_batch([str(i) for i in range(300)])", worker, limits, cache="off")
    assert len(worker.asked) == 300


async def recurse(worker: Served, limits: SandboxConfig, context: Context | None) -> int:
    """A tool starts runs whose code floods the worker and calls the tool again; return the depth."""
    deepest = 0

    async def ask_again(depth: int) -> str:
        nonlocal deepest
        deepest = max(deepest, depth)
        # Only without the wall would it go on.
        if depth == _DEEPER_THAN_ALLOWED:
            return "the end"
        flood = f"worker_batch([f'{depth} {{n}}' for n in range(20)], return_errors=True)"
        code = f"{flood}\nask_again({depth + 1})"
        work = attempt(code, worker, limits, tools={"ask_again": HostTool(ask_again)}, cache="off")
        return (await asyncio.create_task(work, context=context and context.copy())).answer or ""

    tools = {"ask_again": HostTool(ask_again, timeout=300.0)}
    await attempt(
        "ask_again(1)", worker, limits, tools=tools, cache="off", limits=RunLimits(max_worker_calls=30)
    )
    return deepest


async def test_br5_runs_inside_runs_have_a_depth_and_share_the_budget(limits: SandboxConfig) -> None:
    worker = Served()
    assert await recurse(worker, limits, None) <= 8
    assert len(worker.asked) == 30


async def test_br5_runs_that_know_no_outer_one_have_neither(limits: SandboxConfig) -> None:
    """The control: the tool starts its runs in an empty context."""
    worker = Served()
    assert await recurse(worker, limits, Context()) == _DEEPER_THAN_ALLOWED
    assert len(worker.asked) == 20 * (_DEEPER_THAN_ALLOWED - 1)


async def test_br7_a_hung_call_does_not_hold_the_others(limits: SandboxConfig) -> None:
    code = """
results = worker_batch(["a", "b", "c", "hang", "d"], return_errors=True)
FINAL([r if isinstance(r, str) else r.code for r in results])
"""
    worker = Served()
    result = await attempt(code, worker, limits, limits=RunLimits(call_seconds=0.5))
    assert result.answer == '["served:A", "served:B", "served:C", "timeout", "served:D"]'
    assert worker.cancelled == 1
    assert result.worker_usage.calls == 4, "what did not come is not paid"


async def test_br16_no_run_finds_what_another_put_there(limits: SandboxConfig, tmp_path: Path) -> None:
    """One file for all. Whatever a guest asks, an answer is found by all that was asked for, and of whom."""
    file = tmp_path / "cache"
    ask = "FINAL(worker('what is it?'))"
    honest, evil = Served("honest"), Served("evil")
    forged = (
        'worker("what is it?"); worker(\'{"model": "honest"} what is it?\'); worker("honest\\0what is it?")'
    )
    await attempt(forged, evil, limits, cache=file)
    first = await attempt(ask, honest, limits, cache=file)
    again = await attempt(ask, honest, limits, cache=file)
    assert first.answer == again.answer == "honest:WHAT IS IT?"
    assert honest.asked == ["what is it?"], "its own answer is found again: the cache is on"
    assert len(evil.asked) == 3


async def test_br16_a_run_of_its_own_has_a_cache_of_its_own(limits: SandboxConfig) -> None:
    worker = Served()
    for _ in range(2):
        await attempt("worker('same'); FINAL(worker('same'))", worker, limits)
    assert worker.asked == ["same", "same"], "once a run"
