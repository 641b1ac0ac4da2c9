"""Compares the throughput of vLLM asked from sandboxes with that of ``LLM.chat``.

::

    python -m supdist.tools.bench_vllm MODEL [--engine-args '{"max_model_len": 1024}'] [--trials 5] [--json]

Exits with 1 if an answer differs. tools/README.md describes the trials.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from statistics import median
from typing import Any

from ..engine import Sandbox, SandboxConfig, open_sandbox
from ..engine.broker.broker import open_broker
from ..engine.broker.worker_calls import WorkerCalls
from ..engine.runlog.writer import RunLogger
from ..handlers import Message, ScriptedHandler, VLLMHandler
from .tables import Column, as_text, table, terminal_width

_SANDBOXES, _BATCH, _TURNS, _THREADS = 8, 32, 4, 64
# vLLM's defaults of these differ between ``LLM`` and the asynchronous engine.
_SEQUENCES = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}

_CONFIG = SandboxConfig(pids=256)

_IN_BATCHES = f"""
import json
prompts, answers = context["prompts"], []
for turn in range({_TURNS}):
    answers += worker_batch(prompts[turn * {_BATCH}:(turn + 1) * {_BATCH}])
FINAL(json.dumps(answers))
"""
_IN_TURN = """
import json
FINAL(json.dumps([worker(prompt) for prompt in context["prompts"]]))
"""
_IN_THREADS = """
import json
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(len(context["prompts"])) as pool:
    answers = list(pool.map(worker, context["prompts"]))
FINAL(json.dumps(answers))
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of the trials, in tokens per second, and medians of the trials' ratios.

    Attributes:
        direct: ``LLM.chat``.
        sandboxes: all sandboxes together.
        kept: ratio of sandboxes to direct.
        in_turn: one sandbox, one call after another.
        threads: the same calls from threads.
        gained: ratio of threads to in_turn.
        answers: number compared with ``LLM.chat``.
        different: number of unequal texts.
    """

    direct: float
    sandboxes: float
    kept: float
    in_turn: float
    threads: float
    gained: float
    answers: int
    different: int


class Bench:
    """Both loaded engines, and counts of compared answers."""

    def __init__(self, llm: Any, handler: VLLMHandler, params: Any) -> None:
        self._llm = llm
        self._handler = handler
        self._params = params
        self.answers = self.different = 0

    async def batches(self, trial: int) -> tuple[float, float]:
        """Return tokens per second of ``LLM.chat`` and of the sandboxes."""
        parts = [_prompts(f"{trial}.{number}", _TURNS * _BATCH) for number in range(_SANDBOXES)]
        turns = [slice(turn * _BATCH, (turn + 1) * _BATCH) for turn in range(_TURNS)]
        wanted: dict[str, str] = {}
        tokens = 0
        started = time.perf_counter()
        # Each call of LLM.chat has all prompts that the sandboxes send at once.
        for turn in turns:
            prompts = [prompt for part in parts for prompt in part[turn]]
            texts, written = await asyncio.to_thread(self._chat, prompts)
            wanted.update(zip(prompts, texts, strict=True))
            tokens += written
        direct = tokens / (time.perf_counter() - started)
        async with AsyncExitStack() as stack:
            sandboxes = [await stack.enter_async_context(self._sandbox(part)) for part in parts]
            started = time.perf_counter()
            answers = await asyncio.gather(*(_run(sandbox, _IN_BATCHES) for sandbox, _ in sandboxes))
            seconds = time.perf_counter() - started
            ours = sum(calls.model.usage.output_tokens for _, calls in sandboxes) / seconds
        # Answers are greedy, so both ways should write the same text. In 16 bits a few can differ:
        # vLLM rounds differently in batches of another size.
        for prompt, answer in (
            (p, a) for part, own in zip(parts, answers, strict=True) for p, a in zip(part, own, strict=True)
        ):
            self.answers += 1
            self.different += wanted[prompt] != answer
        return direct, ours

    async def threads(self, trial: int) -> tuple[float, float]:
        """Return tokens per second of calls in turn, and of calls from threads."""
        found: list[float] = []
        # Each way has prompts of its own, so that no answer comes from vLLM's prefix cache.
        for name, code in (("in turn", _IN_TURN), ("threads", _IN_THREADS)):
            async with self._sandbox(_prompts(f"{trial} {name}", _THREADS)) as (sandbox, calls):
                started = time.perf_counter()
                await _run(sandbox, code)
                found.append(calls.model.usage.output_tokens / (time.perf_counter() - started))
        return found[0], found[1]

    def _chat(self, prompts: list[str]) -> tuple[list[str], int]:
        chats: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = [each.outputs[0] for each in self._llm.chat(chats, self._params, use_tqdm=False)]
        return [answer.text for answer in answers], sum(len(answer.token_ids) for answer in answers)

    @asynccontextmanager
    async def _sandbox(self, prompts: list[str]) -> AsyncGenerator[tuple[Sandbox, WorkerCalls]]:
        # A broker for each sandbox, as in a run.
        log = RunLogger(None, "bench")
        async with (
            open_broker(ScriptedHandler([]), self._handler, log) as broker,
            open_sandbox(
                _CONFIG,
                context={"prompts": prompts},
                on_call=broker.worker_calls.answer if broker.worker_calls else None,
            ) as sandbox,
        ):
            assert broker.worker_calls is not None
            yield sandbox, broker.worker_calls


async def measure(model: str, engine_args: dict[str, Any], max_tokens: int, trials: int) -> Figures:
    """Load the model twice and compare.

    Raises:
        HandlerError: vLLM does not start.
        ValueError: a worker call failed.
    """
    arguments = _SEQUENCES | engine_args
    handler = VLLMHandler(model, temperature=0, max_tokens=max_tokens, engine_args=arguments)
    async with handler:
        vllm: Any = import_module("vllm")
        llm = await asyncio.to_thread(lambda: vllm.LLM(model=model, **arguments))
        bench = Bench(llm, handler, vllm.SamplingParams(temperature=0, max_tokens=max_tokens))
        # The ways take turns, so that other load slows both. The first trial warms up.
        batches = [await bench.batches(trial) for trial in range(trials + 1)][1:]
        threads = [await bench.threads(trial) for trial in range(trials + 1)][1:]
    return Figures(
        direct=median(direct for direct, _ in batches),
        sandboxes=median(ours for _, ours in batches),
        kept=median(ours / direct for direct, ours in batches),
        in_turn=median(in_turn for in_turn, _ in threads),
        threads=median(at_once for _, at_once in threads),
        gained=median(at_once / in_turn for in_turn, at_once in threads),
        answers=bench.answers,
        different=bench.different,
    )


def _prompts(name: str, number: int) -> list[str]:
    return [f"{name}: which sentence answers question {each}? " + "word " * 20 for each in range(number)]


async def _run(sandbox: Sandbox, code: str) -> list[str]:
    result = await sandbox.execute(code)
    if result.final is None:
        raise ValueError(f"the sandbox's code ended with {result.outcome}: {result.stderr[-500:]}")
    return json.loads(result.final)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench_vllm", description="Compare sandboxes with LLM.chat.")
    parser.add_argument("model", help="a name or a path, as vLLM takes it")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="JSON, for both engines")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    figures = asyncio.run(
        measure(arguments.model, arguments.engine_args, arguments.max_tokens, arguments.trials)
    )
    if arguments.json:
        print(json.dumps(asdict(figures)))
    else:
        _print(figures)
    sys.exit(1 if figures.different else 0)


def _print(figures: Figures) -> None:
    same = figures.answers - figures.different
    print(f"{same} of {figures.answers} answers are the same text as LLM.chat's")
    # Each ratio is to the row above.
    rows = (
        (f"LLM.chat, {_SANDBOXES * _BATCH} prompts a call", figures.direct, None),
        (f"{_SANDBOXES} sandboxes, worker_batch of {_BATCH}", figures.sandboxes, figures.kept),
        (f"{_THREADS} calls one after another", figures.in_turn, None),
        (f"{_THREADS} calls from {_THREADS} threads", figures.threads, figures.gained),
    )
    columns: tuple[Column[tuple[str, float, float | None]], ...] = (
        Column("calls", lambda row: row[0], left=True),
        Column("tokens/s", lambda row: f"{row[1]:.0f}"),
        Column("ratio", lambda row: "" if row[2] is None else f"{row[2]:.2f}"),
    )
    print(as_text(table(columns, rows), terminal_width()))


if __name__ == "__main__":
    main()
