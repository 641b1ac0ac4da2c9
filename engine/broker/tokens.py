"""Token counts: exact if the handler has a tokenizer, else between two bounds."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import normalize

from ...handlers import Message, ModelHandler, Usage
from ...sandbox_image.text import KEEP_SURROGATES
from ..slices import Steps, utf8_bytes

# Bytes. The longest in use, runs of spaces in the vocabularies of GPT-4, have 128.
_LONGEST_TOKEN = 256

# Characters that are normalized, or split into words, at once.
_PIECE = 1 << 16

# Tokens that a chat template adds: marks and the role; the start, the answer's head, a short system text.
_MESSAGE, _CONVERSATION = 8, 64

# Tokens of an answer without a bound: nearly all are shorter.
_ANSWER = 4096


# A refused prompt that would have fit is a lost answer; the opposite costs a round trip. So the lower
# bound refuses, and the upper bound is reserved.
def fits(handler: ModelHandler, messages: Sequence[Message], window: int) -> Steps[bool]:
    """Return whether the messages may fit a window."""
    if (yield from _max_prompt_tokens(messages)) < window:
        return True
    return (yield from min_prompt_tokens(handler, messages, enough=window)) < window


# Byte-level BPE (GPT, Llama 3, Qwen, DeepSeek) and SentencePiece (Llama 2, Mistral, Gemma) split words
# first: no token holds parts of two words. "Four characters a token" is no bound: numbers have more.
def min_prompt_tokens(
    handler: ModelHandler, messages: Sequence[Message], *, enough: int | None = None
) -> Steps[int]:
    """Return a lower bound; counting stops soon after ``enough``."""
    known = handler.count_tokens(messages)
    if known is not None:
        return known
    least = 0
    for message in messages:
        room = None if enough is None else enough - least
        text = message["content"]
        words = yield from _words(text, room)
        least += max(-(-(yield from _bytes(text)) // _LONGEST_TOKEN), words)
    return least


# Bytes, since a tokenizer merges or keeps single bytes, and what a chat template adds. A template's long
# system text is not counted.
def max_prompt_tokens(handler: ModelHandler, messages: Sequence[Message]) -> Steps[int]:
    """Return an upper bound."""
    known = handler.count_tokens(messages)
    if known is not None:
        return known
    return (yield from _max_prompt_tokens(messages))


def _max_prompt_tokens(messages: Sequence[Message]) -> Steps[int]:
    most = _CONVERSATION
    for message in messages:
        text = message["content"]
        most += _MESSAGE + (len(text) if text.isascii() else (yield from _max_bytes(text)))
    return most


def max_usage(handler: ModelHandler, messages: Sequence[Message]) -> Steps[Usage]:
    """Return the most that one call uses."""
    tokens = yield from max_prompt_tokens(handler, messages)
    return Usage(tokens, max_answer_tokens(handler), 1)


def counts_tokens(handler: ModelHandler) -> bool:
    """Return whether the handler has a tokenizer. It may take a second for a long text."""
    return type(handler).count_tokens is not ModelHandler.count_tokens


def max_answer_tokens(handler: ModelHandler) -> int:
    """Return the most tokens of an answer."""
    answer = _ANSWER if handler.max_tokens is None else handler.max_tokens
    return answer if handler.window is None else min(answer, handler.window)


def _words(text: str, enough: int | None) -> Steps[int]:
    """Count words between ASCII white space."""
    # A word across two pieces may be missed once, which keeps the bound low.
    words = 0
    for start in range(0, len(text), _PIECE):
        if enough is not None and words > enough:
            break
        piece = text[start : start + _PIECE]
        words += max(0, len(_utf8(piece).split()) - (start > 0))
        if start:
            yield
    return words


def _bytes(text: str) -> Steps[int]:
    return len(text) if text.isascii() else (yield from utf8_bytes(text))


def _max_bytes(text: str) -> Steps[int]:
    plain = normal = 0
    # Characters that only the whole text composes count twice, which keeps the bound high.
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        plain += len(_utf8(piece))
        normal += len(_utf8(normalize("NFC", piece)))
        if start:
            yield
    return max(plain, normal)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", KEEP_SURROGATES)
