"""The results of one call of guest code."""

from __future__ import annotations

import asyncio

from ..result import FailedCall
from ..sandbox import CallError, WorkerCall
from ..slices import SLICE

_FEW_PROMPTS = 32


class BatchResult:
    """The results of one call; ``missing`` prompts have none yet. ``failures`` has the kinds of failures."""

    def __init__(self, call: WorkerCall) -> None:
        self.call = call
        # Its work needs no slices, which cost more than they save.
        self.is_short = len(call.prompts) <= _FEW_PROMPTS and sum(map(len, call.prompts)) <= SLICE
        self.missing = len(call.prompts)
        self.failures = set[FailedCall]()
        self._results: list[str | CallError | None] = [None] * len(call.prompts)
        self._error: BaseException | None = None
        self._complete = asyncio.Event()

    def put(self, index: int, result: str | CallError) -> None:
        """Set the result of a prompt."""
        self._results[index] = result
        self.missing -= 1
        if not self.missing:
            self._complete.set()

    def fail(self, error: BaseException) -> None:
        """End the call: a result could not be logged."""
        self._error = error
        self._complete.set()

    async def results(self) -> list[str | CallError]:
        """Wait for all results.

        Raises:
            LogError: a result could not be logged.
        """
        if self.missing:
            await self._complete.wait()
        if self._error is not None:
            raise self._error
        # All are set now; the filter is for the type checker.
        return [result for result in self._results if result is not None]
