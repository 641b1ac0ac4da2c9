"""The loop of a run: ask the supervisor, run its code, show the outputs. README.md has all ends of a run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...handlers import Completion, ContextTooLong, HandlerError, Message
from ...sandbox_image.text import counted
from ..broker.broker import Broker
from ..broker.budget import BudgetExceeded
from ..broker.call_errors import call_error, remedy
from ..errors import CodeTooLong, LogError, SandboxError, SandboxLost
from ..events import BlockEnded, BlockStarted, Event, SupervisorReplied, SupervisorWrote, TurnStarted
from ..result import StopReason
from ..runlog.writer import CallFailure, CallStats, CallTimes, RunLogger
from ..sandbox import CallError, CellResult, Outcome, Sandbox
from ..sandbox.config import not_run
from ..slices import in_slices
from .best_answer import find_answer_blocks, find_literal_final
from .blocks import find_code_blocks
from .conversation import Conversation
from .prompts import Prompts, budget_left, context_facts, fill, nudge
from .reply_notes import ReplyNotes, cut_limit
from .transcript import show_results

# A guest that attacks its shim gets no second interpreter.
_ENDS_THE_RUN = frozenset({Outcome.PROTOCOL_VIOLATION})

# Seconds for the block that called a worker which is dead for good. It may have an answer already.
_LAST_SECONDS = 5.0

# A best answer that is code is asked for once more.
_BEST_ANSWERS = 2

_REASONS: dict[StopReason, str] = {
    "max_iterations": "all turns are used",
    "timeout": "the time is up",
    "budget": "the budget is used up",
    "sandbox_lost": "the interpreter was lost",
    "cut_off": "your messages were cut off",
}


def is_last(result: CellResult) -> bool:
    """Return whether later blocks are skipped, because this one answered or failed."""
    return result.final is not None or result.outcome is not Outcome.OK


class _CutOff(Exception):
    """Replies are cut off before they have any text."""


class _TimeIsUp(Exception):
    def __init__(self, trouble: str = "") -> None:
        super().__init__("no reply before the time was up" + (f" ({trouble})" if trouble else ""))


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended; see the fields of ``RunResult``."""

    answer: str | None
    stop_reason: StopReason
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The question of a run, and its limits."""

    query: str
    context: object
    max_iterations: int
    output_limit: int
    worker_ctx_k: int
    max_seconds: float | None
    call_seconds: float | None
    final_seconds: float
    tools: str = ""
    packages: Sequence[str] = ()
    has_worker: bool = True


@dataclass(slots=True)
class SupervisorLoop:
    """The loop of one run."""

    spec: RunSpec
    broker: Broker
    sandbox: Sandbox
    prompts: Prompts
    conversation: Conversation
    log: RunLogger
    emit: Callable[[Event], None]
    iterations: int = 0
    _notes: ReplyNotes = field(init=False)
    _has_run: bool = False
    _logged: int = 0
    _deadline: float | None = None

    def __post_init__(self) -> None:
        handler = self.broker.supervisor.handler
        self._notes = ReplyNotes(self.prompts, handler.model, handler.max_tokens)

    async def run(self) -> RunOutcome:
        """Return how the run ended; errors of the supervisor and of logs are raised."""
        self._begin()
        if self.spec.max_seconds is not None:
            self._deadline = asyncio.get_running_loop().time() + self.spec.max_seconds
        reason: StopReason = "max_iterations"
        try:
            for step in range(1, self.spec.max_iterations + 1):
                answer = await self._turn(step)
                if answer is not None or self.broker.health.is_dead:
                    return self._outcome(answer, "final")
        except _TimeIsUp:
            reason = "timeout"
        except BudgetExceeded as exceeded:
            reason = "timeout" if exceeded.limit == "max_seconds" else "budget"
        except _CutOff:
            reason = "cut_off"
            # Without any output there is nothing to answer from, and each request costs max_tokens.
            if not self._has_run:
                return self._outcome(None, reason, self._notes.stuck_reason())
        except SandboxError:
            reason = "sandbox_lost"
        if self.broker.health.is_dead:
            return self._outcome(None, reason)
        return self._outcome(*await self._best_answer(reason))

    def _outcome(self, answer: str | None, reason: StopReason, failure: str | None = None) -> RunOutcome:
        error = self.broker.health.failure
        if error is None:
            return RunOutcome(answer, reason, failure)
        # The code may have caught the errors of its calls. Its answer is then a guess.
        calls, model = self.broker.health.done, self.broker.worker_model or "of a run inside this one"
        why = str(error) if isinstance(error, HandlerError) else f"{type(error).__name__}: {error}"
        advice = remedy(error) or "Choose another worker"
        failure = f"the worker {model} answered none of {counted(calls, 'call')}: {why}. {advice}"
        return RunOutcome(answer, "worker_failed", failure)

    async def _turn(self, step: int) -> str | None:
        self.log.step = self.iterations = step
        self.emit(TurnStarted(step))
        self._make_room()
        # Then the budget has room for a last question, when a limit is reached.
        await self.broker.supervisor.reserve_best_answer(self.conversation.sent)
        completion = await self._ask("turn")
        is_cut = completion.finish_reason == "length"
        blocks = await in_slices(find_code_blocks(completion.text, is_cut=is_cut))
        results = await self._execute(step, blocks)
        for result in results:
            if result.final is not None:
                return result.final
        await self._report(step, completion, blocks, results)
        return None

    def _begin(self) -> None:
        spec = self.spec
        values = {
            "output_limit": spec.output_limit,
            "worker_ctx_k": spec.worker_ctx_k,
            "worker_chars": f"{spec.worker_ctx_k * 1000 * 3:,}",
            "context_kind": f"a {type(spec.context).__name__}",
            "query": spec.query,
            "context_facts": context_facts(spec.context),
            "max_iterations": spec.max_iterations,
            "importable": " and ".join(filter(None, ("The standard library", ", ".join(spec.packages)))),
        }
        text = self.prompts.system if spec.has_worker else self.prompts.system_alone
        system = fill(text, **values)
        if spec.tools:
            system += "\n" + fill(self.prompts.tools, tools=spec.tools)
        self.conversation.add("system", system)
        self.conversation.add("user", fill(self.prompts.first, **values))

    async def _execute(self, step: int, blocks: list[str]) -> list[CellResult]:
        results: list[CellResult] = []
        for number, code in enumerate(blocks, 1):
            self.emit(BlockStarted(step, number, len(blocks), code))
            try:
                result = await self._run_block(code)
            except CodeTooLong as error:
                result = not_run(error)
            await self._log_block(code, result)
            self.emit(BlockEnded(step, result))
            results.append(result)
            self._has_run = True
            if is_last(result) or self.broker.health.is_dead:
                break
        return results

    async def _log_block(self, code: str, result: CellResult) -> None:
        try:
            await self.log.repl(code, result)
        except LogError as error:
            # An answer that was found is not lost with the log.
            if result.final is None:
                raise
            self.log.report_failure(error)

    async def _run_block(self, code: str) -> CellResult:
        # The host tools that the block calls run in this context: a run that they start is inside this one.
        context = self.broker.account.tool_context()
        running = asyncio.get_running_loop().create_task(self.sandbox.execute(code), context=context)
        try:
            await self._wait_for_end(running)
            # When the time is up, what the block did until then counts.
            if not running.done():
                await self.sandbox.interrupt()
            return await running
        except asyncio.CancelledError:
            # The cell must have ended before the sandbox closes.
            running.cancel()
            await asyncio.wait([running])
            raise

    async def _wait_for_end(self, running: asyncio.Future[CellResult]) -> None:
        death = self.broker.health.death
        waited: list[asyncio.Future[Any]] = [running, death]
        ended, _ = await asyncio.wait(
            waited, timeout=self._seconds_left(), return_when=asyncio.FIRST_COMPLETED
        )
        if ended == {death}:
            # Code that goes on in spite of all errors must not keep the run from its end.
            left = self._seconds_left()
            await asyncio.wait([running], timeout=_LAST_SECONDS if left is None else min(left, _LAST_SECONDS))

    def _seconds_left(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def _report(
        self, step: int, completion: Completion, blocks: list[str], results: list[CellResult]
    ) -> None:
        if self.broker.health.is_dead:
            return
        if results and results[-1].outcome in _ENDS_THE_RUN:
            raise SandboxLost(results[-1].detail)
        shown = await self._show(results, blocks)
        parts = [shown] if shown else []
        parts.extend(self._notes.add(completion, len(blocks), shown))
        if results and results[-1].state_lost:
            await self.sandbox.reset()
            parts.append(fill(self.prompts.state_lost, outcome=results[-1].outcome.value))
        turns_left = self.spec.max_iterations - step
        time_is_up = self._seconds_left() == 0
        if turns_left and not time_is_up:
            parts.append(nudge(self.prompts, turns_left, self.spec.max_iterations))
            parts.extend(budget_left(self.prompts, self.broker.budget.left()))
        self.conversation.add("user", "\n\n".join(parts))
        if time_is_up:
            raise _TimeIsUp
        if self._notes.is_stuck:
            raise _CutOff

    async def _show(self, results: list[CellResult], blocks: list[str]) -> str:
        return await in_slices(show_results(results, len(blocks), self.spec.output_limit)) if blocks else ""

    async def _best_answer(self, reason: StopReason) -> tuple[str | None, StopReason, str | None]:
        last = ""
        if self.conversation.sent[-1]["role"] == "user":
            # The last turn was cut off. Two user messages in a row confuse models.
            last = self.conversation.remove_last() + "\n\n"
            self._logged = min(self._logged, len(self.conversation.history))
        self.conversation.add(
            "user", last + fill(self.prompts.best_answer, reason=_REASONS[reason], query=self.spec.query)
        )
        reserve = self._reserve_end()
        why = ""
        for _ in range(_BEST_ANSWERS):
            self._deadline = reserve or self._call_deadline()
            try:
                completion = await self._ask("best_answer")
            except (_TimeIsUp, BudgetExceeded, HandlerError) as error:
                # The run already has its reason to end, so a failure of the model now is no other.
                why += f"the supervisor gave no best answer: {type(error).__name__.strip('_')}: {error}"
                return None, reason, why
            text, is_cut = completion.text, completion.finish_reason == "length"
            blocks = await in_slices(find_answer_blocks(text))
            if not blocks and text.strip():
                return text.strip(), reason, None
            kind = "code without FINAL" if blocks else "empty"
            if is_cut:
                limit = cut_limit(completion, self.broker.supervisor.handler.max_tokens)
                kind += f", and cut off at {limit}"
                if not blocks:
                    # The next one would be cut off, too, and cost as much.
                    return None, reason, f"the supervisor's best answer was {kind}"
                blocks = await in_slices(find_code_blocks(text, is_cut=True))
            answer, shown = await self._run_last_blocks(reason, blocks)
            if answer is not None:
                return answer, reason, None
            why = f"the supervisor's best answer was {kind}; "
            self.conversation.add("user", shown + self.prompts.best_answer_again)
        return None, reason, f"{why}it was asked for twice"

    def _reserve_end(self) -> float | None:
        """Return the end of the reserve after a time limit. Both tries share it."""
        if self._deadline is None:
            return None
        return max(asyncio.get_running_loop().time(), self._deadline) + self.spec.final_seconds

    def _call_deadline(self) -> float | None:
        # Without a time limit a best answer may take as long as any call.
        seconds = self.spec.call_seconds
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    async def _run_last_blocks(self, reason: StopReason, blocks: list[str]) -> tuple[str | None, str]:
        """Return the answer, else what the blocks printed."""
        if reason != "sandbox_lost":
            # Also after the last turn: its limits of time, memory and budget hold.
            with contextlib.suppress(SandboxError):
                results = await self._execute(self.iterations, blocks)
                shown = await self._show(results, blocks) + "\n\n" if blocks else ""
                return next((result.final for result in results if result.final is not None), None), shown
        # Nothing can be executed any more, but an answer that is written out can be read.
        for code in blocks:
            answer = await in_slices(find_literal_final(code))
            if answer is not None:
                return answer, ""
        return None, ""

    async def _ask(self, purpose: str) -> Completion:
        started = time.monotonic()
        clock = asyncio.timeout(self._seconds_left())
        try:
            async with clock:
                completion, stats = await self._ask_and_shorten(purpose)
        except HandlerError as error:
            failure = CallFailure(call_error(error), f"{type(error).__name__}: {error}")
            await self._log_failure(purpose, started, failure)
            raise
        except TimeoutError:
            if clock.expired():
                late = _TimeIsUp(self.broker.supervisor.trouble)
                time_is_up = CallError("timeout", str(late))
                await self._log_failure(purpose, started, CallFailure(time_is_up, time_is_up.message))
                raise late from None
            # A handler raised it.
            raise
        elapsed = time.monotonic() - started
        # The reply was paid for, so it is logged before anything else can fail.
        model = self.broker.supervisor.handler.model
        new = self.conversation.history[self._logged :]
        await self.log.supervisor(model, new, completion, stats, purpose)
        self.conversation.add("assistant", completion.text)
        self._logged = len(self.conversation.history)
        self.emit(
            SupervisorReplied(
                self.iterations,
                completion.text,
                completion.usage,
                elapsed,
                completion.finish_reason,
                len(completion.reasoning),
            )
        )
        warning = self._notes.warning(completion)
        if warning is not None:
            self.log.warn(f"turn {self.iterations}: {warning}")
        return completion

    async def _log_failure(self, purpose: str, started: float, failure: CallFailure) -> None:
        stats = CallStats(retries=None, times=CallTimes(queued=started, done=time.monotonic()))
        messages = self.conversation.history[self._logged :]
        model = self.broker.supervisor.handler.model
        await self.log.supervisor_failed(model, messages, failure, stats, purpose)

    async def _ask_and_shorten(self, purpose: str) -> tuple[Completion, CallStats]:
        best_answer = purpose == "best_answer"
        try:
            return await self.broker.supervisor.ask(
                self.conversation.sent, self._emit_text, best_answer=best_answer
            )
        except ContextTooLong:
            # The size of the window was unknown until its endpoint refused the request.
            if not self._leave_out(lambda _: False):
                raise
        return await self.broker.supervisor.ask(
            self.conversation.sent, self._emit_text, best_answer=best_answer
        )

    def _make_room(self) -> None:
        self._leave_out(self.broker.supervisor.has_room)

    def _leave_out(self, fits: Callable[[Sequence[Message]], bool]) -> bool:
        left_out = self.conversation.leave_out(fits, self.prompts.left_out)
        if left_out:
            self.log.left_out({number: self.conversation.sent[number]["content"] for number in left_out})
        return bool(left_out)

    def _emit_text(self, text: str) -> None:
        self.emit(SupervisorWrote(self.iterations, text))
