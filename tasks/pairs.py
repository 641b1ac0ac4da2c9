"""Pairs of records that meet a condition together: every record has to be read, and then held against the others.

A sample example (kind ``same-user``): "Each line of the context is a message to a shop … List all pairs of a message about
billing and a message about defect by the same user." over some thousand lines; "(17, 403), (17, 588), (92, 250)" is right.

Source: generated here, offline, from a seed (see ``mailbox``), after the pairs of OOLONG in the work on recursive language
models (Zhang et al. 2025). Of two rare classes there are ten records each, however long the text is, so that the answer
stays short enough to be written.

Score: F1 over the set of pairs; the order within a pair does not matter. A pair is two numbers in parentheses or brackets with a
comma between. It counts as correct where the sets are equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations, product
from random import Random
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from .base import Ask, Example, Score
from .mailbox import DAYS, MATTERS, Mailbox, draw, explained
from .metrics import set_f1
from .options import Length, TaskWithOptions
from .prose import GENERATOR

Kind = Literal["same-user", "close-dates", "follow-up"]
_KINDS: tuple[Kind, ...] = ("same-user", "close-dates", "follow-up")

_RARE = 10
_RARE_USERS = 6
_RARE_DAYS = 90
_CLOSE, _SOON = 7, 14

_PREAMBLE = (
    "Each line of the context is a message to a shop: its number, date, user and text. What a message is about has to be read"
    " from its text; each is about exactly one of these: {matters}.\n\n{question} Name the messages by their numbers,"
    " and write each pair as (12, 57), the smaller number first."
)
_PAIR = re.compile(r"[(\[]\s*#?(\d{1,18})\s*,\s*#?(\d{1,18})\s*[)\]]")


class _Planted(NamedTuple):
    mailbox: Mailbox
    first: list[int]
    second: list[int]
    names: tuple[str, str]


class Pairs(TaskWithOptions):
    """List the pairs of records that meet a joint condition (set F1)."""

    name: ClassVar[str] = "pairs"

    kind: Literal[Kind, "all"] = Field(
        default="all", description="of condition; all asks three of each text, one of each kind"
    )
    length: Length = Field(
        default=32_000, description="tokens of each text, about, four characters each; 128k is understood"
    )
    n: int = Field(default=60, ge=1, le=100_000, description="examples there are")
    seed: int = Field(default=0, description="another seed, other texts and questions")

    def examples(self) -> list[Example]:
        """``n`` examples; of kind ``all``, three in a row share a document."""
        return [self._example(index) for index in range(self.n)]

    def context(self, example: Example) -> str:
        """The records, a line each."""
        document = int(example.data["document"])
        random = Random(f"{self.name}:{self.seed}:text:{document}")  # noqa: S311 - anybody can make it again
        return self._planted(document).mailbox.text(random)

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """As the top of the file says; the judge is not asked."""
        f1 = set_f1(_read(answer or ""), _read(example.references[0]))
        return Score(value=f1, correct=f1 == 1.0, metrics={"pair_f1": f1})

    def data_hash(self) -> str:
        """Of the options and the generator's version: they decide all."""
        return self.hash_of(GENERATOR, self.model_dump())

    def _example(self, index: int) -> Example:
        kind = _KINDS[index % len(_KINDS)] if self.kind == "all" else self.kind
        document = index // len(_KINDS) if self.kind == "all" else index
        question, pairs = _ASK[kind](self._planted(document))
        return Example(
            id=f"{self.name}-{index:04d}",
            query=_PREAMBLE.format(matters=explained(), question=question),
            references=(", ".join(f"({low}, {high})" for low, high in sorted(pairs)),),
            document=f"{self.name}-{self.seed}-{document:04d}",
            kind=kind,
            data={"document": document},
        )

    def _planted(self, document: int) -> _Planted:
        return _plant(f"{self.name}:{self.seed}:records:{document}", self.length)


@lru_cache(maxsize=1)
def _plant(seed: str, length: int) -> _Planted:
    """A mailbox with two rare classes, whose users and days are few enough to meet."""
    random = Random(seed)  # noqa: S311 - anybody can make it again
    rare = random.sample(list(MATTERS), 2)
    mailbox = draw(random, length, [0 if matter in rare else 1 for matter in MATTERS])
    places = random.sample(range(len(mailbox.matters)), 2 * _RARE)
    users = random.sample(sorted(set(mailbox.users)), min(_RARE_USERS, len(set(mailbox.users))))
    start = random.randrange(DAYS - _RARE_DAYS)
    for number, place in enumerate(places):
        mailbox.matters[place] = rare[number % 2]
        mailbox.users[place] = random.choice(users)
        mailbox.days[place] = start + random.randrange(_RARE_DAYS)
    first, second, third = places[:3]  # at least one pair of each kind
    mailbox.users[second] = mailbox.users[first]
    mailbox.days[first] = start
    mailbox.days[second], mailbox.days[third] = start + _SOON, start + _CLOSE
    return _Planted(mailbox, places[::2], places[1::2], (rare[0], rare[1]))


_Asked = tuple[str, set[tuple[int, int]]]


def _same_user(planted: _Planted) -> _Asked:
    users = planted.mailbox.users
    one, other = planted.names
    question = f"List all pairs of a message about {one} and a message about {other} by the same user."
    return question, {
        _ordered(a, b) for a, b in product(planted.first, planted.second) if users[a] == users[b]
    }


def _close_dates(planted: _Planted) -> _Asked:
    days = planted.mailbox.days
    question = f"List all pairs of messages that are both about {planted.names[0]} and whose dates are at most {_CLOSE} days apart."
    return question, {
        _ordered(a, b) for a, b in combinations(planted.first, 2) if abs(days[a] - days[b]) <= _CLOSE
    }


def _follow_up(planted: _Planted) -> _Asked:
    days = planted.mailbox.days
    one, other = planted.names
    question = (
        f"List all pairs of a message about {one} and a message about {other} that is dated later than it,"
        f" by {_SOON} days at most."
    )
    return question, {
        _ordered(a, b) for a, b in product(planted.first, planted.second) if 0 < days[b] - days[a] <= _SOON
    }


_ASK: dict[Kind, Callable[[_Planted], _Asked]] = {
    "same-user": _same_user,
    "close-dates": _close_dates,
    "follow-up": _follow_up,
}


def _ordered(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


def _read(answer: str) -> set[tuple[int, int]]:
    return {_ordered(int(one), int(other)) for one, other in _PAIR.findall(answer)}
