"""The direct strategy: one call with the question and the document, cut to the model's window."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...engine.api import RunLimits
from ...engine.broker.budget import BudgetExceeded
from ...engine.broker.cache import ResponseCache
from ...engine.broker.metered_model import MeteredModel
from ...engine.broker.tokens import max_answer_tokens
from ...engine.result import StopReason
from ...engine.runlog.writer import CallStats, RunLogger, new_run_id
from ...engine.sandbox.context import encode_beside_loop
from ...handlers import Completion, ContextTooLong, HandlerError, Message, ModelHandler
from .model_calls import Note, ignore, metered_model, tokens_of
from .records import Tokens

_SYSTEM = """\
You are given a document and a question about it. Answer the question from the document alone, \
as briefly as it can be answered, without an explanation. Reply with the answer and nothing else.\
"""

_PROMPT = "Question: {query}\nText:\n{text}\n\nEnd of the text. Answer the question above it."

# For models without a tokenizer. English prose has 0.22 to 0.25; tables and names have more.
_TOKENS_A_CHARACTER = 0.3

# A text that the endpoint refused as too long is cut to this part of it, at most so often.
_SHORTER, _ATTEMPTS = 0.8, 10


@dataclass(frozen=True, slots=True)
class Run:
    """How an example was answered, by any strategy.

    Attributes:
        answer: None if there is none.
        stop_reason: as in ``RunResult``.
        steps: turns of the supervisor.
        run_id: its name in the logs.
        unstored: paid answers that the cache could not keep.
    """

    answer: str | None
    stop_reason: StopReason
    steps: int
    run_id: str
    supervisor: Tokens
    worker: Tokens
    unstored: int = 0


@dataclass(frozen=True, slots=True)
class Direct:
    """A model that is asked directly.

    Attributes:
        window: tokens of prompt and answer together; None never cuts a document.
        cache_sampled: whether answers drawn at random are cached, too.
    """

    handler: ModelHandler
    window: int | None
    limits: RunLimits
    cache: ResponseCache | None
    cache_sampled: bool = True
    log_bytes: int | None = None
    note: Note = ignore

    async def run(self, query: str, context: object, log_dir: Path) -> Run:
        """Answer one question.

        Raises:
            HandlerError: the model failed, and trying again does not help.
            LogError: the log cannot be written.
        """
        started, run_id = time.monotonic(), new_run_id()
        opened = RunLogger(log_dir, run_id, log_bytes=self.log_bytes, warn=self.note)
        with opened as log, await encode_beside_loop(context) as encoded:
            models = {"supervisor_model": self.handler.model, "worker_model": None}
            await log.start(query, encoded, **models, strategy="direct", window=self.window)
            async with metered_model(
                self.handler,
                self.cache,
                limits=self.limits,
                cache_sampled=self.cache_sampled,
                watch=log,
            ) as model:
                try:
                    answer, reason = await self._answer(model, log, query, as_text(context))
                except HandlerError as error:
                    log.end_without_result(error=f"{type(error).__name__}: {error}")
                    raise
                tokens = tokens_of(model.usage, model.totals)
                elapsed = time.monotonic() - started
                facts = {"answer": answer, "iterations": 1, "stop_reason": reason, "elapsed": elapsed}
                unstored = await model.answers.finish()
                log.end_without_result(**facts, cost_usd=model.cost_usd, unstored_answers=unstored)
            await log.drain()
        return Run(answer, reason, 1, run_id, tokens, Tokens(), unstored)

    async def _answer(
        self, model: MeteredModel, log: RunLogger, query: str, text: str
    ) -> tuple[str | None, StopReason]:
        log.step = 1
        clock = asyncio.timeout(self.limits.max_seconds)
        try:
            async with clock:
                messages, completion, stats = await self._ask(model, query, text)
        except BudgetExceeded as exceeded:
            return None, "timeout" if exceeded.limit == "max_seconds" else "budget"
        except TimeoutError:
            if not clock.expired():
                raise
            return None, "timeout"
        await log.supervisor(self.handler.model, messages, completion, stats, "direct")
        return completion.text.strip() or None, "final"

    async def _ask(
        self, model: MeteredModel, query: str, text: str
    ) -> tuple[Sequence[Message], Completion, CallStats]:
        keep = most_characters(self.handler, query, text, self.window)
        for _ in range(_ATTEMPTS - 1):
            messages = conversation(query, text, keep)
            try:
                return messages, *await model.ask(messages, _ignore)
            # The estimate was too high. A refused request costs nothing.
            except ContextTooLong:
                keep = int(keep * _SHORTER)
        messages = conversation(query, text, keep)
        return messages, *await model.ask(messages, _ignore)


def conversation(query: str, text: str, keep: int) -> list[Message]:
    """Return the messages, with at most ``keep`` characters of the document."""
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _PROMPT.format(query=query, text=without_middle(text, keep))},
    ]


def without_middle(text: str, keep: int) -> str:
    """Return the text, or ``keep`` characters of its two ends around a note."""
    if len(text) <= keep:
        return text
    # As LongBench's baselines do (Bai et al. 2024): papers state their subject first, their results last.
    head = keep - keep // 2
    note = f"\n[... {len(text) - keep:,} characters of the document left out ...]\n"
    return text[:head] + note + text[len(text) - keep // 2 :]


def most_characters(handler: ModelHandler, query: str, text: str, window: int | None) -> int:
    """Return how many characters of the text fit into the window, by the best estimate."""
    if window is None:
        return len(text)
    # A large answer limit must not leave less than half of the window to the prompt.
    room = max(window - max_answer_tokens(handler), window // 2)
    keep = len(text)
    for _ in range(_ATTEMPTS):
        messages = conversation(query, text, keep)
        counted = handler.count_tokens(messages)
        characters = sum(len(message["content"]) for message in messages)
        tokens = characters * _TOKENS_A_CHARACTER if counted is None else counted
        if tokens <= room or keep == 0:
            break
        surplus = (tokens - room) * characters / tokens
        keep = max(0, min(keep - 1, int(keep - surplus)))
    return keep


def as_text(context: object) -> str:
    """Return a document as a model reads it: text as it is, data as JSON."""
    return context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)


def _ignore(_: str) -> None:
    return None
