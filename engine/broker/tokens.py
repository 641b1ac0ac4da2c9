"""Token counts: exact if the handler has a tokenizer, else between two bounds."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import normalize

from ...handlers import Message, ModelHandler, Usage
from ...sandbox_image.text import KEEP_SURROGATES

# Bytes. The longest in use, runs of spaces in the vocabularies of GPT-4, have 128.
_LONGEST_TOKEN = 256

# Characters that are split into words at once.
_PIECE = 1 << 16

# Tokens that a chat template adds: marks and the role; the start, the answer's head, a short system text.
_MESSAGE, _CONVERSATION = 8, 64

# Tokens of an answer without a bound: nearly all are shorter.
_ANSWER = 4096


# A refused prompt that would have fit is a lost answer; the opposite costs a round trip. So the lower
# bound refuses, and the upper bound is reserved.
def fits(handler: ModelHandler, messages: Sequence[Message], window: int) -> bool:
    """Return whether the messages may fit a window."""
    if _max_prompt_tokens(messages) < window:
        return True
    return min_prompt_tokens(handler, messages, enough=window) < window


# Byte-level BPE (GPT, Llama 3, Qwen, DeepSeek) and SentencePiece (Llama 2, Mistral, Gemma) split words
# first: no token holds parts of two words. "Four characters a token" is no bound: numbers have more.
def min_prompt_tokens(
    handler: ModelHandler, messages: Sequence[Message], *, enough: int | None = None
) -> int:
    """Return a lower bound; counting stops soon after ``enough``."""
    known = handler.count_tokens(messages)
    if known is not None:
        return known
    least = 0
    for message in messages:
        room = None if enough is None else enough - least
        text = message["content"]
        least += max(-(-_bytes(text) // _LONGEST_TOKEN), _words(text, room))
    return least


# Bytes, since a tokenizer merges or keeps single bytes, and what a chat template adds. A template's long
# system text is not counted.
def max_prompt_tokens(handler: ModelHandler, messages: Sequence[Message]) -> int:
    """Return an upper bound."""
    known = handler.count_tokens(messages)
    if known is not None:
        return known
    return _max_prompt_tokens(messages)


def _max_prompt_tokens(messages: Sequence[Message]) -> int:
    return _CONVERSATION + sum(_MESSAGE + _max_bytes(message["content"]) for message in messages)


def max_usage(handler: ModelHandler, messages: Sequence[Message]) -> Usage:
    """Return the most that one call uses."""
    return Usage(max_prompt_tokens(handler, messages), max_answer_tokens(handler), 1)


def max_answer_tokens(handler: ModelHandler) -> int:
    """Return the most tokens of an answer."""
    answer = _ANSWER if handler.max_tokens is None else handler.max_tokens
    return answer if handler.window is None else min(answer, handler.window)


def _words(text: str, enough: int | None) -> int:
    """Count words between ASCII white space."""
    # A word across two pieces may be missed once, which keeps the bound low.
    words = 0
    for start in range(0, len(text), _PIECE):
        if enough is not None and words > enough:
            break
        piece = text[start : start + _PIECE]
        words += max(0, len(_utf8(piece).split()) - (start > 0))
    return words


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(_utf8(text))


def _max_bytes(text: str) -> int:
    return len(text) if text.isascii() else max(_bytes(text), _bytes(normalize("NFC", text)))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", KEEP_SURROGATES)
