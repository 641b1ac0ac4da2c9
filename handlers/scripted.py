"""Scripted replies for tests, demonstrations and replays."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

from .base import Completion, Message, ModelHandler, Price, Usage
from .errors import HandlerError, Rejected
from .json_items import read_items

Reply = str | Completion | HandlerError
"""A text, a whole completion, or an error to raise."""


class ScriptedHandler(ModelHandler):
    """Answers from a list, or from a plain or ``async`` function. Usage counts words.

    A plain function runs in the event loop, so that calls keep their order. One that blocks belongs into an
    ``async`` function with ``asyncio.to_thread``, or into the plain ``chat`` of a ``ModelHandler``.

    Attributes:
        calls: every conversation, in order.
    """

    price = Price(0, 0)

    def __init__(
        self,
        replies: Iterable[Reply] | Callable[[Sequence[Message]], Reply | Awaitable[Reply]],
        *,
        model: str = "scripted",
    ) -> None:
        self.model = model
        self.calls: list[list[Message]] = []
        self._function = replies if callable(replies) else None
        self._replies = iter(() if callable(replies) else replies)

    @classmethod
    def from_file(cls, path: str | Path, *, model: str = "scripted") -> ScriptedHandler:
        """Read replies from JSON Lines or one JSON list: strings, or objects with ``text``.

        Raises:
            ValueError: the file holds something else.
        """
        replies: list[Reply] = []
        for number, item in enumerate(read_items(path), 1):
            text: object = item.get("text") if isinstance(item, dict) else item  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # JSON of any shape
            if not isinstance(text, str):
                raise ValueError(  # noqa: TRY004 - the file is wrong, not a type in the program
                    f"{path}: reply {number} must be a string, or an object with a string under 'text'"
                )
            replies.append(text)
        return cls(replies, model=model)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Return the next reply.

        Raises:
            Rejected: the list is used up.
            TypeError: a reply is something else.
        """
        self.calls.append(list(messages))
        if self._function is not None:
            reply = self._function(messages)
            if inspect.isawaitable(reply):
                reply = await reply
        else:
            try:
                reply = next(self._replies)
            except StopIteration:
                raise Rejected(f"the script has no reply for call {len(self.calls)}") from None
        if isinstance(reply, HandlerError):
            raise reply
        if isinstance(reply, Completion):
            return reply
        if not isinstance(cast(object, reply), str):
            giver = "the function returned" if self._function is not None else "the script has"
            raise TypeError(
                f"{giver} a {type(reply).__name__} as a reply; give a text, a Completion or a HandlerError"
            )
        words = 0
        for message in messages:
            words += len(message["content"].split())
        return Completion(reply, Usage(words, len(reply.split()), 1))
