"""Canned replies: the model of tests, of demonstrations and of replays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .base import Completion, Message, ModelHandler, Price, Usage
from .errors import HandlerError, Rejected

Reply = str | Completion | HandlerError
"""A text, a whole completion, or an error to raise."""


class ScriptedHandler(ModelHandler):
    """Answers from a list, one reply after another, or from a function of the messages.

    ``calls`` keeps every conversation that it was asked, in order. Usage counts words, so that it is
    the same everywhere.
    """

    price = Price(0, 0)

    def __init__(
        self, replies: Iterable[Reply] | Callable[[Sequence[Message]], Reply], *, model: str = "scripted"
    ) -> None:
        self.model = model
        self.calls: list[list[Message]] = []
        self._function = replies if callable(replies) else None
        self._replies = iter(() if callable(replies) else replies)

    @classmethod
    def from_file(cls, path: str | Path, *, model: str = "scripted") -> ScriptedHandler:
        """Replies from a file: JSON Lines whose lines are strings or objects with ``text``, or a JSON list of them.

        Raises:
            ValueError: the file holds something else.
        """
        content = Path(path).read_text(encoding="utf-8")
        items: object
        try:
            items = json.loads(content)
        except json.JSONDecodeError:
            items = [json.loads(line) for line in content.splitlines() if line.strip()]
        replies: list[Reply] = []
        for item in items if isinstance(items, list) else [items]:  # pyright: ignore[reportUnknownVariableType]
            text: object = item.get("text") if isinstance(item, dict) else item  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            if not isinstance(text, str):  # it is the file's content that is wrong, not a type in the program
                raise ValueError(f"{path}: a reply must be a string, or an object with a string under 'text'")  # noqa: TRY004
            replies.append(text)
        return cls(replies, model=model)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """The next reply.

        Raises:
            Rejected: the list is used up.
        """
        self.calls.append(list(messages))
        if self._function is not None:
            reply = self._function(messages)
        else:
            try:
                reply = next(self._replies)
            except StopIteration:
                raise Rejected(f"the script has no reply for call {len(self.calls)}") from None
        if isinstance(reply, HandlerError):
            raise reply
        if isinstance(reply, Completion):
            return reply
        asked = sum(len(message["content"].split()) for message in messages)
        return Completion(reply, Usage(asked, len(reply.split()), 1))
