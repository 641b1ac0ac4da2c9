"""Trials that hold for whatever has sessions: ours and the peers' are measured by the same code."""

from __future__ import annotations

import json
import statistics
import time
from abc import abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, contextmanager

from .subjects import Scale, Session, Subject, Trial, pss

MB = 10**6
BATCHES = (1, 10, 200, 10_000)

_TIMES = """\
import json, time
found = []
for _ in range({count}):
    start = time.perf_counter()
    {call}
    found.append(time.perf_counter() - start)
print(json.dumps(found))
"""


class Interactive(Subject):
    """A subject with sessions.

    Attributes:
        ask: how its code asks the worker for one answer and for many, where it can.
        takes_context: whether it brings a document into the session.
    """

    ask: tuple[str, str] | None = None
    takes_context = False

    @abstractmethod
    def start(self, context: object = "") -> Session:
        """Open a session; with a context only where it takes one."""

    def first_output(self, context: object = "") -> float:
        """Seconds from the order for a session to the output of its first piece of code; it is closed thereafter."""
        start = time.perf_counter()
        session = self.start(context)
        try:
            printed = session.run("print(1)")
            took = time.perf_counter() - start
        finally:
            session.close()
        if printed.strip() != "1":
            raise RuntimeError(f"{self.name} printed {printed[:80]!r}")
        return took

    def trial(self, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
        """See ``Subject.trial``."""
        return of_sessions(self, metric, scale)


def of_sessions(subject: Interactive, metric: str, scale: Scale) -> AbstractContextManager[Trial] | None:
    """What measures the metric with sessions of the subject; None where it cannot be."""
    match metric:
        case "open":
            return _opening(subject)
        case "execute":
            return _executing(subject)
        case "output":
            return _printing(subject)
        case "memory":
            return _resting(subject)
        case "worker" if subject.ask is not None:
            return _asking(subject, subject.ask[0], scale)
        case "batch" if subject.ask is not None:
            return _asking_many(subject, subject.ask[1], scale)
        case "context" if subject.takes_context:
            return _bringing(subject, scale)
        case _:
            return None


def text_of(megabytes: float, mark: int = 0) -> str:
    """A text of so many megabytes; an object of its own, whatever was made before."""
    return f"{mark:09d}\n" + "012345678\n" * (int(megabytes * MB) // 10 - 1)


def sizes(scale: Scale) -> tuple[float, ...]:
    """Of contexts, in MB."""
    return (1, 10, 100) if scale.quick else (0.1, 1, 10, 100)


def seconds_of_calls(session: Session, call: str, count: int) -> float:
    """Seconds that a call takes, measured by the code that makes it: the median of so many."""
    found: list[float] = json.loads(session.run(_TIMES.format(call=call, count=count)))
    return statistics.median(found)


@contextmanager
def _opening(subject: Interactive) -> Generator[Trial]:
    subject.first_output()  # files of the disk, and what is built once
    yield lambda: {"": subject.first_output() * 1e3}


@contextmanager
def _executing(subject: Interactive) -> Generator[Trial]:
    with closing(subject.start()) as session:
        session.times("1 + 1", 5)
        yield lambda: {"": statistics.median(session.times("1 + 1", 20)) * 1e3}


@contextmanager
def _printing(subject: Interactive) -> Generator[Trial]:
    with closing(subject.start()) as session:
        yield lambda: {
            f"{megabytes} MB": session.times(f"print('x' * {megabytes * MB})", 1)[0] * 1e3
            for megabytes in (1, 50)
        }


@contextmanager
def _asking(subject: Interactive, ask: str, scale: Scale) -> Generator[Trial]:
    with closing(subject.start()) as session:
        seconds_of_calls(session, f"{ask}('x')", 20)
        yield lambda: {"": seconds_of_calls(session, f"{ask}('x')", scale.of(50, 20)) * 1e3}


@contextmanager
def _asking_many(subject: Interactive, ask: str, scale: Scale) -> Generator[Trial]:
    with closing(subject.start()) as session:
        seconds_of_calls(session, f"{ask}(['x'] * 200)", 3)
        yield lambda: {
            f"{size}": seconds_of_calls(
                session, f"{ask}(['x'] * {size})", max(1, scale.of(1000, 200) // size)
            )
            * 1e3
            for size in BATCHES
        }


@contextmanager
def _bringing(subject: Interactive, scale: Scale) -> Generator[Trial]:
    marks = iter(range(10**9))

    def more(megabytes: float) -> float:
        text = text_of(megabytes, next(marks))
        plain = subject.first_output()
        return (subject.first_output(text) - plain) * 1e3

    subject.first_output()
    yield lambda: {f"str, {megabytes} MB": more(megabytes) for megabytes in sizes(scale)}


@contextmanager
def _resting(subject: Interactive) -> Generator[Trial]:
    with closing(subject.start()) as session:
        session.run("print(1)")
        processes = session.processes()
        yield lambda: {"": pss(processes) / (1 << 20)} if processes else {}
