"""Count the memory of a guest's pending calls in the engine, and limit their rate."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .. import protocol
from ..protocol import SessionLimits, Violation
from .rate import Rate

# The engine's memory for the prompts of one guest. Answers have a bound of their own: see `AnswerWindow` in
# engine/sandbox/answer_window.py.
PENDING_BYTES = 20 << 20
# A single call above `PENDING_BYTES` waits until no other is pending. Above this there is no room for it.
LARGEST_CALL = 40 << 20
# Measured: task, queue entries, results and cache key of a call, and of each of its prompts.
_CALL_BYTES = 4 << 10
_PROMPT_BYTES = 1 << 10
# A long prompt is in memory twice once it is sent: as text, and as the JSON of its request.
_LONG_PROMPT = 32 << 10
# A control character takes six bytes of JSON; others take at most their UTF-8.
_ESCAPED_BYTES = 6
# JSON of arguments takes so many times its bytes as objects.
_ARGUMENT_GROWTH = 32
_TOOL_BYTES = 64 << 10
# A frame below is decoded at once. A larger one waits until its text, four bytes for each, has room.
_SMALL_FRAME = 256 << 10
_WIDEST = 4
_LAST_NUMBER = (1 << 62) - 1
_CONTROL = bytes(range(32)) + b"\x7f"


def prompts_cost(prompts: Sequence[str]) -> int:
    """Return the engine's memory for a call: a character takes 1, 2 or 4 bytes, as the widest does."""
    cost = _CALL_BYTES + _PROMPT_BYTES * len(prompts) + sum(map(sys.getsizeof, prompts))
    for prompt in prompts:
        if len(prompt) > _LONG_PROMPT:
            cost += _request_bytes(prompt)
    return cost


def tool_cost(arguments: bytes) -> int:
    """Return the engine's memory for a call of a host tool."""
    return _TOOL_BYTES + _ARGUMENT_GROWTH * len(arguments)


def _request_bytes(prompt: str) -> int:
    data = prompt.encode()
    escaped = len(data) - len(data.translate(None, _CONTROL))
    return len(data) + (_ESCAPED_BYTES - 1) * escaped


class PendingCalls:
    """Calls of workers and tools without a reply."""

    # No call is refused for the rate or for the room: a guest that calls too much is not read for a while.

    def __init__(self, limits: SessionLimits) -> None:
        self._most = limits.pending_calls
        self._last_number = 0
        self._pending: dict[int, tuple[int, int]] = {}
        self._prompts = 0
        self._bytes = 0
        self.rate = Rate(limits.calls_per_second)

    def __len__(self) -> int:
        """Return the number of calls without a reply."""
        return len(self._pending)

    def has_room(self, frame_bytes: int) -> bool:
        """Return whether a frame of this size may be decoded."""
        if self._prompts >= self._most or self._bytes >= PENDING_BYTES:
            return False
        is_small = frame_bytes <= _SMALL_FRAME or not self._pending
        return is_small or self._bytes + _WIDEST * frame_bytes <= PENDING_BYTES

    def take_number(self, call: int) -> None:
        """Use a number, and one call of the rate.

        Raises:
            Violation: the number does not rise.
        """
        if not self._last_number < call <= _LAST_NUMBER:
            raise Violation("a call's number was used before")
        self._last_number = call
        self.rate.take()

    def add(self, call: int, prompts: int, cost: int) -> None:
        """Add a call with its number of prompts and its memory."""
        self._pending[call] = prompts, cost
        self._prompts += prompts
        self._bytes += cost

    def is_pending(self, call: int) -> bool:
        """Return whether a call has no reply yet."""
        return call in self._pending

    def remove(self, call: int) -> bool:
        """Remove a call; return False if it was not pending."""
        counted = self._pending.pop(call, None)
        if counted is None:
            return False
        self._prompts -= counted[0]
        self._bytes -= counted[1]
        return True

    def clear(self) -> None:
        """Remove all calls."""
        self._pending.clear()
        self._prompts = self._bytes = 0


def check_prompts(prompts: Sequence[str], limits: SessionLimits) -> None:
    """Check the number and sizes of a call's prompts.

    Raises:
        Violation: the guest's library sends no such call.
    """
    if not 0 < len(prompts) <= min(limits.batch, protocol.CALL_PROMPTS):
        raise Violation("a call with no prompt or too many")
    size = 0
    for prompt in prompts:
        length = len(prompt) if prompt.isascii() else len(prompt.encode())
        if length > limits.prompt_bytes:
            raise Violation("a prompt longer than the guest's library sends")
        size += length
    if len(prompts) > 1 and size > protocol.CALL_BYTES:
        raise Violation("prompts of one call that the guest's library sends in several")
