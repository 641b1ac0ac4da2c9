"""Define what a cell can call: worker, worker_batch, FINAL, host tools."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

from .. import plain, protocol
from ..text import replace_surrogates
from .answer import answer_text
from .channel import Channel

_CHUNKS_IN_FLIGHT = 128


class CallFailed(Exception):
    """A call failed; ``code`` is a word, ``message`` a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[CallFailed], tuple[Any, ...]]:
        # It comes back from process pools and copies. ``args`` holds the text alone.
        return type(self), (self.code, self.message)


# Tracebacks and pickles name these classes as cells do.
class WorkerError(CallFailed):
    """A worker call failed.

    ``code`` is budget_exceeded, too_long, refused, cut_off, unavailable, timeout or cancelled.
    """


class ToolError(CallFailed):
    """A tool call failed: budget_exceeded, bad_arguments, failed, timeout, cancelled or too_large."""


class WorkerBatchError(WorkerError):
    """Some calls of a batch failed. ``results`` has an answer or a WorkerError for each prompt."""

    def __init__(self, results: list[str | WorkerError]) -> None:
        failed = [result for result in results if isinstance(result, WorkerError)]
        first = failed[0]
        message = (
            f"{len(failed)} of {len(results)} calls failed, the first with {first.code}: {first.message}"
        )
        super().__init__(first.code, message)
        self.results = results

    def __reduce__(self) -> tuple[type[CallFailed], tuple[Any, ...]]:
        return type(self), (self.results,)


for _class in (WorkerError, WorkerBatchError, ToolError):
    _class.__module__ = "__main__"


class Primitives:
    """The functions of one guest, bound to its channel."""

    def __init__(self, channel: Channel, start: protocol.Start, current_cell: Callable[[], int]) -> None:
        self._channel = channel
        self._start = start
        self._current_cell = current_cell
        self._answered_cell = 0

    def worker(self, prompt: object) -> str:
        """Ask the worker model one prompt; return its answer.

        Raises:
            WorkerError: there is no answer.
        """
        if isinstance(prompt, Iterable) and not isinstance(prompt, (str, bytes)):
            kind = type(cast("object", prompt)).__name__
            raise TypeError(
                f"worker takes one prompt, a str, not a {kind}; for several use worker_batch(prompts)"
            )
        (result,) = self._ask([prompt])
        if isinstance(result, WorkerError):
            raise result
        return result

    def worker_batch(self, prompts: object, *, return_errors: bool = False) -> list[str | WorkerError]:
        """Ask the worker model many prompts at once; return the answers in their order.

        Raises:
            WorkerBatchError: some failed. With ``return_errors`` the list holds their WorkerErrors instead.
        """
        if isinstance(prompts, (str, bytes)):
            raise TypeError("worker_batch takes a list of prompts; for a single prompt use worker(prompt)")
        if not isinstance(prompts, Iterable):
            raise TypeError(f"worker_batch takes a list of prompts, not {type(prompts).__name__}")
        results = self._ask(list(cast("Iterable[Any]", prompts)))
        if not return_errors and any(isinstance(result, WorkerError) for result in results):
            raise WorkerBatchError(results)
        return results

    def final(self, answer: object) -> None:
        """Set the answer: text as it is, a number by ``str``, lists and dicts as JSON.

        Only the first call of a block counts. The block runs on to its end.
        """
        cell = self._current_cell()
        if self._answered_cell == cell:
            sys.stderr.write("FINAL was called before in this block; the first answer stands.\n")
            return
        text = replace_surrogates(answer_text(answer))
        most, most_memory = protocol.ANSWER_BYTES, self._start.answer_memory
        if len(text) > most // 4 and len(text.encode()) > most:
            raise ValueError(f"FINAL takes an answer of at most {most} bytes")
        if sys.getsizeof(text) > most_memory:
            raise ValueError(f"FINAL takes an answer of at most {most_memory} bytes of memory here")
        self._channel.send(protocol.Final(cell, text))
        self._answered_cell = cell

    def call_tool(self, number: int, args: Sequence[object], kwargs: dict[str, object]) -> object:
        """Call a host tool by its number.

        Raises:
            ToolError: there is no result.
        """
        try:
            arguments = plain.encode([args, kwargs], protocol.TOOL_ARGUMENT_BYTES)
        except plain.TooLarge as error:
            raise ToolError(
                "too_large", f"the arguments are {error}; pass less in one call, and call several times"
            ) from None
        except plain.NotPlain as error:
            raise ToolError(
                "bad_arguments", f"a tool of the host takes plain data, and this is {error}"
            ) from None
        cell = self._current_cell()
        call = self._channel.send_call(lambda call: protocol.ToolCall(call, cell, number, arguments))
        result = self._channel.tool_reply(call)
        if isinstance(result, protocol.ToolFailure):
            raise ToolError(result.code, result.message)
        return plain.decode(result)

    def _ask(self, prompts: list[Any]) -> list[str | WorkerError]:
        for slot, prompt in enumerate(prompts):  # before the first one costs anything
            if not isinstance(prompt, str):
                raise TypeError(f"a prompt must be a str; number {slot} is of type {type(prompt).__name__}")
        cell = self._current_cell()
        # Placeholders: each is replaced by an answer, or by the failure of its own call.
        results: list[str | WorkerError] = [WorkerError("cancelled", "not sent")] * len(prompts)
        waiting: list[tuple[int, list[int]]] = []
        for slots, chunk in self._chunks(prompts, results):
            if len(waiting) >= _CHUNKS_IN_FLIGHT:
                self._collect(*waiting.pop(0), results)
            waiting.append((self._channel.send_call(partial(_call, cell, chunk)), slots))
        for call, slots in waiting:
            self._collect(call, slots, results)
        return results

    def _chunks(
        self, prompts: list[Any], results: list[str | WorkerError]
    ) -> Iterable[tuple[list[int], list[str]]]:
        # Calls of bounded size. A prompt that is too long fails here, unsent.
        slots, chunk, size = list[int](), list[str](), 0
        most_bytes = protocol.CALL_BYTES
        most_prompts = min(protocol.CALL_PROMPTS, self._start.batch)
        longest = self._start.prompt_bytes
        for slot, prompt in enumerate(prompts):
            text = replace_surrogates(prompt)
            length = len(text) if text.isascii() else len(text.encode())
            if length > longest:
                message = f"the prompt has {length} bytes; at most {longest} are allowed"
                results[slot] = WorkerError("too_long", message)
                continue
            if chunk and (size + length > most_bytes or len(chunk) >= most_prompts):
                yield slots, chunk
                slots, chunk, size = [], [], 0
            slots.append(slot)
            chunk.append(text)
            size += length
        if chunk:
            yield slots, chunk

    def _collect(self, call: int, slots: list[int], results: list[str | WorkerError]) -> None:
        for slot, result in zip(slots, self._channel.reply(call), strict=True):
            results[slot] = result if isinstance(result, str) else WorkerError(result.code, result.message)


def _call(cell: int, prompts: list[str], number: int) -> protocol.Call:
    return protocol.Call(number, cell, prompts)
