"""Tokens of a conversation, in which no text can pretend to be the model's own markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

from .base import Message
from .errors import Rejected


def encode_chat(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation in the model's chat template.

    A prompt holds a document's text. Without this, "<|im_end|>" in it would end the user's turn, and what
    follows would be the assistant's or the system's.

    Raises:
        Rejected: the template or the tokenizer does not take the messages.
    """
    marked = _marked_specials(tokenizer)
    # It stands inside each special token of a text, and is the place where the text is cut: no tokenizer sees
    # the whole token. Nobody can guess it.
    cut = f"[cut {uuid4().hex}]"
    has_cut = False
    conversation: list[dict[str, str]] = []
    for message in messages:
        content = message["content"]
        if marked is not None:
            content, cuts = marked.subn(rf"\1{cut}", content)
            has_cut = has_cut or bool(cuts)
        conversation.append({"role": message["role"], "content": content})
    how: dict[str, Any] = {"add_generation_prompt": True}
    try:
        if not has_cut:
            whole: Any = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False, **how)
            return list(whole)
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, **how)
        tokens: list[int] = []
        for part in text.split(cut):
            tokens += tokenizer.encode(part, add_special_tokens=False)
    # There is no template, it needs other roles, or the text is not valid Unicode.
    except Exception as error:
        raise Rejected(f"the model's chat template or tokenizer does not take this: {error}") from error
    return tokens


_found: WeakKeyDictionary[Any, re.Pattern[str] | None] = WeakKeyDictionary()


def _marked_specials(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern for the first character of each special token; None if the tokenizer names none."""
    try:
        return _found[tokenizer]
    except KeyError:
        pattern = _found[tokenizer] = _pattern(tokenizer)
        return pattern
    # No weak reference can be made to it.
    except TypeError:
        return _pattern(tokenizer)


def _pattern(tokenizer: Any) -> re.Pattern[str] | None:
    # Mistral's own tokenizer names none: it never reads a text as markup.
    added = cast("dict[int, object]", getattr(tokenizer, "added_tokens_decoder", None) or {})
    names = {str(token) for token in added.values() if getattr(token, "special", False)}
    # One character cannot be cut.
    names = {name for name in names if len(name) > 1}
    if not names:
        return None
    # Looked at from each character, since one token may stand inside another.
    return re.compile(f"(?={'|'.join(map(re.escape, sorted(names)))})(.)", re.DOTALL)
