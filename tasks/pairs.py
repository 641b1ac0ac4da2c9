"""Pairs of records that meet a condition: an answer must compare every record with the others.

A sample example: to "List all pairs of a message about billing and a message about defect by the same user."
"(17, 403), (92, 250)" is right. After the pairs of OOLONG in Zhang et al. (2025).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations, product
from random import Random
from typing import ClassVar, Literal, NamedTuple, get_args

from pydantic import Field

from .base import Ask, Example, Score
from .mailbox import DAYS, MATTERS, Mailbox, draw
from .mailbox_task import MailboxTask, Question
from .metrics import set_f1

Kind = Literal["same-user", "close-dates", "follow-up"]
_NumberPair = tuple[int, int]

# Ten records of each rare class in a text of any length: the answer stays short enough to write.
_RARE = 10
# Few users and days, so that rare records meet.
_RARE_USERS = 6
_RARE_DAYS = 90
_CLOSE_DAYS, _FOLLOW_UP_DAYS = 7, 14

_FORMAT = "Name the messages by their numbers, and write each pair as (12, 57), the smaller number first."
# 18 digits at most: Python refuses to convert very long texts to int.
_PAIR = re.compile(r"[(\[]\s*#?(\d{1,18})\s*,\s*#?(\d{1,18})\s*[)\]]")


class _Records(NamedTuple):
    mailbox: Mailbox
    first: list[int]
    second: list[int]
    names: tuple[str, str]


class Pairs(MailboxTask):
    """List the pairs of records that meet a joint condition (set F1)."""

    name: ClassVar[str] = "pairs"
    kinds: ClassVar[tuple[str, ...]] = get_args(Kind)

    kind: Literal[Kind, "all"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]  # a frozen field
        default="all", description="kind of condition; all asks three about each text, one of each kind"
    )

    def mailbox(self, document: int) -> Mailbox:
        """Return the records of a document."""
        return self._records(document).mailbox

    def question(self, kind: str, document: int, index: int) -> Question:
        """Return the question of this kind."""
        text, pairs = _QUESTIONS[kind](self._records(document))
        reference = ", ".join(f"({low}, {high})" for low, high in sorted(pairs))
        return Question(f"{text} {_FORMAT}", (reference,))

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Return the F1 over the set of pairs."""
        f1 = set_f1(_pairs_in(answer or ""), _pairs_in(example.references[0]))
        return Score(value=f1, correct=f1 == 1.0, metrics={"pair_f1": f1})

    def _records(self, document: int) -> _Records:
        return _draw(f"{self.name}:{self.seed}:records:{document}", self.length)


# One document serves three examples in a row, and drawing it takes most of their time.
@lru_cache(maxsize=1)
def _draw(seed: str, length: int) -> _Records:
    random = Random(seed)  # noqa: S311 - not for secrets
    rare = random.sample(list(MATTERS), 2)
    mailbox = draw(random, length, [0 if matter in rare else 1 for matter in MATTERS])
    places = random.sample(range(len(mailbox.matters)), 2 * _RARE)
    users = random.sample(sorted(set(mailbox.users)), min(_RARE_USERS, len(set(mailbox.users))))
    start = random.randrange(DAYS - _RARE_DAYS)
    for number, place in enumerate(places):
        mailbox.matters[place] = rare[number % 2]
        mailbox.users[place] = random.choice(users)
        mailbox.days[place] = start + random.randrange(_RARE_DAYS)
    # At least one pair of each kind.
    first, second, third = places[:3]
    mailbox.users[second] = mailbox.users[first]
    mailbox.days[first] = start
    mailbox.days[second], mailbox.days[third] = start + _FOLLOW_UP_DAYS, start + _CLOSE_DAYS
    return _Records(mailbox, places[::2], places[1::2], (rare[0], rare[1]))


def _same_user(records: _Records) -> tuple[str, set[_NumberPair]]:
    users = records.mailbox.users
    one, other = records.names
    text = f"List all pairs of a message about {one} and a message about {other} by the same user."
    pairs = product(records.first, records.second)
    return text, {_ordered(a, b) for a, b in pairs if users[a] == users[b]}


def _close_dates(records: _Records) -> tuple[str, set[_NumberPair]]:
    days = records.mailbox.days
    text = (
        f"List all pairs of messages that are both about {records.names[0]} and whose dates are at most"
        f" {_CLOSE_DAYS} days apart."
    )
    pairs = combinations(records.first, 2)
    return text, {_ordered(a, b) for a, b in pairs if abs(days[a] - days[b]) <= _CLOSE_DAYS}


def _follow_up(records: _Records) -> tuple[str, set[_NumberPair]]:
    days = records.mailbox.days
    one, other = records.names
    text = (
        f"List all pairs of a message about {one} and a message about {other} that is dated later than it,"
        f" by {_FOLLOW_UP_DAYS} days at most."
    )
    pairs = product(records.first, records.second)
    return text, {_ordered(a, b) for a, b in pairs if 0 < days[b] - days[a] <= _FOLLOW_UP_DAYS}


_QUESTIONS: dict[str, Callable[[_Records], tuple[str, set[_NumberPair]]]] = {
    "same-user": _same_user,
    "close-dates": _close_dates,
    "follow-up": _follow_up,
}


def _ordered(one: int, other: int) -> _NumberPair:
    return (one, other) if one < other else (other, one)


def _pairs_in(text: str) -> set[_NumberPair]:
    return {_ordered(int(one), int(other)) for one, other in _PAIR.findall(text)}
