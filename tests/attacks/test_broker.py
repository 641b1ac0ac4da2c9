"""Group 16: worker calls. What is counted is what the host's own function saw."""

from __future__ import annotations

import asyncio
import random

import pytest
from attacks.lab import RAW, Arena, assert_alive, timed
from support import block

from supdist.engine import Outcome, SandboxConfig, arun
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import Completion, Message, ModelHandler, ScriptedHandler, Usage


class Counter:
    """Answers everything, and counts."""

    def __init__(self, delay: float = 0.0) -> None:
        self.prompts: list[str] = []
        self.cancelled = 0
        self._delay = delay

    async def __call__(self, call: WorkerCall) -> list[str | CallError]:
        self.prompts += call.prompts
        try:
            await asyncio.sleep(self._delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [prompt.upper() for prompt in call.prompts]


CHOICES = {
    "BR3-model": "send(22, 1, cell, ['x'], 'gpt-expensive')",
    "BR3-map": "send(22, 1, cell, [{'role': 'system', 'content': 'x'}])",
    "BR3-options": "send(22, 1, cell, ['x'], {'temperature': 2, 'base_url': 'http://127.0.0.1',"
    " 'max_tokens': 10**9})",
    "BR3-nested": "send(22, 1, cell, [['x', {'tools': []}]])",
}


@pytest.mark.parametrize("choice", CHOICES)
async def test_a_guest_chooses_nothing_but_the_prompt(arena: Arena, choice: str) -> None:
    count = Counter()
    async with arena.open(on_call=count) as sandbox:
        result = await timed(sandbox, RAW + CHOICES[choice] + "\nimport time; time.sleep(60)", within=2)
    assert result.outcome is Outcome.PROTOCOL_VIOLATION
    assert count.prompts == []


async def test_br3_the_library_has_no_such_parameter(arena: Arena) -> None:
    code = """
for options in ({"model": "x"}, {"base_url": "x"}, {"headers": {}},
                {"temperature": 2}, {"max_tokens": 5}, {"tools": []}):
    for ask in (lambda: worker("x", **options), lambda: worker_batch(["x"], **options)):
        try: ask(); print("did")
        except TypeError: pass
print(worker("x"))
"""
    count = Counter()
    async with arena.open(on_call=count) as sandbox:
        result = await timed(sandbox, code)
    assert (result.stdout, count.prompts) == ("X\n", ["x"])


TOO_MUCH = {
    "BR4-huge": "try: worker('x' * (100 << 20))\nexcept WorkerError as error: print(error.code)",
    "BR4-many": "r = worker_batch(['x'] * 100_000, return_errors=True); print(len(r))",
    "BR4-empty": "print(worker_batch([]))",
    "BR4-endless": "import itertools\ntry: worker_batch(itertools.repeat('x'))\n"
    "except (MemoryError, TypeError) as error: print(type(error).__name__)",
}


@pytest.mark.parametrize("much", TOO_MUCH)
async def test_too_much_is_refused_or_cut_into_bearable_pieces(arena: Arena, much: str) -> None:
    arena.most_growth = 96 << 20
    count = Counter()
    async with arena.open(on_call=count, prompt="64KiB", calls_per_second=1_000_000) as sandbox:
        result = await timed(sandbox, TOO_MUCH[much], timeout=5, within=8)
    assert type(result.outcome) is Outcome
    assert all(len(prompt) <= 64 << 10 for prompt in count.prompts)
    if much == "BR4-huge":
        assert (result.stdout, count.prompts) == ("too_long\n", [])


RAW_TOO_MUCH = {
    "BR4-raw-long": "send(22, 1, cell, ['x' * 65_537])",
    "BR4-raw-wide": "send(22, 1, cell, ['é' * 40_000])",
    "BR4-raw-many": "send(22, 1, cell, ['x'] * 1025)",
}


@pytest.mark.parametrize("much", RAW_TOO_MUCH)
async def test_past_the_library_too_much_is_a_breach(arena: Arena, much: str) -> None:
    count = Counter()
    async with arena.open(on_call=count, prompt="64KiB") as sandbox:
        result = await timed(sandbox, RAW + RAW_TOO_MUCH[much] + "\nimport time; time.sleep(60)", within=2)
    assert result.outcome is Outcome.PROTOCOL_VIOLATION
    assert count.prompts == []


async def test_br6_batches_from_many_threads_do_not_wait_for_each_other(arena: Arena) -> None:
    """32 batches of 32, eight at a time, and four calls answered at once."""
    running, gate = 0, asyncio.Semaphore(4)

    async def answer(call: WorkerCall) -> list[str | CallError]:
        nonlocal running
        results: list[str | CallError] = []
        for prompt in call.prompts:
            async with gate:
                running += 1
                assert running <= 4
                await asyncio.sleep(0.0005)
                running -= 1
                results.append(prompt.upper())
        return results

    code = """
from concurrent.futures import ThreadPoolExecutor
def one(thread):
    prompts = [f"t{thread}-{i}" for i in range(32)]
    return worker_batch(prompts) == [prompt.upper() for prompt in prompts]
with ThreadPoolExecutor(8) as pool: print(sum(pool.map(one, range(32))))
"""
    async with arena.open(on_call=answer, calls_per_second=1_000_000) as sandbox:
        result = await timed(sandbox, code, timeout=4, within=10)
    assert result.stdout == "32\n", result


async def test_br8_answers_keep_their_places(arena: Arena) -> None:
    dice = random.Random(8)

    async def answer(call: WorkerCall) -> list[str | CallError]:
        await asyncio.sleep(dice.random() * 0.05)
        return [
            CallError("refused", "no") if prompt.endswith("7") else f"<{prompt}>" for prompt in call.prompts
        ]

    code = """
results = worker_batch([str(i) for i in range(2000)], return_errors=True)
print(all(r.code == "refused" if i % 10 == 7 else r == f"<{i}>" for i, r in enumerate(results)))
"""
    async with arena.open(on_call=answer, calls_per_second=1_000_000, batch=16) as sandbox:
        result = await timed(sandbox, code, timeout=4, within=10)
    assert result.stdout == "True\n"


async def test_br9_an_interrupted_batch_is_cancelled_and_not_billed_later(arena: Arena) -> None:
    count = Counter(delay=1.0)
    async with arena.open(on_call=count) as sandbox:
        task = asyncio.create_task(sandbox.execute("worker_batch([str(i) for i in range(10)])"))
        while not count.prompts:
            await asyncio.sleep(0.01)
        await sandbox.interrupt()
        result = await task
        assert result.outcome is Outcome.KILLED
        assert count.cancelled >= 1
        asked = len(count.prompts)
        after = await timed(sandbox, "print(worker('x'))", within=4)
        assert after.stdout == "X\n", "its reply is its own, not a late one"
        assert len(count.prompts) == asked + 1


async def test_br9_the_ledger_is_what_the_model_served(arena: Arena, limits: SandboxConfig) -> None:
    class Slow(ModelHandler):
        model = "slow"
        served = 0

        async def chat(self, messages: list[Message]) -> Completion:  # pyright: ignore[reportIncompatibleMethodOverride]  # a user may annotate a narrower type
            await asyncio.sleep(0.3 if messages[-1]["content"] == "slow" else 0)
            Slow.served += 1
            return Completion("answer", Usage(1, 1, 1))

    code = """
import threading, time
worker_batch(["a", "b", "c"])
threading.Thread(target=lambda: worker_batch(["slow"] * 5), daemon=True).start()
time.sleep(0.1)
FINAL("done")
"""
    result = await arun(
        query="q", context="c", sandbox=limits,
        supervisor=ScriptedHandler([block(code)]), worker=Slow(),
    )  # fmt: skip
    await asyncio.sleep(0.5)
    assert result.answer == "done"
    assert result.worker_usage.calls == Slow.served == 3


async def test_br14_a_close_during_a_call_leaves_no_task(arena: Arena) -> None:
    count = Counter(delay=60)
    tasks = len(asyncio.all_tasks())
    async with arena.open(on_call=count) as sandbox:
        task = asyncio.create_task(sandbox.execute("worker('x')"))
        while not count.prompts:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await sandbox.close()
        assert (await task).outcome is Outcome.KILLED
    assert count.cancelled == 1
    assert len(asyncio.all_tasks()) <= tasks


async def test_br14_a_guest_that_dies_during_a_call_cancels_it(arena: Arena) -> None:
    count = Counter(delay=60)
    code = (
        "import threading, os, time\nthreading.Thread(target=worker, args=('x',)).start()\n"
        "time.sleep(0.2)\nos._exit(1)"
    )
    async with arena.open(on_call=count) as sandbox:
        result = await timed(sandbox, code, within=3)
        assert result.outcome is Outcome.CRASHED
        await asyncio.sleep(0.1)
        assert count.cancelled == 1
        await sandbox.reset()
        await assert_alive(sandbox)
