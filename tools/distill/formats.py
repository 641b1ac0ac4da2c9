"""The lines of a data set, in the forms that trainers know.

::

    sft, a line a run     {"messages": [system, user, assistant, user, assistant, ...]}
    sft, a line a turn    {"prompt": [system, user, ...], "completion": [assistant]}
    preference            {"prompt": [system, user], "chosen": [assistant, ...], "rejected": [assistant, ...]}

Each message is ``{"role": ..., "content": ...}``, and every line of a file has the same keys. A line holds nothing else:
where it comes from stands in ``sources.jsonl``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.supervisor.transcript import without_seconds
from ...handlers import Message
from .conversations import Conversation, cleaned, digest, worker_answers
from .selection import Run

OWN_TURN_LEFT_OUT = "a turn of the supervisor's own was left out; a line a turn has it"
COMPACT = "messages were left out; no pair is made of such a run"
NOT_WHOLE = "an answer that is empty, cut off, refused, or an error"
REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class Line:
    """A line, and what is known of it.

    Attributes:
        content: the line.
        source: its row of ``sources.jsonl``.
        document: the names of what it is about.
        same: equal where two lines have the same content, the seconds that blocks took aside.
    """

    content: dict[str, list[Message]]
    source: dict[str, Any]
    document: list[str]
    same: str


def run_lines(run: Run, conversation: Conversation, left_out: Counter[str]) -> Iterator[Line]:
    """A whole conversation as the supervisor was sent it at last, with its reply.

    Where messages were left out on the way, there is a line for each stretch between, as it was sent at its end. One in
    which a turn of the supervisor's own is but a note is none: the note would be trained on.
    """
    for turn in conversation.stretches:
        if any(conversation.history[number]["role"] == "assistant" for number in turn.left_out):
            left_out[OWN_TURN_LEFT_OUT] += 1
            continue
        messages = cleaned(turn.messages)
        source = {**_source(run), "left_out": sorted(turn.left_out)}
        yield Line({"messages": messages}, source, run.document, digest(_timeless(messages)))


def turn_lines(run: Run, conversation: Conversation, left_out: Counter[str]) -> Iterator[Line]:
    """Each reply with the request as it was sent."""
    for turn in conversation.turns:
        if not turn.is_whole or not turn.reply.strip():
            left_out[NOT_WHOLE] += 1
            continue
        messages = cleaned(turn.messages)
        source = {**_source(run), "left_out": sorted(turn.left_out)}
        content = {"prompt": messages[:-1], "completion": messages[-1:]}
        yield Line(content, source, run.document, digest(_timeless(messages)))


def worker_lines(run: Run, left_out: Counter[str]) -> Iterator[Line]:
    """Each prompt of the worker's with its answer."""
    for answer in worker_answers(run.folder, run.record.run_id):
        is_whole = answer.error is None and answer.finish_reason not in ("length", "refusal")
        if not is_whole or answer.response is None or not answer.response.strip():
            left_out[NOT_WHOLE] += 1
            continue
        messages = cleaned([
            {"role": "user", "content": answer.prompt},
            {"role": "assistant", "content": answer.response},
        ])  # fmt: skip
        call = {"step": answer.step, "cell": answer.cell, "call": answer.call, "index": answer.index}
        yield Line({"messages": messages}, {**_source(run), **call}, run.document, digest(messages))


def pairs(runs: Sequence[Run], most: int, left_out: Counter[str]) -> Iterator[Line]:
    """Better and worse runs of one question, those that differ most first.

    Args:
        runs: of one question. Those that the filters refuse are only ever the worse.
        most: so many pairs at most.
        left_out: counts the runs that can be in no pair.
    """
    left_out[COMPACT] += sum(run.is_compact for run in runs)
    told = {index: run.read() for index, run in enumerate(runs) if not run.is_compact}
    scores = {index: runs[index].record.score for index in told}
    differences = sorted(
        (worse_score - score, better, worse)
        for (better, score), (worse, worse_score) in itertools.permutations(scores.items(), 2)
        if score is not None and worse_score is not None and score > worse_score and not runs[better].refused
    )
    seen = set[str]()
    for _, better, worse in differences:
        if len(seen) >= most:
            return
        line = _pair((runs[better], told[better]), (runs[worse], told[worse]))
        if line is not None and line.same not in seen:
            seen.add(line.same)
            yield line


def _pair(better: tuple[Run, Conversation], worse: tuple[Run, Conversation]) -> Line | None:
    """Two runs as a line; None where the supervisor said the same in both."""
    chosen, rejected = (cleaned(conversation.turns[-1].messages) for _, conversation in (better, worse))
    if _said(chosen) == _said(rejected):
        return None
    content = {"prompt": chosen[:2], "chosen": chosen[2:], "rejected": rejected[2:]}
    source = {"chosen": _source(better[0]), "rejected": _source(worse[0])}
    document = [*better[0].document, *worse[0].document]
    return Line(content, source, document, digest([_timeless(chosen), _timeless(rejected)]))


def as_text(content: Mapping[str, Sequence[Message]]) -> str:
    """A line as it is written: ASCII with escapes, since some readers take more than a line feed for a line's end."""
    return json.dumps(content) + "\n"


def sha256_of(content: Mapping[str, Sequence[Message]]) -> str:
    """The hash of a line's text, in hexadecimal."""
    return hashlib.sha256(as_text(content).encode()).hexdigest()


def _source(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "run": run.folder,
        "run_id": record.run_id,
        "example": record.example,
        "document": record.document,
        "context_sha256": run.context_sha256,
        "strategy": record.strategy,
        "score": record.score,
        "correct": record.correct,
        "steps": record.steps,
        "stop_reason": record.stop_reason,
        "cost_usd": run.cost_usd,
        "supervisor_model": record.supervisor_model,
        "worker_model": record.worker_model,
    }


def _said(messages: Iterable[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def _timeless(messages: Iterable[Message]) -> list[str]:
    return [
        without_seconds(message["content"]) if message["role"] == "user" else message["content"]
        for message in messages
    ]
