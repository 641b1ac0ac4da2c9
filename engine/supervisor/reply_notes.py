"""What the supervisor and the user are told about replies that are cut off, have no code, or repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...handlers import Completion
from .prompts import Prompts, fill

ReplyKind = Literal["tool_call", "refusal", "cut", "thoughts", "empty", "prose"]

# So many replies in a row that were cut off before they had any text end the run: each costs max_tokens.
_MAX_CUT_THOUGHTS = 2


def cut_limit(completion: Completion, max_tokens: int | None) -> str:
    """Return at how many tokens a reply was cut off, in words."""
    if max_tokens is not None:
        return f"max_tokens {max_tokens:,}"
    tokens = completion.usage.output_tokens
    # Without max_tokens the endpoint's own limit or the window counts.
    return f"{tokens:,} tokens, the model's own limit" if tokens else "the model's own limit"


@dataclass(slots=True)
class ReplyNotes:
    """Remembers the replies of a run, as far as notes about the next one need them."""

    prompts: Prompts
    model: str
    max_tokens: int | None
    _last: tuple[str, str] | None = None
    _same: int = 0
    _without_code: int = 0
    _cut_thoughts: int = 0
    _warned: set[str] | None = None

    @property
    def is_stuck(self) -> bool:
        """Return whether the run should end, because replies are cut off before they have any text."""
        return self._cut_thoughts >= _MAX_CUT_THOUGHTS

    def stuck_reason(self) -> str:
        """Return why the run ended, and what to do."""
        return (
            f"{self._cut_thoughts} replies in a row were cut off before they had any text. {self._advice()}"
        )

    def warning(self, completion: Completion) -> str | None:
        """Return what the user is told about a reply; each kind once a run."""
        if completion.finish_reason != "length":
            return None
        has_text = bool(completion.text.strip())
        kind = "text" if has_text else "thoughts"
        self._warned = self._warned or set()
        if kind in self._warned:
            return None
        self._warned.add(kind)
        limit = cut_limit(completion, self.max_tokens)
        what = "" if has_text else ", before it had any text: all tokens went to thoughts"
        return f"a reply of the supervisor {self.model} was cut off at {limit}{what}. {self._advice()}"

    def _advice(self) -> str:
        if self.max_tokens is None:
            return "Set max_tokens of the supervisor, or choose a model with a longer answer"
        return f"Raise max_tokens of the supervisor (it is {self.max_tokens:,})"

    def add(self, completion: Completion, blocks: int, shown: str) -> list[str]:
        """Return notes for the supervisor about its reply. ``shown`` is what its blocks printed."""
        text = completion.text.strip()
        is_cut = completion.finish_reason == "length"
        self._cut_thoughts = self._cut_thoughts + 1 if is_cut and not text else 0
        self._without_code = 0 if blocks else self._without_code + 1
        self._same = self._same + 1 if text and self._last == (text, shown) else 0
        self._last = text, shown
        notes: list[str] = []
        if is_cut:
            prompt = self.prompts.cut_off if text else self.prompts.cut_thoughts
            notes.append(fill(prompt, limit=cut_limit(completion, self.max_tokens)))
        elif not blocks:
            notes.append(fill(self._no_code(completion), times=self._without_code))
        if self._same:
            notes.append(fill(self.prompts.same_again, times=self._same + 1))
        return notes

    def _no_code(self, completion: Completion) -> str:
        has_thoughts = bool(completion.reasoning)
        match reply_kind(completion.text, completion.finish_reason, has_thoughts=has_thoughts):
            case "tool_call":
                return self.prompts.tool_call
            case "refusal":
                return self.prompts.refused
            case "thoughts":
                return self.prompts.only_thoughts
            case "empty":
                return self.prompts.empty
            case _:
                return self.prompts.no_code if self._without_code == 1 else self.prompts.no_code_again


def reply_kind(text: str, finish_reason: str | None, *, has_thoughts: bool) -> ReplyKind:
    """Return what a reply is that has no code."""
    if finish_reason == "length":
        return "cut"
    if (kind := _KINDS.get(finish_reason or "")) is not None:
        return kind
    if text.strip():
        return "prose"
    return "thoughts" if has_thoughts else "empty"


# A str: handlers may know more reasons.
_KINDS: dict[str, Literal["tool_call", "refusal"]] = {
    "tool_calls": "tool_call",
    "tool_call": "tool_call",
    "function_call": "tool_call",
    "refusal": "refusal",
    "content_filter": "refusal",
}
