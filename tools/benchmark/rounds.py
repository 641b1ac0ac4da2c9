"""Rounds: each measures every subject once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from .metrics import OURS, Metric
from .report import Series
from .subjects import Scale, Subject, Trial

# Takes a line about the progress, or about a subject that is left out.
Log = Callable[[str], None]


def measure(
    metric: Metric, subjects: Sequence[Subject], scale: Scale, rounds: int, log: Log
) -> dict[Series, list[float]]:
    """Return the figures of every round. A peer that fails is left out; ours must not fail."""
    found: dict[Series, list[float]] = {}
    with ExitStack() as stack:
        trials: dict[str, Trial] = {}
        for subject in subjects:
            trial = _opened(stack, subject, metric, scale, log)
            if trial is not None:
                trials[subject.name] = trial
        # In turn, so that a machine that changes its pace changes it for all subjects.
        for _ in range(rounds):
            for name, trial in list(trials.items()):
                try:
                    figures = trial()
                except Exception as error:  # the code of others may raise anything
                    if name == OURS:
                        raise
                    log(f"{metric.name}: {name} failed: {error!r}")
                    del trials[name]
                    continue
                for variant, figure in figures.items():
                    found.setdefault(Series(metric.name, variant, name), []).append(figure)
    return found


def _opened(stack: ExitStack, subject: Subject, metric: Metric, scale: Scale, log: Log) -> Trial | None:
    trial = subject.trial(metric.name, scale)
    if trial is None:
        return None
    try:
        return stack.enter_context(trial)
    except Exception as error:  # the code of others may raise anything
        if subject.name == OURS:
            raise
        log(f"{metric.name}: {subject.name} failed: {error!r}")
        return None


def available(subjects: Sequence[Subject], log: Log) -> list[Subject]:
    """Return the subjects that can be measured here; log what the others need."""
    found: list[Subject] = []
    for subject in subjects:
        missing = subject.missing()
        if missing is None:
            found.append(subject)
        else:
            log(f"without {subject.name}: {missing}")
    return found
