"""Documents on two sides: one to train on, one to validate with, and none on both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from ...sandbox_image.text import KEEP_SURROGATES

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


def documents(known: Iterable[Sequence[str]]) -> dict[str, str]:
    """One name for each document, found by all its names: those that share one are the same document.

    Args:
        known: of each mention of a document the names by which it is known there, in any order.
    """
    groups: dict[str, set[str]] = {}
    for names in known:
        together = set(names).union(*(groups[name] for name in names if name in groups))
        groups.update(dict.fromkeys(together, together))
    return {name: min(group) for name, group in groups.items()}


def split(names: Iterable[str], validation: float, seed: int) -> dict[str, Side]:
    """The side of every document.

    It is decided by a hash of the name and the seed alone, so that a document stays where it is when others are added;
    but where a side would be empty, and there are two documents or more, the one that comes nearest to it goes there.

    Args:
        names: of the documents; order and repetition do not matter.
        validation: the part of them that is to validate with, 0 to 1; none where 0, all where 1.
        seed: another one gives another split.
    """
    places = {name: _place(name, seed) for name in set(names)}
    order = sorted(set(places.values()))
    if len(order) > 1 and 0 < validation < 1:
        # Above the least place and not above the greatest, there is a document on each side.
        validation = min(max(validation, order[0] + _LESS_THAN_A_STEP), order[-1])
    return {name: "validation" if place < validation else "train" for name, place in places.items()}


_STEPS = 1 << 48
_LESS_THAN_A_STEP = 0.5 / _STEPS


def _place(name: str, seed: int) -> float:
    """A number from 0 to 1 that is a document's own, in steps."""
    found = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", KEEP_SURROGATES)).digest()
    return int.from_bytes(found[:6], "big") / _STEPS
