"""Questions about all of many records at once: none can be answered without having read every one.

A sample example (kind ``count``): "Each line of the context is a message to a shop … How many of the messages are about
delivery?" over some thousand lines like "#17 | 2023-04-02 | user 31 | Hi, the courier never came with my kite."; 412 is right.

Source: generated here, offline, from a seed (see ``mailbox``); the kinds of questions are after OOLONG (Bertsch et al.
2025): what is most common, how many, which of two is more, within dates, of one user, which user.

Score: OOLONG's. A number is worth 0.75 to the power of its error, all else must be right; only what is exact counts as correct.
An answer's number is the only one in it, or else the only one in its last line that has any. A class or user must be the
only one that the answer names; where several tie, each is right.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from random import Random
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from .base import Ask, Example, Score
from .mailbox import DAYS, MATTERS, Mailbox, day, draw, explained
from .metrics import numbers, numeric_score
from .options import Length, TaskWithOptions
from .prose import GENERATOR

Kind = Literal["most-common", "count", "compare", "date-range", "user-count", "top-user"]
_KINDS: tuple[Kind, ...] = ("most-common", "count", "compare", "date-range", "user-count", "top-user")
_NUMERIC = ("count", "date-range", "user-count")
_WEIGHTS = (8, 6, 5, 4, 3, 2, 2)

_PREAMBLE = (
    "Each line of the context is a message to a shop: its number, date, user and text. What a message is about has to be read"
    " from its text; each is about exactly one of these: {matters}.\n\n{question}"
)


class _Question(NamedTuple):
    text: str
    references: tuple[str, ...]


class Oolong(TaskWithOptions):
    """Count and compare records whose class must be read first (OOLONG)."""

    name: ClassVar[str] = "oolong"

    kind: Literal[Kind, "all"] = Field(
        default="all", description="of question; all asks six of each text, one of each kind"
    )
    length: Length = Field(
        default=32_000, description="tokens of each text, about, four characters each; 128k is understood"
    )
    n: int = Field(default=60, ge=1, le=100_000, description="examples there are")
    seed: int = Field(default=0, description="another seed, other texts and questions")

    def examples(self) -> list[Example]:
        """``n`` examples; of kind ``all``, six in a row share a document."""
        return [self._example(index) for index in range(self.n)]

    def context(self, example: Example) -> str:
        """The records, a line each."""
        document = int(example.data["document"])
        return self._mailbox(document).text(self._random(f"text:{document}"))

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """As the top of the file says; the judge is not asked."""
        text = answer or ""
        value = _number_score(text, example) if example.kind in _NUMERIC else _name_score(text, example)
        return Score(
            value=value, correct=value == 1.0, metrics={"score": value, "exact": float(value == 1.0)}
        )

    def data_hash(self) -> str:
        """Of the options and the generator's version: they decide all."""
        return self.hash_of(GENERATOR, self.model_dump())

    def _example(self, index: int) -> Example:
        kind = _KINDS[index % len(_KINDS)] if self.kind == "all" else self.kind
        document = index // len(_KINDS) if self.kind == "all" else index
        question = _ask(self._random(f"question:{index}"), kind, self._mailbox(document))
        return Example(
            id=f"{self.name}-{index:04d}",
            query=_PREAMBLE.format(matters=explained(), question=question.text),
            references=question.references,
            document=f"{self.name}-{self.seed}-{document:04d}",
            kind=kind,
            data={"document": document},
        )

    def _mailbox(self, document: int) -> Mailbox:
        return _drawn(f"{self.name}:{self.seed}:records:{document}", self.length)

    def _random(self, what: str) -> Random:
        return Random(f"{self.name}:{self.seed}:{what}")  # noqa: S311 - anybody can make it again


@lru_cache(maxsize=1)
def _drawn(seed: str, length: int) -> Mailbox:
    random = Random(seed)  # noqa: S311
    return draw(random, length, random.sample(_WEIGHTS, len(_WEIGHTS)))


def _ask(random: Random, kind: Kind, mailbox: Mailbox) -> _Question:
    first, second = random.sample(list(MATTERS), 2)
    if kind == "most-common":
        return _Question(
            "Which of these are the messages most often about? Answer with its name alone.",
            _most(mailbox.matters),
        )
    if kind == "count":
        return _number(f"How many of the messages are about {first}?", mailbox.matters.count(first))
    if kind == "compare":
        return _compare(mailbox, first, second)
    if kind == "date-range":
        return _within_dates(random, mailbox, first)
    if kind == "user-count":
        return _of_user(random, mailbox)
    return _top_user(mailbox, random.choice(mailbox.matters))


def _number(question: str, count: int) -> _Question:
    return _Question(f"{question} Answer with the number alone, in digits.", (str(count),))


def _most(values: list[str] | list[int]) -> tuple[str, ...]:
    """All that occur most often."""
    counts = Counter[str | int](values)
    most = max(counts.values(), default=0)
    return tuple(sorted(str(value) for value, count in counts.items() if count == most))


def _compare(mailbox: Mailbox, first: str, second: str) -> _Question:
    difference = mailbox.matters.count(first) - mailbox.matters.count(second)
    answer = "more" if difference > 0 else "fewer" if difference < 0 else "equal"
    question = f"Are more, fewer or an equal number of messages about {first} than about {second}?"
    return _Question(f"{question} Answer with one word: more, fewer or equal.", (answer,))


def _within_dates(random: Random, mailbox: Mailbox, matter: str) -> _Question:
    start, end = sorted(random.sample(range(DAYS), 2))
    count = sum(
        start <= when <= end and what == matter
        for what, when in zip(mailbox.matters, mailbox.days, strict=True)
    )
    return _number(
        f"How many of the messages from {day(start)} to {day(end)}, both days included, are about {matter}?",
        count,
    )


def _of_user(random: Random, mailbox: Mailbox) -> _Question:
    user = random.choice(mailbox.users)
    own = [matter for matter, owner in zip(mailbox.matters, mailbox.users, strict=True) if owner == user]
    matter = random.choice(own)
    return _number(f"How many of the messages by user {user} are about {matter}?", own.count(matter))


def _top_user(mailbox: Mailbox, matter: str) -> _Question:
    question = f"Which user wrote most of the messages about {matter}? If several did, name any one of them."
    users = [user for user, what in zip(mailbox.users, mailbox.matters, strict=True) if what == matter]
    return _Question(f"{question} Answer with the user's number alone.", _most(users))


def _number_score(answer: str, example: Example) -> float:
    found = _only_number(answer)
    return 0.0 if found is None else numeric_score(found, float(example.references[0]))


def _only_number(answer: str) -> float | None:
    with_numbers = [found for line in answer.splitlines() if (found := set(numbers(line)))]
    everywhere = set[float]().union(*with_numbers)
    for candidates in (everywhere, *with_numbers[-1:]):
        if len(candidates) == 1:
            return candidates.pop()
    return None


def _name_score(answer: str, example: Example) -> float:
    named = set(re.findall(_NAMES[example.kind], answer.lower()))
    return float(len(named) == 1 and named <= set(example.references))


_NAMES = {
    "most-common": rf"\b(?:{'|'.join(MATTERS)})\b",
    "compare": r"\b(?:more|fewer|equal)\b",
    "top-user": r"\b\d+\b",
}
