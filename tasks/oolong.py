"""Questions about all of many records.

A sample example: "How many of the messages are about delivery?" over thousands of messages. After OOLONG
(Bertsch et al. 2025).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import ClassVar, Literal, get_args

from pydantic import Field

from .base import Ask, Example, Score
from .mailbox import DAYS, MATTERS, Mailbox, day, draw
from .mailbox_task import MailboxTask, Question
from .metrics import numbers, numeric_score

Kind = Literal["most-common", "count", "compare", "date-range", "user-count", "top-user"]

_NUMERIC = ("count", "date-range", "user-count")
# Unequal, so that one class is clearly the most common.
_WEIGHTS = (8, 6, 5, 4, 3, 2, 2)


class Oolong(MailboxTask):
    """Count and compare records whose class must be read first (OOLONG)."""

    name: ClassVar[str] = "oolong"
    kinds: ClassVar[tuple[str, ...]] = get_args(Kind)

    kind: Literal[Kind, "all"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # a frozen field
        default="all", description="kind of question; all asks six about each text, one of each kind"
    )

    def mailbox(self, document: int) -> Mailbox:
        """Return the records of a document."""
        return _draw(f"{self.name}:{self.seed}:records:{document}", self.length)

    def question(self, kind: str, document: int, index: int) -> Question:
        """Return a question of this kind."""
        return _ask(self.random(f"question:{index}"), kind, self.mailbox(document))

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Return OOLONG's score: partial credit for numbers, else 0 or 1."""
        text = answer or ""
        value = _number_score(text, example) if example.kind in _NUMERIC else _name_score(text, example)
        exact = value == 1.0
        return Score(value=value, correct=exact, metrics={"score": value, "exact": float(exact)})


# One document serves six examples in a row, and drawing it takes most of their time.
@lru_cache(maxsize=1)
def _draw(seed: str, length: int) -> Mailbox:
    random = Random(seed)  # noqa: S311 - not for secrets
    return draw(random, length, random.sample(_WEIGHTS, len(_WEIGHTS)))


def _ask(random: Random, kind: str, mailbox: Mailbox) -> Question:
    # Drawn for every kind, also where it is not used: another order of draws would give other questions.
    first, second = random.sample(list(MATTERS), 2)
    if kind == "most-common":
        text = "Which of these are the messages most often about? Answer with its name alone."
        return Question(text, _most_common(mailbox.matters))
    if kind == "count":
        return _count(f"How many of the messages are about {first}?", mailbox.matters.count(first))
    if kind == "compare":
        return _compare(mailbox, first, second)
    if kind == "date-range":
        return _date_range(random, mailbox, first)
    if kind == "user-count":
        return _user_count(random, mailbox)
    return _top_user(mailbox, random.choice(mailbox.matters))


def _count(text: str, count: int) -> Question:
    return Question(f"{text} Answer with the number alone, in digits.", (str(count),))


def _most_common(values: Sequence[str | int]) -> tuple[str, ...]:
    counts = Counter(values)
    most = max(counts.values(), default=0)
    return tuple(sorted(str(value) for value, count in counts.items() if count == most))


def _compare(mailbox: Mailbox, first: str, second: str) -> Question:
    difference = mailbox.matters.count(first) - mailbox.matters.count(second)
    answer = "more" if difference > 0 else "fewer" if difference < 0 else "equal"
    text = f"Are more, fewer or an equal number of messages about {first} than about {second}?"
    return Question(f"{text} Answer with one word: more, fewer or equal.", (answer,))


def _date_range(random: Random, mailbox: Mailbox, matter: str) -> Question:
    start, end = sorted(random.sample(range(DAYS), 2))
    records = zip(mailbox.matters, mailbox.days, strict=True)
    count = sum(start <= when <= end and what == matter for what, when in records)
    dates = f"from {day(start)} to {day(end)}, both days included,"
    return _count(f"How many of the messages {dates} are about {matter}?", count)


def _user_count(random: Random, mailbox: Mailbox) -> Question:
    user = random.choice(mailbox.users)
    own = [matter for matter, owner in zip(mailbox.matters, mailbox.users, strict=True) if owner == user]
    matter = random.choice(own)
    return _count(f"How many of the messages by user {user} are about {matter}?", own.count(matter))


def _top_user(mailbox: Mailbox, matter: str) -> Question:
    text = f"Which user wrote most of the messages about {matter}? If several did, name any one of them."
    users = [user for user, what in zip(mailbox.users, mailbox.matters, strict=True) if what == matter]
    return Question(f"{text} Answer with the user's number alone.", _most_common(users))


def _number_score(answer: str, example: Example) -> float:
    found = _only_number(answer)
    return 0.0 if found is None else numeric_score(found, float(example.references[0]))


def _only_number(answer: str) -> float | None:
    # One number in the whole answer, or else in the last line that has numbers: models often reason first.
    by_line = [found for line in answer.splitlines() if (found := set(numbers(line)))]
    whole = set[float]().union(*by_line)
    for candidates in (whole, *by_line[-1:]):
        if len(candidates) == 1:
            return candidates.pop()
    return None


_NAMES = {
    "most-common": rf"\b(?:{'|'.join(MATTERS)})\b",
    "compare": r"\b(?:more|fewer|equal)\b",
    "top-user": r"\b\d+\b",
}


def _name_score(answer: str, example: Example) -> float:
    named = set(re.findall(_NAMES[example.kind], answer.lower()))
    # One name only: an answer must not score by listing everything. Of classes that tie, each is right.
    return float(len(named) == 1 and named <= set(example.references))
