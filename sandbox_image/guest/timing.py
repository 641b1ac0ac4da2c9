"""Time and profile code: ``%timeit`` and ``%prun``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

_TIMEIT = re.compile(r"\s*-(?:([nrp])\s*(\d+)|([oqct]+))(?:\s+|$)")
_PRUN = re.compile(r"\s*-(?:s\s*(\w+)|l\s*(\d+))(?:\s+|$)")
_OPTION = re.compile(r"\s*(-\w+)")
_MOST_LINES = 30


class Timing:
    """What ``%timeit -o`` returns: the names that IPython's result has, in seconds."""

    def __init__(self, loops: int, all_runs: Sequence[float]) -> None:
        import statistics

        self.loops = loops
        self.repeat = len(all_runs)
        self.all_runs = list(all_runs)
        self.timings = [each / loops for each in all_runs]
        self.best = min(self.timings)
        self.worst = max(self.timings)
        self.average = statistics.mean(self.timings)
        self.stdev = statistics.pstdev(self.timings)

    def __str__(self) -> str:
        """Return it as one line."""
        spread = f"{in_unit(self.average)} ± {in_unit(self.stdev)}"
        return f"{spread} per loop (mean ± std. dev. of {self.repeat} runs, {self.loops:,} loops each)"

    def __repr__(self) -> str:
        """Return it as IPython shows it."""
        return f"<TimeitResult : {self}>"


def time_often(arguments: str, body: str, namespace: dict[str, Any]) -> Timing | None:
    """Time a statement many times and print it. Takes -n, -r, -q; with -o return the result."""
    import timeit

    counts: dict[str, int] = {}
    flags = ""
    while option := _TIMEIT.match(arguments):
        if option[1]:
            counts[option[1]] = int(option[2])
        flags += option[3] or ""
        arguments = arguments[option.end() :]
    setup, statement = (arguments or "pass", body) if body.strip() else ("pass", arguments or "pass")
    timer = timeit.Timer(statement, setup, globals=namespace)
    loops = counts.get("n", 0) or timer.autorange()[0]
    timing = Timing(loops, timer.repeat(counts.get("r", 0) or 7, loops))
    if "q" not in flags:
        sys.stdout.write(f"{timing}\n")
    return timing if "o" in flags else None


def profile(arguments: str, body: str, namespace: dict[str, Any]) -> None:
    """Run code and print where its time went. Takes -s and -l.

    Raises:
        ValueError: an option is unknown.
    """
    import cProfile
    import pstats

    order, lines = "tottime", _MOST_LINES
    while option := _PRUN.match(arguments):
        order, lines = option[1] or order, int(option[2] or lines)
        arguments = arguments[option.end() :]
    if option := _OPTION.match(arguments):
        raise ValueError(f"%prun takes only -s KEY and -l LINES here, not {option[1]}")
    code = compile(f"{arguments}\n{body}", "<prun>", "exec", dont_inherit=True)
    profiler = cProfile.Profile()
    try:
        profiler.runctx(code, namespace, namespace)  # type: ignore[arg-type]  # exec() takes code, too
    finally:
        pstats.Stats(profiler, stream=sys.stdout).sort_stats(order).print_stats(lines)


def in_unit(value: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
