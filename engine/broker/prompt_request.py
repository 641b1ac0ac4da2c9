"""One prompt of a worker call on its way to the model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from ...handlers import Completion, Retry
from ..runlog.writer import WorkerPrompt
from ..sandbox import CallError
from .batch_result import BatchResult
from .budget import Cost, Reservation
from .handler_queue import Admission, Request
from .metered_model import MeteredModel
from .pending import PendingAnswer


class RequestOwner(Protocol):
    """The worker calls of a run."""

    model: MeteredModel

    def admit(self, request: PromptRequest) -> Admission:
        """Reserve the cost of a request, or let it wait for another run."""
        ...

    def settle(self, request: PromptRequest, answer: Completion | Exception) -> None:
        """Count an ended request and deliver its result."""
        ...

    def wake(self, request: PromptRequest, answer: Completion | None) -> None:
        """Take another run's answer; None: queue the request again."""
        ...


@dataclass(eq=False, slots=True, kw_only=True)
class PromptRequest(Request):
    """One prompt of a call.

    Attributes:
        cost: None if nothing is limited.
        original: the equal request of this run that is sent for this one.
        duplicates: the equal requests of this run that this one is sent for.
        pending: the answer that other runs wait for too.
        is_parked: whether another run has sent it.
    """

    calls: RequestOwner
    batch: BatchResult
    index: int
    key: bytes | None = None
    cost: Cost | None = None
    reservation: Reservation | None = None
    is_wanted: bool = True
    original: PromptRequest | None = None
    duplicates: dict[PromptRequest, None] | None = None
    pending: PendingAnswer | None = None
    is_answered: bool = False
    is_parked: bool = False
    timer: asyncio.TimerHandle | None = None

    def admit(self) -> Admission:
        """See ``Request.admit``."""
        return self.calls.admit(self)

    def note_retry(self, retry: Retry) -> None:
        """See ``Request.note_retry``."""
        self.calls.model.on_retry(retry)

    def finish(self, answer: Completion | Exception) -> None:
        """See ``Request.finish``."""
        self.calls.settle(self, answer)

    def wake(self, answer: Completion | None) -> None:
        """See ``Waiter.wake``."""
        self.calls.wake(self, answer)

    def add_duplicate(self, other: PromptRequest) -> None:
        """Let an equal request of this run have this answer."""
        other.original = self
        self.duplicates = self.duplicates or {}
        self.duplicates[other] = None

    def release(self) -> None:
        """Give back the reservation."""
        if self.reservation is not None:
            self.reservation.release()

    def put_written(self, result: str | CallError, written: asyncio.Task[None]) -> None:
        """Put the result into its batch, after the log has it."""
        error = None if written.cancelled() else written.exception()
        if error is None:
            self.batch.put(self.index, result)
        else:
            self.batch.fail(error)

    def worker_prompt(self) -> WorkerPrompt:
        """Return the prompt's place for the log."""
        call = self.batch.call
        return WorkerPrompt(call.cell, call.call, self.index, self.prompt)
