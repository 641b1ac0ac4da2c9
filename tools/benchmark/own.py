"""Trials of what only our own sandboxes have, or what is asked of them in another way."""

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
from .ours import CONFIG, Many, OurSessions, checked, execute_times, open_seconds, processes_in_use
from .subjects import Figures, Scale, Trial, processor_ns, pss

_FOREVER = "while True: pass"
_DEAF = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{_FOREVER}"
_SECONDS = 0.1
_CORES = os.cpu_count() or 1


@contextmanager
def _asking_many(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    """As of every subject, and with a model that takes many conversations at once."""
    count = scale.of(10, 3)
    each = trials.of_sessions(ours, "batch", scale)
    assert each is not None
    with each as trial, closing(ours.start(worker=Many())) as session:
        call = "worker_batch(['x'] * 200)"
        yield lambda: {
            **trial(),
            "200, chat_batch": trials.seconds_of_calls(session, call, count) * 1e3,
        }


@contextmanager
def _bringing(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    ours.first_output()
    marks = iter(range(10**9))

    def more() -> Figures:
        found: dict[str, float] = {}
        ours.first_output()  # what the round before took, 100 MB several times, is given back by now
        for size in trials.sizes(scale):
            text = trials.text_of(size, next(marks))
            plain, once, again = (ours.first_output(context) for context in ("", text, text))
            found |= {f"str, {size} MB": once - plain, f"str, {size} MB, again": again - plain}
            if size <= scale.of(100, 10):
                lines = [f"{line:0999d}" for line in range(int(size * 1000))]
                found[f"list, {size} MB"] = ours.first_output(lines) - plain
                found[f"dict, {size} MB"] = (
                    ours.first_output(dict(zip(map(str, range(len(lines))), lines, strict=True))) - plain
                )
        return {name: seconds * 1e3 for name, seconds in found.items()}

    yield more


@contextmanager
def _beside(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    with closing(ours.start()) as bare, closing(ours.start(trials.text_of(100))) as laden:
        sessions = {"0 MB": bare, "100 MB": laden}
        yield lambda: {
            name: statistics.median(session.times("1 + 1", 20)) * 1e3 for name, session in sessions.items()
        }


@contextmanager
def _cycling(ours: OurSessions, scale: Scale) -> Generator[Trial]:
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
def _resting(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    yield lambda: {"": _mib_of_one(ours, scale.of(20, 4))}


@contextmanager
def _dense(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    yield lambda: {"": 1024 / _mib_of_one(ours, scale.of(20, 4))}


def _mib_of_one(ours: OurSessions, count: int) -> float:
    """What one of so many idle sandboxes holds in memory: shim, init and repl."""

    async def measure() -> float:
        async with AsyncExitStack() as stack:
            for sandbox in await _open(stack, count):
                checked(await sandbox.execute("print(1)"))
            found = processes_in_use()
            if len(found) != count:
                raise RuntimeError(f"{len(found)} sandboxes are in use, and not {count}")
            return pss([pid for each in found for pid in each.values()]) / count / (1 << 20)

    return ours.wait(measure())


@contextmanager
def _stopping(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    yield lambda: {
        "interrupted": ours.wait(_interrupt_seconds()) * 1e3,
        "timed out": ours.wait(_overtime(_FOREVER, 0.0)) * 1e3,
        "killed": ours.wait(_overtime(_DEAF, _SECONDS)) * 1e3,
    }


async def _interrupt_seconds() -> float:
    """From the order to stop a cell to its result."""
    begun = asyncio.Event()

    async def answer(call: WorkerCall) -> Sequence[str | CallError]:
        begun.set()
        return [""] * len(call.prompts)

    async with open_sandbox(CONFIG, on_call=answer) as sandbox:
        cell = asyncio.ensure_future(sandbox.execute(f"worker('begun')\n{_FOREVER}"))
        await asyncio.wait_for(begun.wait(), CONFIG.start_timeout)
        await asyncio.sleep(_SECONDS)  # into its loop
        start = time.perf_counter()
        await sandbox.interrupt()
        result = await cell
        took = time.perf_counter() - start
    checked(result, Outcome.KILLED)
    return took


async def _overtime(code: str, grace: float) -> float:
    """Seconds by which a cell that never ends is over its time, and the grace where it hears of no interrupt."""
    config = CONFIG.model_copy(update={"grace": grace or CONFIG.grace})
    async with open_sandbox(config) as sandbox:
        start = time.perf_counter()
        result = await sandbox.execute(code, timeout=_SECONDS)
        took = time.perf_counter() - start
    if checked(result, Outcome.TIMEOUT).state_lost != (grace > 0):
        raise RuntimeError("a cell that hears of interrupts was killed, or one that does not was not")
    return took - _SECONDS - grace


async def _open(stack: AsyncExitStack, count: int) -> list[Sandbox]:
    return [await stack.enter_async_context(open_sandbox(CONFIG)) for _ in range(count)]


@contextmanager
def _crowding(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    counts = (1, 8) if scale.quick else (1, 8, 64, 200)
    yield lambda: ours.wait(_grow(counts, scale.of(100, 40)))


async def _grow(counts: Sequence[int], cells: int) -> Figures:
    """One crowd after another, each the last one with more; at least so many cells of each."""
    found: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        crowd: list[Sandbox] = []
        for count in counts:
            crowd += await _open(stack, count - len(crowd))
            one = await execute_times(crowd[0], "1 + 1", cells)
            each = await asyncio.gather(
                *(execute_times(sandbox, "1 + 1", max(3, cells // count)) for sandbox in crowd)
            )
            for busy, times in (("one", one), ("all", [seconds for some in each for seconds in some])):
                found[live(count, busy, "p50")] = quantile(times, 0.5) * 1e3
                found[live(count, busy, "p95")] = quantile(times, 0.95) * 1e3
    return found


@contextmanager
def _working(ours: OurSessions, scale: Scale) -> Generator[Trial]:
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
    """Microseconds for which each process ran, of which the work is so many times the same."""
    processes = {"engine": os.getpid(), **pids}
    before = {name: processor_ns(pid) for name, pid in processes.items()}
    work()
    return {
        f"{what}: {name}": (processor_ns(pid) - before[name]) / count / 1e3 for name, pid in processes.items()
    }


@contextmanager
def _starting(ours: OurSessions, scale: Scale) -> Generator[Trial]:
    quickstart = Path(tasks.__path__[0], "examples", "quickstart", "task.json")
    engine = ["-m", "supdist.engine"]
    programs = {
        "python -c pass": ["-c", "pass"],
        "import supdist.engine.run": ["-c", "from supdist.engine import run"],
        "supdist-engine --help": [*engine, "--help"],
        "run quickstart": [*engine, "run", str(quickstart)],
    }
    keys = ("TOGETHER_API_KEY", "OPENAI_API_KEY")  # without one, the builtin models answer
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
    "batch": _asking_many,
    "context": _bringing,
    "beside": _beside,
    "cycle": _cycling,
    "memory": _resting,
    "density": _dense,
    "stop": _stopping,
    "live": _crowding,
    "cpu": _working,
    "cli": _starting,
}


class Ours(OurSessions):
    """Our sandboxes, with the trials that they alone have."""

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return TRIALS[metric](self, scale) if metric in TRIALS else super().trial(metric, scale)
