"""Which runs of which experiments are exported, and why the others are not."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...engine.errors import TaskError
from ...engine.private_files import PrivateFolder, resolved
from ..evals.records import EXAMPLES, RECORDS, Record, read_records
from .conversations import (
    Conversation,
    NoConversation,
    cells,
    cleaned,
    digest,
    read_conversation,
    worker_answers,
)

_FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a run must have to be exported.

    Attributes:
        min_score: at least this score; a run without a score has none.
        only_correct: only runs whose answer counts as right.
        only_final: only runs that ended with ``FINAL``, not with the request for a best answer.
        max_steps: at most so many turns.
        max_cost_usd: at most so many dollars, of supervisor and worker together; an unknown price is too much.
        allow_errors: also runs with a block that raised or was ended, a worker call without an answer, or a reply of
            the supervisor that was cut off or refused.
    """

    min_score: float | None = None
    only_correct: bool = False
    only_final: bool = False
    max_steps: int | None = None
    max_cost_usd: float | None = None
    allow_errors: bool = True

    def refuse(self, run: Run, conversation: Conversation) -> str | None:
        """Why a run is not taken; None where it is."""
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
            return "too dear"
        if not self.allow_errors and _has_errors(run, conversation):
            return "errors"
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """An example that ended, with a log that tells its conversation.

    Attributes:
        experiment: the folder that ``eval`` wrote.
        context_sha256: the hash of its document.
        question: what is equal where two runs were asked the same, about the same, in the same words.
        refused: why the filters do not take it; None where they do.
        is_compact: whether messages were left out on the way.
    """

    experiment: Path
    record: Record
    context_sha256: str = ""
    question: str = ""
    refused: str | None = None
    is_compact: bool = False

    @property
    def folder(self) -> Path:
        """Its logs."""
        return self.experiment / EXAMPLES / self.record.example

    @property
    def document(self) -> list[str]:
        """The names by which its document is known: the task's, which comes first, and the hash of its text."""
        named = [f"document {self.record.document}"] if self.record.document else []
        return [*named, f"text {self.context_sha256}"]

    @property
    def cost_usd(self) -> float | None:
        """Dollars, of supervisor and worker together; None where a price is unknown."""
        costs = self.record.supervisor.cost_usd, self.record.worker.cost_usd
        return None if costs[0] is None or costs[1] is None else costs[0] + costs[1]

    def read(self) -> Conversation:
        """Its conversation.

        Raises:
            NoConversation: the log tells none.
        """
        return read_conversation(self.folder, self.record.run_id)


@dataclass(slots=True)
class Selection:
    """The runs of some experiments, sorted, whatever the order of the folders.

    Attributes:
        runs: those that tell a conversation, those among them that the filters refuse too.
        left_out: how many others there are, by why.
        experiments: how many records each folder has.
    """

    runs: list[Run] = field(default_factory=list[Run])
    left_out: Counter[str] = field(default_factory=Counter[str])
    experiments: dict[Path, int] = field(default_factory=dict[Path, int])


def select(folders: Iterable[Path], filters: Filters) -> Selection:
    """Look at all runs below some folders.

    Raises:
        TaskError: a folder holds no experiment.
    """
    selection = Selection()
    for experiment in sorted(set(_experiments(folders))):
        records = read_records(experiment)
        selection.experiments[experiment] = len(records)
        selection.left_out["not ended"] += len(_logged(experiment) - {record.example for record in records})
        for record in records:
            try:
                selection.runs.append(_look(Run(experiment, record), filters))
            except NoConversation as error:
                selection.left_out[error.reason] += 1
    selection.runs.sort(key=lambda run: (run.record.example, run.record.run_id, run.experiment))
    selection.left_out = +selection.left_out
    return selection


def _look(run: Run, filters: Filters) -> Run:
    record = run.record
    if not _FOLDER.fullmatch(record.example):
        raise NoConversation("unreadable", run.experiment)
    if record.strategy == "direct":
        raise NoConversation("direct call", run.folder)
    if record.error is not None and record.error.stage == "run":
        raise NoConversation("failed", run.folder)
    conversation = run.read()
    asked = [record.example, conversation.start.query, conversation.start.context_sha256]
    return Run(
        run.experiment,
        record,
        context_sha256=conversation.start.context_sha256,
        question=digest([*asked, cleaned(conversation.opening)]),
        refused=filters.refuse(run, conversation),
        is_compact=len(conversation.stretches) > 1,
    )


def _has_errors(run: Run, conversation: Conversation) -> bool:
    run_id = run.record.run_id
    return (
        not all(turn.is_whole for turn in conversation.turns)
        or any(cell.outcome != "ok" for cell in cells(run.folder, run_id))
        or any(answer.error is not None for answer in worker_answers(run.folder, run_id))
    )


def _experiments(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        found = False
        for place, below, files in os.walk(folder):
            if RECORDS in files:
                found = True
                below.clear()
                yield resolved(place)
        if not found:
            raise TaskError(f"{folder} holds no {RECORDS}; name folders that `supdist-engine eval` wrote")


def _logged(experiment: Path) -> set[str]:
    try:
        with PrivateFolder.open(experiment / EXAMPLES) as folder:
            return set(folder.folders())
    except OSError:
        return set()
