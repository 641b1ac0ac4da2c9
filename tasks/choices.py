"""Answers to multiple-choice questions: ``read_choice("The answer is (B), the hall.")`` is ``"B"``."""

from __future__ import annotations

import re
from collections import deque

from .metrics import contains, exact_match, normalize, token_f1

# Marks around a letter, as in "**(B)**", "\\boxed{B}", "`B`", "[B]".
_BEFORE, _AFTER = r"(?:\\boxed\{|\\text\{|[\s(\[{*_`\"'$])*", r"[\s)\]}*_`\"'$]*"
_ALONE = re.compile(rf"{_BEFORE}([A-Za-z]){_AFTER}[.:]?{_AFTER}")
# "B) the hall", "(B) the hall", "B. the hall", "**B**: the hall". "A hall" is no choice.
_FIRST = re.compile(r"\s*[*_`]*(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[*_`]*[).:])[*_`]*(?=\s|$)")
_SAID = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|would\s+be|should\s+be|must\s+be)|\s*[:=])?"
    r"(?:\s+(?:option|choice|letter))?\s*[:=]?)"
    rf"{_BEFORE}(?:([A-Z])(?![\w'])|([a-z])(?=[)\].:,;*_`}}]|\s*$))",
    re.MULTILINE,
)
# Not the words "A hall" and "I think".
_WORD = r"\s+(?!or\b|and\b)[a-z]"
_LETTER = re.compile(rf"(?<![\w'.])(?:[B-HJ-Z]|[AI](?!{_WORD}))(?![\w']|\.\w)")
# What follows the first letter of "A or B", "(A) and (C)", "A, B", "A. B.", but not of "A, since B is wrong".
_ANOTHER = re.compile(
    r"[)\]}*_`]*[ \t]*(?:or[ \t]*[(\[*_`]*[A-Z](?![\w'])"
    r"|(?:(?:,|/|&|and\b)(?:[ \t]*(?:and|or)\b)?|\.?)[ \t]*[(\[*_`]*"
    r"[A-Z][)\]*_`]*(?=[ \t]*(?:\n|$|[,.;/&)]|and\b|or\b)))"
)

# An answer says its choice at its beginning or its end.
_MOST_READ = 4_000


def read_choice(answer: str) -> str | None:
    """Return the letter that an answer chooses, in upper case; None if it names none, or several."""
    text = answer.strip()
    if len(text) > 2 * _MOST_READ:
        text = f"{text[:_MOST_READ]}\n{text[-_MOST_READ:]}"
    alone = _ALONE.fullmatch(text)
    if alone is not None:
        return alone[1].upper()
    # The last one counts: a model may change its mind.
    said = deque(_SAID.finditer(text), maxlen=1)
    found = said[0] if said else _FIRST.match(text)
    if found is not None:
        return None if _ANOTHER.match(text, found.end()) else (found[1] or found[2]).upper()
    letters = set(_LETTER.findall(text))
    return letters.pop() if len(letters) == 1 else None


def choice(prediction: str, reference: str) -> float:
    """Return 1 if both choose the same letter. A reference without a letter must be equal, as ``exact``."""
    name = reference.strip()
    # Not the last letter of "vitamin C".
    found = _ALONE.fullmatch(name) or _FIRST.match(name)
    if found is None:
        return exact_match(prediction, reference)
    return float(read_choice(prediction) == read_choice(name))


def choice_figures(prediction: str, reference: str) -> dict[str, float]:
    """Return ``exact``, ``f1``, ``contains`` and ``choice`` of an answer."""
    figures = {
        "exact": exact_match(prediction, reference),
        "f1": token_f1(prediction, reference),
        "contains": contains(prediction, reference),
        "choice": choice(prediction, reference),
    }
    name = reference.strip()
    is_article = not normalize(name)
    # The others remove articles, and so the letter "A": from this reference, or beside "B" in "A, B".
    if len(name) == 1 and name.isalpha() and (name.isupper() or is_article):
        contained = 0.0 if is_article else figures["contains"]
        figures |= {"exact": figures["choice"], "f1": figures["choice"]}
        figures["contains"] = max(contained, figures["choice"])
    elif is_article and _words(name):
        # A word such as "the" that is asked for.
        figures |= dict.fromkeys(("exact", "f1", "contains"), float(_words(prediction) == _words(name)))
    return figures


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
