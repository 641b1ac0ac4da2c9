"""How many tokens messages are: exactly, where their handler has a tokenizer, else between two bounds.

To refuse and to reserve are wrong in opposite ways. A prompt that is refused as too long, and is not, is an
answer lost; one that is let through, and is too long, costs a round trip: its endpoint refuses it unpaid. So
``least_tokens`` decides what is refused. What is set aside of a budget must suffice: ``most_tokens``.

Both bounds follow from how the tokenizers of chat models are built, byte-level BPE (GPT, Llama 3, Qwen,
DeepSeek) and SentencePiece's BPE with bytes to fall back on (Llama 2, Mistral, Gemma). They cut a text into words
before they merge, so that no token holds parts of two words; and what they cannot merge are single bytes, so
that no token is less than a byte. The usual rules of thumb (four characters a token) are neither bound: text in
numbers, in base64 or in Thai has far more tokens, long words of prose have fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import normalize

from ...handlers import Message, ModelHandler, Usage
from ...sandbox_image.text import KEEP_SURROGATES

_LONGEST_TOKEN = 256
"""Bytes; the longest in use, runs of spaces in the vocabularies of GPT-4 and its heirs, are 128."""

_PIECE = 1 << 16
"""Characters that are cut into words at once."""

_MESSAGE, _CONVERSATION = 8, 64
"""Tokens that a chat template adds: marks and the role's name; the start, the answer's head, a short system text."""

_ANSWER = 4096
"""Tokens that an answer without a bound of its own is taken for."""


def fits(handler: ModelHandler, messages: Sequence[Message], window: int) -> bool:
    """Whether the messages may fit a window of so many tokens. They are counted only where their length leaves a doubt."""
    if _most_tokens(messages) < window:
        return True
    return least_tokens(handler, messages, enough=window) < window


def least_tokens(handler: ModelHandler, messages: Sequence[Message], *, enough: int | None = None) -> int:
    """The messages are at least so many tokens: what passes a window by this count does not fit it.

    Args:
        handler: whose tokens they are.
        messages: the conversation.
        enough: words are not counted much further than this.
    """
    known = handler.count_tokens(messages)
    if known is not None:
        return known
    least = 0
    for message in messages:
        room = None if enough is None else enough - least
        text = message["content"]
        least += max(-(-_bytes(text) // _LONGEST_TOKEN), _words(text, room))
    return least


def most_tokens(handler: ModelHandler, messages: Sequence[Message]) -> int:
    """The messages are at most so many tokens: their bytes, and what a chat template adds to them.

    One whose template adds a long system text of its own may have more.
    """
    known = handler.count_tokens(messages)
    if known is not None:
        return known
    return _most_tokens(messages)


def _most_tokens(messages: Sequence[Message]) -> int:
    return _CONVERSATION + sum(_MESSAGE + _most_bytes(message["content"]) for message in messages)


def most_usage(handler: ModelHandler, messages: Sequence[Message]) -> Usage:
    """What one call uses at most.

    An answer that neither ``max_tokens`` nor the window bounds is taken for 4096 tokens, longer than nearly all are.
    """
    return Usage(most_tokens(handler, messages), most_answer(handler), 1)


def most_answer(handler: ModelHandler) -> int:
    """An answer is at most so many tokens; see ``most_usage``."""
    answer = _ANSWER if handler.max_tokens is None else handler.max_tokens
    return answer if handler.window is None else min(answer, handler.window)


def _words(text: str, enough: int | None) -> int:
    """Words between ASCII white space; a word that lies across two pieces is left out once."""
    words = 0
    for start in range(0, len(text), _PIECE):
        if enough is not None and words > enough:
            break
        piece = text[start : start + _PIECE]
        words += max(0, len(_utf8(piece).split()) - (start > 0))
    return words


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(_utf8(text))


def _most_bytes(text: str) -> int:
    """Some tokenizers (Qwen's) normalise first, and a few characters grow by it."""
    return len(text) if text.isascii() else max(_bytes(text), _bytes(normalize("NFC", text)))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", KEEP_SURROGATES)
