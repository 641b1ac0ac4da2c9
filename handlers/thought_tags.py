"""The tags around thoughts in the text of models, as the reasoning parsers of vLLM and SGLang know them."""

from __future__ import annotations

import re
from typing import NamedTuple

# Tags that are spelt like HTML. Some models add a word of their own, as in <think:opensource>.
_NAMES = (
    "think(?:ing)?(?::[^\\s<>]{1,40})?|thoughts?|reasoning|seed:think|mm:think|longcat_think"
    "|ifm\\|think(?:_fast(?:er)?)?"
)
# Others, opening and closing.
_PAIRS = {
    "mistral": (r"\[THINK\]", r"\[/THINK\]"),
    "cohere": (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    "gemma": (r"<\|channel>(?:thought\n)?", r"<channel\|>"),
    "apertus": (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    "solar": (r"<\|think:start\|>", r"<\|think:end\|>"),
    "plamo": (r"<\|plamo:begin_think:plamo\|>", r"<\|plamo:end_think:plamo\|>"),
    "kimi_k3": (r"<\|open\|>\s{0,4}think\s{0,4}<\|sep\|>", r"<\|close\|>\s{0,4}think\s{0,4}<\|sep\|>"),
    "kimi_vl": ("◁think▷", "◁/think▷"),
    "pangu": (r"\[unused16\]", r"\[unused17\]"),
    "gpt_oss": (r"(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>", r"<\|end\|>"),
    "muse": (r"(?:<\|start\|>assistant\s?)?to=self<\|message\|>", r"<\|eom\|>"),
    "inkling": (r"(?:<\|message_model\|>)?<\|content_thinking\|>", r"<\|end_message\|>"),
}
# Their closing tags also end messages without thoughts.
_CLOSE_ANYTHING = frozenset({"gpt_oss", "muse", "inkling"})

_OPEN = "|".join([f"<(?P<name>{_NAMES})>", *(f"(?P<o_{name}>{pair[0]})" for name, pair in _PAIRS.items())])
_CLOSE = "|".join([f"</(?P<end>{_NAMES})>", *(f"(?P<c_{name}>{pair[1]})" for name, pair in _PAIRS.items())])
# A fence, and whether nothing follows it on its line.
_FENCE = r"(?P<fence>```+|~~~+)(?P<bare>(?=[ \t]{0,8}\r?$))?"
MARK = re.compile(f"{_FENCE}|{_OPEN}|{_CLOSE}", re.MULTILINE)
OPENING = re.compile(_OPEN)
CLOSING = re.compile(_CLOSE)
# Where a mark may begin: ``MARK`` alone takes 600 ns for each character.
CANDIDATE = re.compile(r"<(?=[/|a-z])|\[(?=[/Tu])|◁|```+|~~~+")

_LONG = 1 << 16

# Characters of the longest mark, and more.
LONGEST_MARK = 128

# A text without any of these has no tag.
_HINTS = (
    "think", "THINK", "thought", "reasoning>", "channel", "[unused1", "<|inner_", "to=self<|", "to=user<|",
    "<|open|>", "<|content_", "<|START_", "assistantfinal",
)  # fmt: skip

# All openings in full, for a stream that has sent a part of one.
_OPENINGS = (
    *(
        f"<{name}>"
        for name in (
            "think", "thinking", "thought", "thoughts", "reasoning", "seed:think", "mm:think",
            "longcat_think", "ifm|think", "ifm|think_fast", "ifm|think_faster", "|START_THINKING|",
            "|inner_prefix|", "|think:start|", "|plamo:begin_think:plamo|", "|open|>think<|sep|",
            "|start|>assistant<|channel|>analysis<|message|", "|channel|>analysis<|message|",
            "|start|>assistantto=self<|message|", "|start|>assistant to=self<|message|",
            "|message_model|><|content_thinking|", "|content_thinking|",
        )
    ),
    "[THINK]", "[unused16]", "<|channel>thought\n", "to=self<|message|>", "◁think▷",
)  # fmt: skip
_NAMED_THINK = re.compile(r"<think(?:ing)?:[^\s<>]{0,40}$")

# Special tokens of tokenizers whose models think between such tokens.
THOUGHT_TOKENS = frozenset({
    "<think>", "[THINK]", "<|START_THINKING|>", "<|channel>", "<|channel|>", "<|inner_prefix|>",
    "<|think:start|>", "<|plamo:begin_think:plamo|>", "<|content_thinking|>", "◁think▷", "[unused16]",
    "<seed:think>",
})  # fmt: skip

# What begins and ends the answer behind thoughts.
_ANSWER = re.compile(
    r"(?:<\|start\|>assistant\s?)?(?:<\|channel\|>(?:final|commentary)|to=user)"
    r"(?:\s?<\|constrain\|>\w{1,20})?<\|message\|>"
    r"|<\|open\|>\s{0,4}response\s{0,4}<\|sep\|>|(?:<\|message_model\|>)?<\|content_text\|>"
    r"|<\|START_(?:RESPONSE|TEXT)\|>"
)
_ANSWER_ENDS = (
    "<|return|>", "<|end|>", "<|eot|>", "<|eom|>", "<|end_message|>", "<|content_model_end_sampling|>",
    "<|END_RESPONSE|>", "<|END_TEXT|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>",
)  # fmt: skip
_WRAPPERS = ("answer", "response")


class Mark(NamedTuple):
    """A tag or a fence in a text.

    Attributes:
        family: which closing tag belongs to which opening one; empty for a fence.
        is_bare: whether nothing follows the fence on its line.
    """

    start: int
    end: int
    family: str
    is_opening: bool
    is_bare: bool = False


def may_have_thoughts(text: str) -> bool:
    """Return whether to look for tags; fast, for every reply."""
    # A search of a long text for each hint may take some 30 ms.
    if len(text) > _LONG:
        return True
    if not ("<" in text or "[" in text or "◁" in text or text.startswith("analysis")):
        return False
    return any(hint in text for hint in _HINTS)


def mark_of(found: re.Match[str]) -> Mark:
    """Return a match of ``MARK``, ``OPENING`` or ``CLOSING`` as a mark."""
    named = found.lastgroup or ""
    start, end = found.span()
    if named in {"fence", "bare"}:
        return Mark(start, end, "", is_opening=False, is_bare=named == "bare")
    family = found[named] if named in {"name", "end"} else named[2:]
    return Mark(start, end, family, is_opening=named == "name" or named.startswith("o_"))


def closes_only_thoughts(family: str) -> bool:
    """Return whether a closing tag alone says that thoughts came before it."""
    return family not in _CLOSE_ANYTHING


def may_begin_tag(text: str) -> bool:
    """Return whether a text, the first of a reply, may go on to become an opening tag."""
    return any(each.startswith(text) for each in _OPENINGS) or _NAMED_THINK.match(text) is not None


def unwrap_answer(text: str) -> str:
    """Return the text behind thoughts without what wraps it."""
    lead = len(text) - len(text.lstrip())
    begin = _ANSWER.match(text, lead)
    if begin is not None:
        text = text[begin.end() :]
        stripped = text.rstrip()
        while any(stripped.endswith(end := each) for each in _ANSWER_ENDS):
            text = stripped = stripped[: -len(end)].rstrip()
        return text
    for name in _WRAPPERS:
        if text.startswith(f"<{name}>", lead):
            return text[lead + len(name) + 2 :].rstrip().removesuffix(f"</{name}>").strip("\r\n")
    return text
