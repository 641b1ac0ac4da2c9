"""Makes the lines of a data set.

::

    sft, per run     {"messages": [system, user, assistant, user, assistant, ...]}
    sft, per turn    {"prompt": [system, user, ...], "completion": [assistant]}
    preference       {"prompt": [system, user], "chosen": [assistant, ...], "rejected": [assistant, ...]}
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

OWN_TURN_LEFT_OUT = "a reply of the supervisor was left out; use --per turn"
COMPACT = "messages were left out, so the run is in no pair"
NOT_WHOLE = "an answer that is empty, cut off, refused, or an error"
REPEATED = "repeated"


@dataclass(frozen=True, slots=True)
class Line:
    """A line, its row of ``sources.jsonl``, and its document's names."""

    content: dict[str, list[Message]]
    source: dict[str, Any]
    document: list[str]
    # Lines that differ only in the seconds of blocks are equal, and are written once.
    same: str


def run_lines(run: Run, conversation: Conversation, left_out: Counter[str]) -> Iterator[Line]:
    """Yield a line for the conversation, or for each stretch of it."""
    for turn in conversation.stretches:
        # A note in the place of a reply would be trained on.
        if any(conversation.history[number]["role"] == "assistant" for number in turn.left_out):
            left_out[OWN_TURN_LEFT_OUT] += 1
            continue
        messages = cleaned(turn.messages)
        source = {**_source(run), "left_out": sorted(turn.left_out)}
        yield Line({"messages": messages}, source, run.document, digest(_without_seconds(messages)))


def turn_lines(run: Run, conversation: Conversation, left_out: Counter[str]) -> Iterator[Line]:
    """Yield each reply with its request."""
    for turn in conversation.turns:
        if not turn.is_whole or not turn.reply.strip():
            left_out[NOT_WHOLE] += 1
            continue
        messages = cleaned(turn.messages)
        source = {**_source(run), "left_out": sorted(turn.left_out)}
        content = {"prompt": messages[:-1], "completion": messages[-1:]}
        yield Line(content, source, run.document, digest(_without_seconds(messages)))


def worker_lines(run: Run, left_out: Counter[str]) -> Iterator[Line]:
    """Yield each prompt of the worker with its answer."""
    for answer in worker_answers(run.folder, run.record.run_id):
        if not answer.is_whole or answer.response is None or not answer.response.strip():
            left_out[NOT_WHOLE] += 1
            continue
        messages = cleaned([
            {"role": "user", "content": answer.prompt},
            {"role": "assistant", "content": answer.response},
        ])  # fmt: skip
        call = {"step": answer.step, "cell": answer.cell, "call": answer.call, "index": answer.index}
        yield Line({"messages": messages}, {**_source(run), **call}, run.document, digest(messages))


def pairs(runs: Sequence[Run], most: int, left_out: Counter[str]) -> Iterator[Line]:
    """Yield at most ``most`` pairs of runs, those that differ most first."""
    left_out[COMPACT] += sum(run.is_compact for run in runs)
    conversations = {index: run.read() for index, run in enumerate(runs) if not run.is_compact}
    scores = {index: runs[index].record.score for index in conversations}
    # A run that the filters refuse is only ever the worse one.
    differences = sorted(
        (worse_score - score, better, worse)
        for (better, score), (worse, worse_score) in itertools.permutations(scores.items(), 2)
        if score is not None and worse_score is not None and score > worse_score and not runs[better].refused
    )
    seen = set[str]()
    for _, better, worse in differences:
        if len(seen) >= most:
            return
        line = _pair((runs[better], conversations[better]), (runs[worse], conversations[worse]))
        if line is not None and line.same not in seen:
            seen.add(line.same)
            yield line


def _pair(better: tuple[Run, Conversation], worse: tuple[Run, Conversation]) -> Line | None:
    chosen, rejected = (cleaned(conversation.turns[-1].messages) for _, conversation in (better, worse))
    if _replies(chosen) == _replies(rejected):
        return None
    content = {"prompt": chosen[:2], "chosen": chosen[2:], "rejected": rejected[2:]}
    source = {"chosen": _source(better[0]), "rejected": _source(worse[0])}
    document = [*better[0].document, *worse[0].document]
    return Line(content, source, document, digest([_without_seconds(chosen), _without_seconds(rejected)]))


def as_text(content: Mapping[str, Sequence[Message]]) -> str:
    """Return the text of a line."""
    # ASCII with escapes: some readers end a line at other characters than a line feed.
    return json.dumps(content) + "\n"


def sha256_of(content: Mapping[str, Sequence[Message]]) -> str:
    """Return the hash of a line's text, in hexadecimal."""
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


def _replies(messages: Iterable[Message]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def _without_seconds(messages: Iterable[Message]) -> list[str]:
    return [
        without_seconds(message["content"]) if message["role"] == "user" else message["content"]
        for message in messages
    ]
