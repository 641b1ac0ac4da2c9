"""The loop of a run: ask the supervisor, run its code, show the outputs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...handlers import Completion, ContextTooLong, HandlerError, Message
from ..broker.broker import Broker
from ..broker.budget import BudgetExceeded
from ..errors import LogError, SandboxError, SandboxLost
from ..events import BlockEnded, BlockStarted, Event, SupervisorReplied, SupervisorWrote, TurnStarted
from ..result import StopReason
from ..runlog.writer import CallStats, RunLogger
from ..sandbox import CellResult, Outcome, Sandbox
from .blocks import code_blocks
from .conversation import Conversation
from .prompts import Prompts, budget_left, context_facts, fill, nudge
from .transcript import show_results

# A guest that attacks its shim gets no second interpreter.
_ENDS_THE_RUN = frozenset({Outcome.PROTOCOL_VIOLATION})

_REASONS: dict[StopReason, str] = {
    "max_iterations": "all turns are used",
    "timeout": "the time is up",
    "budget": "the budget is used up",
    "sandbox_lost": "the interpreter was lost",
}


def is_last(result: CellResult) -> bool:
    """Return whether later blocks are skipped, because this one answered or failed."""
    return result.final is not None or result.outcome is not Outcome.OK


class _TimeIsUp(Exception):
    pass


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The question of a run, and its limits."""

    query: str
    context: object
    max_iterations: int
    output_limit: int
    worker_ctx_k: int
    max_seconds: float | None
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
    _logged: int = 0
    _deadline: float | None = None

    async def run(self) -> tuple[str | None, StopReason]:
        """Return the answer and why the run ended; errors of models and logs are raised."""
        self._begin()
        if self.spec.max_seconds is not None:
            self._deadline = asyncio.get_running_loop().time() + self.spec.max_seconds
        reason: StopReason = "max_iterations"
        try:
            for step in range(1, self.spec.max_iterations + 1):
                answer = await self._turn(step)
                if answer is not None:
                    return answer, "final"
        except _TimeIsUp:
            reason = "timeout"
        except BudgetExceeded as exceeded:
            reason = "timeout" if exceeded.limit == "max_seconds" else "budget"
        except SandboxError:
            reason = "sandbox_lost"
        return await self._best_answer(reason), reason

    async def _turn(self, step: int) -> str | None:
        self.log.step = self.iterations = step
        self.emit(TurnStarted(step))
        self._make_room()
        # Then the budget has room for a last question, when a limit is reached.
        self.broker.supervisor.reserve_best_answer(self.conversation.sent)
        completion = await self._ask("turn")
        blocks = code_blocks(completion.text)
        results = await self._execute(step, blocks)
        for result in results:
            if result.final is not None:
                return result.final
        await self._report(step, blocks, results)
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
            result = await self._run_block(code)
            await self._log_block(code, result)
            self.emit(BlockEnded(step, result))
            results.append(result)
            if is_last(result):
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
        running = asyncio.ensure_future(self.sandbox.execute(code))
        try:
            await asyncio.wait([running], timeout=self._seconds_left())
            # When the time is up, what the block did until then counts.
            if not running.done():
                await self.sandbox.interrupt()
            return await running
        except asyncio.CancelledError:
            # The cell must have ended before the sandbox closes.
            running.cancel()
            await asyncio.wait([running])
            raise

    def _seconds_left(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def _report(self, step: int, blocks: list[str], results: list[CellResult]) -> None:
        if results and results[-1].outcome in _ENDS_THE_RUN:
            raise SandboxLost(results[-1].detail)
        parts = (
            [show_results(results, len(blocks), self.spec.output_limit)] if blocks else [self.prompts.no_code]
        )
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

    async def _best_answer(self, reason: StopReason) -> str | None:
        last = ""
        if self.conversation.sent[-1]["role"] == "user":
            # The last turn was cut off. Two user messages in a row confuse models.
            last = self.conversation.remove_last() + "\n\n"
            self._logged = min(self._logged, len(self.conversation.history))
        self.conversation.add(
            "user", last + fill(self.prompts.best_answer, reason=_REASONS[reason], query=self.spec.query)
        )
        self._deadline = asyncio.get_running_loop().time() + self.spec.final_seconds
        try:
            text = (await self._ask("best_answer")).text
        except (_TimeIsUp, BudgetExceeded, HandlerError):
            # The run already has its reason to end, so a failure of the model now is no other.
            return None
        # A model may still answer with a block that calls FINAL.
        with contextlib.suppress(SandboxError):
            for result in await self._execute(self.iterations, code_blocks(text)):
                if result.final is not None:
                    return result.final
        return text.strip() or None

    async def _ask(self, purpose: str) -> Completion:
        started = time.monotonic()
        clock = asyncio.timeout(self._seconds_left())
        try:
            async with clock:
                completion, stats = await self._ask_and_shorten(purpose)
        except TimeoutError:
            if clock.expired():
                raise _TimeIsUp from None
            # A handler raised it.
            raise
        elapsed = time.monotonic() - started
        # The reply was paid for, so it is logged before anything else can fail.
        model = self.broker.supervisor.handler.model
        new = self.conversation.history[self._logged :]
        await self.log.supervisor(model, new, completion, stats, purpose)
        self.conversation.add("assistant", completion.text)
        self._logged = len(self.conversation.history)
        self.emit(SupervisorReplied(self.iterations, completion.text, completion.usage, elapsed))
        return completion

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
