"""The metrics and their goals. Medians are compared with goals; nothing is asserted."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "supdist-engine"
BWRAP = "bwrap python -I -c"
IPYKERNEL = "ipykernel"
RLM = "rlm local"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of the median of a variant.

    Attributes:
        bound: in the metric's unit, or of a ratio.
        peer: divides our figure by this peer's.
        than: divides our figure by ours of this variant.
    """

    variant: str
    bound: float
    peer: str = ""
    than: str | None = None
    at_least: bool = False

    def is_met(self, figure: float) -> bool:
        """Return whether the figure is on the right side of the bound."""
        return figure >= self.bound if self.at_least else figure <= self.bound


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity that is measured in rounds: so many, or with ``--quick`` fewer."""

    name: str
    title: str
    unit: str
    rounds: int
    quick: int
    goals: tuple[Goal, ...] = ()


def live(count: int, busy: str, part: str) -> str:
    """Return the variant of ``live``: ``count`` sandboxes, ``one`` or ``all`` executing, p50 or p95."""
    return f"{count}, {busy} executing, {part}"


# No test asserts a goal: half of a figure is the machine.
METRICS = (
    Metric("floor", "round trip between two processes", "µs", 15, 3),
    Metric("open", "open to first output", "ms", 25, 3, (Goal("", 15), Goal("", 1.0, peer=BWRAP))),
    Metric("execute", "execute", "ms", 25, 3, (Goal("", 0.5), Goal("", 1 / 8, peer=IPYKERNEL))),
    Metric("worker", "worker call", "ms", 25, 3, (Goal("", 0.5), Goal("", 1.1, peer=RLM))),
    Metric("batch", "worker_batch of", "ms", 15, 1, (Goal("200", 1.5), Goal("200", 0.25, peer=RLM))),
    Metric(
        "context",
        "more at open, with a context of",
        "ms",
        9,
        1,
        (
            Goal("str, 10 MB", 17),
            Goal("str, 10 MB", 0.5, peer=RLM),
            Goal("str, 10 MB, again", 7),
            Goal("str, 100 MB", 170),
            Goal("str, 100 MB", 0.5, peer=RLM),
            Goal("str, 100 MB, again", 70),
        ),
    ),
    Metric("beside", "execute beside a context of", "ms", 25, 3, (Goal("100 MB", 1.1, than="0 MB"),)),
    Metric("output", "execute that prints", "ms", 9, 1),
    Metric("cycle", "open, run, close", "/s", 9, 1, (Goal("as many at once as cores", 80, at_least=True),)),
    Metric("memory", "PSS of an idle session", "MiB", 5, 1, (Goal("", 10), Goal("", 0.2, peer=IPYKERNEL))),
    Metric("density", "sessions live in a GiB", "/GiB", 5, 1),
    Metric("stop", "order or deadline to the result of a cell that is", "ms", 9, 2, (Goal("killed", 50),)),
    Metric(
        "live",
        "execute, with sandboxes live:",
        "ms",
        5,
        1,
        (Goal(live(200, "one", "p95"), 2.0, than=live(1, "one", "p95")),),
    ),
    Metric("cpu", "processor time of", "µs", 9, 2),
    Metric(
        "cli",
        "start to end of",
        "s",
        9,
        2,
        (Goal("supdist-engine --help", 0.2), Goal("run quickstart", 1.0)),
    ),
)


def chosen(names: list[str]) -> list[Metric]:
    """Return the metrics with these names in their fixed order; all without names.

    Raises:
        ValueError: a name is unknown.
    """
    known = [metric.name for metric in METRICS]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no metric {name!r}; choose from {', '.join(known)}")
    return [metric for metric in METRICS if not names or metric.name in names]
