"""Conversations for providers that want a system field, and turns of user and assistant in alternation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import Message

# A conversation must begin and end with the user's turn.
GO_ON = "Go on."
BEGIN = "Begin."


@dataclass(frozen=True, slots=True)
class Conversation:
    """The system text, empty if there is none, and turns that alternate, from user to user."""

    system: str
    turns: list[Message]


def alternate(messages: Sequence[Message]) -> Conversation:
    """Return messages as a conversation; no text is lost.

    System messages at the start are the system text. Later ones keep their place, in a user's turn.
    Equal roles in a row become one turn. Blank messages are left out: providers refuse them.
    """
    said = [message for message in messages if message["content"].strip()]
    first = next((place for place, each in enumerate(said) if each["role"] != "system"), len(said))
    system = "\n\n".join(message["content"] for message in said[:first])
    joined: list[tuple[bool, list[str]]] = []
    for message in said[first:]:
        by_model = message["role"] == "assistant"
        if joined and joined[-1][0] == by_model:
            joined[-1][1].append(message["content"])
        else:
            joined.append((by_model, [message["content"]]))
    if not joined or joined[0][0]:
        joined.insert(0, (False, [BEGIN]))
    # New models of Anthropic refuse a last turn of the assistant.
    if joined[-1][0]:
        joined.append((False, [GO_ON]))
    turns: list[Message] = [
        {"role": "assistant" if by_model else "user", "content": "\n\n".join(texts)}
        for by_model, texts in joined
    ]
    return Conversation(system, turns)
