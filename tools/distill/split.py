"""Divides documents into train and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from ...sandbox_image.text import KEEP_SURROGATES

Side = Literal["train", "validation"]
SIDES: tuple[Side, ...] = ("train", "validation")


def documents(known: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return one name for each name of a document. Mentions that share a name are one document."""
    groups: dict[str, set[str]] = {}
    for names in known:
        together = set(names).union(*(groups[name] for name in names if name in groups))
        groups.update(dict.fromkeys(together, together))
    return {name: min(group) for name, group in groups.items()}


# No document is on both sides.
def split(names: Iterable[str], validation: float, seed: int) -> dict[str, Side]:
    """Return the side of every document; ``validation`` is a share, 0 to 1."""
    # A hash of name and seed decides, so that a document keeps its side when others are added.
    places = {name: _place(name, seed) for name in set(names)}
    order = sorted(set(places.values()))
    if len(order) > 1 and 0 < validation < 1:
        # Two documents or more: neither side may be empty.
        validation = min(max(validation, order[0] + _LESS_THAN_A_STEP), order[-1])
    return {name: "validation" if place < validation else "train" for name, place in places.items()}


_STEPS = 1 << 48
_LESS_THAN_A_STEP = 0.5 / _STEPS


def _place(name: str, seed: int) -> float:
    # In steps from 0 to 1.
    found = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", KEEP_SURROGATES)).digest()
    return int.from_bytes(found[:6], "big") / _STEPS
