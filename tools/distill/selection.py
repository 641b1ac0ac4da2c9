"""Selects the runs to export, and counts the others by reason."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...engine.errors import TaskError
from ...engine.private_files import PrivateFolder, resolved
from ..evals.records import EXAMPLES, RECORDS, Record, read_records
from .conversations import (
    Conversation,
    NoConversation,
    cleaned,
    digest,
    has_errors,
    read_conversation,
)

_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a run must have to be exported."""

    min_score: float | None = None
    only_correct: bool = False
    only_final: bool = False
    max_steps: int | None = None
    # Dollars of supervisor and worker together; an unknown price is too much.
    max_cost_usd: float | None = None
    # Errors are failed blocks, worker calls without an answer, and replies that were cut off or refused.
    allow_errors: bool = True

    def refuse(self, run: Run, conversation: Conversation) -> str | None:
        """Return why a run is refused, or None."""
        record = run.record
        if self.min_score is not None and (record.score is None or record.score < self.min_score):
            return "score too low"
        if self.only_correct and not record.correct:
            return "not correct"
        if self.only_final and conversation.stop_reason != "final":
            return "no FINAL"
        if self.max_steps is not None and record.steps > self.max_steps:
            return "too many steps"
        if self.max_cost_usd is not None and (run.cost_usd is None or run.cost_usd > self.max_cost_usd):
            return "too expensive"
        if not self.allow_errors and _has_errors(run, conversation):
            return "errors"
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """An example that ended and has a conversation."""

    experiment: Path
    record: Record
    context_sha256: str = ""
    # Digest of question, document and prompts: runs with an equal one can be compared.
    question: str = ""
    refused: str | None = None
    # Messages were left out on the way.
    is_compact: bool = False

    @property
    def folder(self) -> Path:
        """The folder of its log."""
        return self.experiment / EXAMPLES / self.record.example

    @property
    def document(self) -> list[str]:
        """Names of its document."""
        named = [f"document {self.record.document}"] if self.record.document else []
        return [*named, f"text {self.context_sha256}"]

    @property
    def cost_usd(self) -> float | None:
        """Dollars of supervisor and worker; None if a price is unknown."""
        costs = self.record.supervisor.cost_usd, self.record.worker.cost_usd
        return None if costs[0] is None or costs[1] is None else costs[0] + costs[1]

    def read(self) -> Conversation:
        """Read its conversation, or raise ``NoConversation``."""
        return read_conversation(self.folder, self.record.run_id)


@dataclass(slots=True)
class Selection:
    """The runs of some evals, and counts of those without a conversation."""

    # Also those that the filters refuse: they can be the worse of a pair.
    runs: list[Run] = field(default_factory=list[Run])
    left_out: Counter[str] = field(default_factory=Counter[str])
    experiments: dict[Path, int] = field(default_factory=dict[Path, int])


def select(
    folders: Iterable[Path], filters: Filters, report: Callable[[str], None] | None = None
) -> Selection:
    """Select among all runs below some folders; ``report`` gets each problem of a log.

    Raises:
        TaskError: a folder holds no eval.
    """
    selection = Selection()
    for experiment in sorted(set(_experiments(folders))):
        records = read_records(experiment)
        selection.experiments[experiment] = len(records)
        selection.left_out["not ended"] += len(_logged(experiment) - {record.example for record in records})
        for record in records:
            try:
                run, notes = _examine(Run(experiment, record), filters)
                selection.runs.append(run)
            except NoConversation as error:
                selection.left_out[error.reason] += 1
                notes = (str(error),) if error.reason in ("unreadable", "shortened") else ()
            if report is not None:
                for note in notes:
                    report(note)
    selection.runs.sort(key=lambda run: (run.record.example, run.record.run_id, run.experiment))
    selection.left_out = +selection.left_out
    return selection


def _examine(run: Run, filters: Filters) -> tuple[Run, tuple[str, ...]]:
    record = run.record
    # The name of an example is a folder's name, and the records may come from anybody.
    if not _FOLDER.fullmatch(record.example):
        raise NoConversation("unreadable", run.experiment)
    if record.strategy == "direct":
        raise NoConversation("direct call", run.folder)
    if record.error is not None and record.error.stage == "run":
        raise NoConversation("failed", run.folder)
    conversation = run.read()
    asked = [record.example, conversation.start.query, conversation.start.context_sha256]
    examined = Run(
        run.experiment,
        record,
        context_sha256=conversation.start.context_sha256,
        question=digest([*asked, cleaned(conversation.opening)]),
        refused=filters.refuse(run, conversation),
        is_compact=len(conversation.stretches) > 1,
    )
    return examined, conversation.notes


def _has_errors(run: Run, conversation: Conversation) -> bool:
    return not all(turn.is_whole for turn in conversation.turns) or has_errors(run.folder, run.record.run_id)


def _experiments(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        found = False
        for place, below, files in os.walk(folder):
            if RECORDS in files:
                found = True
                below.clear()
                yield resolved(place)
        if not found:
            raise TaskError(f"{folder} holds no {RECORDS}; name a folder that `supdist-engine eval` wrote")


def _logged(experiment: Path) -> set[str]:
    try:
        with PrivateFolder.open(experiment / EXAMPLES) as folder:
            return set(folder.folders())
    except OSError:
        return set()
