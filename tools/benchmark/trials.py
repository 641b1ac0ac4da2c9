"""Trials of every subject with sessions: the same code measures ours and the peers'."""

from __future__ import annotations

import json
import statistics
import time
from abc import abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, contextmanager

from .subjects import Scale, Session, Subject, Trial, pss

MB = 10**6
_BATCHES = (1, 10, 200, 10_000)

# Timed by the guest's code, since its user sees this time.
_TIME_CALLS = """\
import json, time
found = []
for _ in range({count}):
    start = time.perf_counter()
    {call}
    found.append(time.perf_counter() - start)
print(json.dumps(found))
"""


class Interactive(Subject):
    """A subject with sessions."""

    # Names of the functions that ask a worker for one answer, and for many.
    ask: tuple[str, str] | None = None
    takes_context = False

    @abstractmethod
    def start(self, context: object = "") -> Session:
        """Open a session, with a context only if ``takes_context``."""

    def first_output(self, context: object = "") -> float:
        """Return the seconds until a new session has printed something."""
        start = time.perf_counter()
        session = self.start(context)
        try:
            printed = session.run("print(1)")
            took = time.perf_counter() - start
        finally:
            session.close()
        if printed.strip() != "1":
            raise RuntimeError(f"{self.name} printed {printed[:80]!r} instead of 1")
        return took

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return session_trial(self, metric, scale)


def session_trial(subject: Interactive, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
    """Return the trial of a metric; None if it does not apply."""
    match metric:
        case "open":
            return _open(subject)
        case "execute":
            return _execute(subject)
        case "output":
            return _output(subject)
        case "memory":
            return _memory(subject)
        case "worker" if subject.ask is not None:
            return _worker(subject, subject.ask[0], scale)
        case "batch" if subject.ask is not None:
            return _batch(subject, subject.ask[1], scale)
        case "context" if subject.takes_context:
            return _context(subject, scale)
        case _:
            return None


def text_of(megabytes: float, mark: int = 0) -> str:
    """Return a text of this size. The mark makes it unique."""
    return f"{mark:09d}\n" + "012345678\n" * (int(megabytes * MB) // 10 - 1)


def context_sizes(scale: Scale) -> tuple[float, ...]:
    """Return the sizes of contexts in MB."""
    return (1, 10, 100) if scale.quick else (0.1, 1, 10, 100)


def seconds_of_calls(session: Session, call: str, count: int) -> float:
    """Return the median seconds of ``count`` calls."""
    found: list[float] = json.loads(session.run(_TIME_CALLS.format(call=call, count=count)))
    return statistics.median(found)


@contextmanager
def _open(subject: Interactive) -> Generator[Trial]:
    # The first one reads files from disk, and builds what is built once.
    subject.first_output()
    yield lambda: {"": subject.first_output() * 1e3}


@contextmanager
def _execute(subject: Interactive) -> Generator[Trial]:
    with closing(subject.start()) as session:
        # A warm-up: the first executions are slower.
        session.times("1 + 1", 5)
        yield lambda: {"": statistics.median(session.times("1 + 1", 20)) * 1e3}


@contextmanager
def _output(subject: Interactive) -> Generator[Trial]:
    with closing(subject.start()) as session:
        yield lambda: {
            f"{megabytes} MB": session.times(f"print('x' * {megabytes * MB})", 1)[0] * 1e3
            for megabytes in (1, 50)
        }


@contextmanager
def _worker(subject: Interactive, ask: str, scale: Scale) -> Generator[Trial]:
    with closing(subject.start()) as session:
        seconds_of_calls(session, f"{ask}('x')", 20)
        yield lambda: {"": seconds_of_calls(session, f"{ask}('x')", scale.of(50, 20)) * 1e3}


@contextmanager
def _batch(subject: Interactive, ask: str, scale: Scale) -> Generator[Trial]:
    with closing(subject.start()) as session:
        seconds_of_calls(session, f"{ask}(['x'] * 200)", 3)
        yield lambda: {
            f"{size}": seconds_of_calls(
                session, f"{ask}(['x'] * {size})", max(1, scale.of(1000, 200) // size)
            )
            * 1e3
            for size in _BATCHES
        }


@contextmanager
def _context(subject: Interactive, scale: Scale) -> Generator[Trial]:
    # A new text each time, so that no copy of an earlier one is used again.
    marks = iter(range(10**9))

    def extra_ms(megabytes: float) -> float:
        text = text_of(megabytes, next(marks))
        plain = subject.first_output()
        return (subject.first_output(text) - plain) * 1e3

    subject.first_output()
    yield lambda: {f"str, {megabytes} MB": extra_ms(megabytes) for megabytes in context_sizes(scale)}


@contextmanager
def _memory(subject: Interactive) -> Generator[Trial]:
    with closing(subject.start()) as session:
        session.run("print(1)")
        processes = session.processes()
        yield lambda: {"": pss(processes) / (1 << 20)} if processes else {}
