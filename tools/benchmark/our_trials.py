"""Trials of our sandboxes alone."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, closing, contextmanager
from pathlib import Path

from ... import tasks
from ...engine import Outcome, Sandbox, open_sandbox
from ...engine.sandbox import CallError, WorkerCall
from . import trials
from .figures import quantile
from .metrics import live
from .ours import (
    CONFIG,
    InstantBatchModel,
    OurSessions,
    checked,
    execute_times,
    open_seconds,
    processes_in_use,
)
from .subjects import Figures, Scale, Trial, processor_ns, pss

_ENDLESS = "while True: pass"
_IGNORES_INTERRUPTS = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{_ENDLESS}"
_SECONDS = 0.1
_CORES = os.cpu_count() or 1
_LINE_BYTES = 1000


@contextmanager
def _batch(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    count = scale.of(10, 3)
    common = trials.session_trial(ours, "batch", scale)
    assert common is not None
    with common as trial, closing(ours.start(worker=InstantBatchModel())) as session:
        call = "worker_batch(['x'] * 200)"
        yield lambda: {
            **trial(),
            "200, chat_batch": trials.seconds_of_calls(session, call, count) * 1e3,
        }


@contextmanager
def _context(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    ours.first_output()
    # A new text each round: one that was given before is shared, which `again` measures.
    marks = iter(range(10**9))

    def extra_ms() -> Figures:
        found: dict[str, float] = {}
        # Until this one is open, the memory of the round before (several times 100 MB) has been freed.
        ours.first_output()
        for size in trials.context_sizes(scale):
            text = trials.text_of(size, next(marks))
            plain, once, again = (ours.first_output(context) for context in ("", text, text))
            found |= {f"str, {size} MB": once - plain, f"str, {size} MB, again": again - plain}
            if size <= scale.of(100, 10):
                lines = [
                    f"{line:0{_LINE_BYTES - 1}d}" for line in range(int(size * trials.MB) // _LINE_BYTES)
                ]
                found[f"list, {size} MB"] = ours.first_output(lines) - plain
                by_number = dict(zip(map(str, range(len(lines))), lines, strict=True))
                found[f"dict, {size} MB"] = ours.first_output(by_number) - plain
        return {name: seconds * 1e3 for name, seconds in found.items()}

    yield extra_ms


@contextmanager
def _beside(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    with closing(ours.start()) as empty, closing(ours.start(trials.text_of(100))) as full:
        sessions = {"0 MB": empty, "100 MB": full}
        yield lambda: {
            name: statistics.median(session.times("1 + 1", 20)) * 1e3 for name, session in sessions.items()
        }


@contextmanager
def _cycle(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    count = scale.of(40, 8)

    async def rate(at_once: int) -> float:
        async def some() -> None:
            for _ in range(count // at_once):
                await open_seconds()

        start = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(at_once)))
        return count // at_once * at_once / (time.perf_counter() - start)

    yield lambda: {
        "one after another": ours.wait(rate(1)),
        "as many at once as cores": ours.wait(rate(min(_CORES, count))),
    }


@contextmanager
def _memory(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    yield lambda: {"": _idle_mib(ours, scale.of(20, 4))}


@contextmanager
def _density(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    yield lambda: {"": 1024 / _idle_mib(ours, scale.of(20, 4))}


def _idle_mib(ours: OurSessions, count: int) -> float:
    """Return the mean memory of ``count`` idle sandboxes in MiB."""

    async def measure() -> float:
        async with AsyncExitStack() as stack:
            for sandbox in await _open(stack, count):
                checked(await sandbox.execute("print(1)"))
            # The sandbox that is built ahead is not counted.
            found = processes_in_use()
            if len(found) != count:
                raise RuntimeError(f"found the processes of {len(found)} sandboxes instead of {count}")
            return pss([pid for each in found for pid in each.values()]) / count / (1 << 20)

    return ours.wait(measure())


@contextmanager
def _stop(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    yield lambda: {
        "interrupted": ours.wait(_interrupt_seconds()) * 1e3,
        "timed out": ours.wait(_overtime(_ENDLESS, 0.0)) * 1e3,
        "killed": ours.wait(_overtime(_IGNORES_INTERRUPTS, _SECONDS)) * 1e3,
    }


async def _interrupt_seconds() -> float:
    """Return the seconds from an interrupt to the result of the cell."""
    called = asyncio.Event()

    async def answer(call: WorkerCall) -> Sequence[str | CallError]:
        called.set()
        return [""] * len(call.prompts)

    async with open_sandbox(CONFIG, on_call=answer) as sandbox:
        cell = asyncio.ensure_future(sandbox.execute(f"worker('started')\n{_ENDLESS}"))
        await asyncio.wait_for(called.wait(), CONFIG.start_timeout)
        # Until the cell is in its loop.
        await asyncio.sleep(_SECONDS)
        start = time.perf_counter()
        await sandbox.interrupt()
        result = await cell
        took = time.perf_counter() - start
    checked(result, Outcome.KILLED)
    return took


async def _overtime(code: str, grace: float) -> float:
    """Return the seconds by which an endless cell exceeds its timeout and grace."""
    config = CONFIG.model_copy(update={"grace": grace or CONFIG.grace})
    async with open_sandbox(config) as sandbox:
        start = time.perf_counter()
        result = await sandbox.execute(code, timeout=_SECONDS)
        took = time.perf_counter() - start
    # A cell that ignores interrupts is killed after the grace, and its state is lost.
    if checked(result, Outcome.TIMEOUT).state_lost != (grace > 0):
        raise RuntimeError(
            "a cell was killed although it can be interrupted, or interrupted although it cannot"
        )
    return took - _SECONDS - grace


async def _open(stack: AsyncExitStack, count: int) -> list[Sandbox]:
    return [await stack.enter_async_context(open_sandbox(CONFIG)) for _ in range(count)]


@contextmanager
def _live(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    counts = (1, 8) if scale.quick else (1, 8, 64, 200)
    yield lambda: ours.wait(_execute_among(counts, scale.of(100, 40)))


async def _execute_among(counts: Sequence[int], cells: int) -> Figures:
    """Return times of ``execute`` with each number of open sandboxes."""
    found: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        sandboxes: list[Sandbox] = []
        for count in counts:
            sandboxes += await _open(stack, count - len(sandboxes))
            one = await execute_times(sandboxes[0], "1 + 1", cells)
            each = await asyncio.gather(
                *(execute_times(sandbox, "1 + 1", max(3, cells // count)) for sandbox in sandboxes)
            )
            for busy, times in (("one", one), ("all", [seconds for some in each for seconds in some])):
                found[live(count, busy, "p50")] = quantile(times, 0.5) * 1e3
                found[live(count, busy, "p95")] = quantile(times, 0.95) * 1e3
    return found


@contextmanager
def _cpu(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    calls, cells = scale.of(500, 100), scale.of(200, 50)
    with closing(ours.start()) as session:
        (pids,) = processes_in_use()
        yield lambda: {
            **_processor_us(
                lambda: session.run(f"for _ in range({calls}): worker('x')"), pids, calls, "worker call"
            ),
            **_processor_us(lambda: session.times("1 + 1", cells), pids, cells, "execute"),
        }


def _processor_us(work: Callable[[], object], pids: dict[str, int], count: int, what: str) -> Figures:
    """Return the microseconds of each process for one of ``count`` repetitions."""
    processes = {"engine": os.getpid(), **pids}
    before = {name: processor_ns(pid) for name, pid in processes.items()}
    work()
    return {
        f"{what}: {name}": (processor_ns(pid) - before[name]) / count / 1e3 for name, pid in processes.items()
    }


@contextmanager
def _cli(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    quickstart = Path(tasks.__path__[0], "examples", "quickstart", "task.json")
    engine = ["-m", "supdist.engine"]
    programs = {
        "python -c pass": ["-c", "pass"],
        "import supdist.engine.run": ["-c", "from supdist.engine import run"],
        "supdist-engine --help": [*engine, "--help"],
        "run quickstart": [*engine, "run", str(quickstart)],
    }
    # Without a key, the builtin models answer.
    keys = ("TOGETHER_API_KEY", "OPENAI_API_KEY")
    environment = {name: value for name, value in os.environ.items() if name not in keys}

    def seconds(arguments: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            capture_output=True,
            cwd=folder,
            env=environment,
            timeout=120,
        )
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        yield lambda: {name: seconds(arguments) for name, arguments in programs.items()}


TRIALS: dict[str, Callable[[OurSessions, Scale], AbstractContextManager[Trial]]] = {
    "batch": _batch,
    "context": _context,
    "beside": _beside,
    "cycle": _cycle,
    "memory": _memory,
    "density": _density,
    "stop": _stop,
    "live": _live,
    "cpu": _cpu,
    "cli": _cli,
}


class OurSubject(OurSessions):
    """Our sandboxes, with the trials that only they have."""

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return TRIALS[metric](self, scale) if metric in TRIALS else super().trial(metric, scale)
