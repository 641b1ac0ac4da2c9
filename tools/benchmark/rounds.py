"""Rounds: each asks every subject once, in turn, so that a machine that changes its pace changes it for all alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from .metrics import OURS, Metric, Told
from .report import Series
from .subjects import Scale, Subject, Trial


def measure(
    metric: Metric, subjects: Sequence[Subject], scale: Scale, rounds: int, tell: Told
) -> dict[Series, list[float]]:
    """The figures of every round. A peer that fails is told and left out from there on; what is ours may not fail."""
    found: dict[Series, list[float]] = {}
    with ExitStack() as stack:
        trials: dict[str, Trial] = {}
        for subject in subjects:
            trial = _entered(stack, subject, metric, scale, tell)
            if trial is not None:
                trials[subject.name] = trial
        for _ in range(rounds):
            for name, trial in list(trials.items()):
                try:
                    figures = trial()
                except Exception as error:
                    if name == OURS:
                        raise
                    tell(f"{metric.name}: {name} failed: {error!r}")
                    del trials[name]
                    continue
                for variant, figure in figures.items():
                    found.setdefault(Series(metric.name, variant, name), []).append(figure)
    return found


def _entered(stack: ExitStack, subject: Subject, metric: Metric, scale: Scale, tell: Told) -> Trial | None:
    trial = subject.trial(metric.name, scale)
    if trial is None:
        return None
    try:
        return stack.enter_context(trial)
    except Exception as error:  # others' code may raise anything
        if subject.name == OURS:
            raise
        tell(f"{metric.name}: {subject.name} failed: {error!r}")
        return None


def present(subjects: Sequence[Subject], tell: Told) -> list[Subject]:
    """The subjects that can be measured here; of the others it is told what they need."""
    found: list[Subject] = []
    for subject in subjects:
        missing = subject.missing()
        if missing is None:
            found.append(subject)
        else:
            tell(f"without {subject.name}: {missing}")
    return found
