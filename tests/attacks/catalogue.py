"""Every row of the catalogue of attacks, and those that do not apply here, each with its reason."""

from __future__ import annotations

import re
from pathlib import Path

_GROUPS = {
    "FS": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16),
    "EN": (1, 2, 3, 4, 5, 6, 9, 10),
    "NW": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
    "PR": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16),
    "ME": (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14),
    "CP": (1, 2, 4, 5, 8),
    "OU": (1, 2, 3, 5, 6, 7, 8),
    "RP": (1, 2, 3, 4, 5, 7, 9, 11, 13, 14, 15, 17, 19, 21),
    "SE": (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15),
    "PK": (1, 2, 3, 5, 6),
    "MP": (1, 2, 3, 4, 5, 7, 9, 11),
    "SY": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 18),
    "DV": (1, 2, 3),
    "FT": (1, 2, 3, 4, 5, 6, 7, 10, 12),
    "LG": (1, 2, 3, 4, 6),
    "BR": (1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 16),
    "SC": (1, 2, 5),
    "LC": (1, 2, 4, 5, 6, 7, 8, 11, 12, 13),
    "PM": (1,),
}

CATALOGUE = frozenset(f"{group}{number}" for group, numbers in _GROUPS.items() for number in numbers)

NOT_APPLICABLE = {
    "BR5": "no primitive starts a run inside a run, so there is no depth to bound",
}

_DAEMONS_OWN = (
    "the daemon makes the namespaces; test_daemon.py has it fail at each step that the engine asks for"
)

# A case by its function's name, with or without what is in brackets, or a whole row.
NOT_HERE: dict[str, dict[str, str]] = {
    "process": {
        "test_daemon": "there is no container daemon behind forks",
        "test_en4_nothing_that_a_daemon_tells_holds_a_secret": "there is no container daemon behind forks",
    },
    "docker": {
        "test_a_start_that_fails_half_way_says_where_and_leaves_nothing": _DAEMONS_OWN,
    },
    "docker-runsc": {
        "test_a_start_that_fails_half_way_says_where_and_leaves_nothing": _DAEMONS_OWN,
    },
}
"""For each backend the cases that cannot be tried over it, or that would say nothing there, with the reason."""

PARTLY = {
    "LC13": "70 sandboxes a run of the suite, not 10,000; growth by a page each would show",
    "RP3": "the guest has one connected stream and no address; the flood is of attempts to find one",
    "RP7": "the wire is MessagePack: the same shapes in its terms",
}
"""Rows that are tested in the part that exists here, and what is left out."""

_ROW = re.compile(r"(?:\[|-|::test_)([A-Za-z]{2}\d+)(?=[-_\]]|$)")


def rows_of(case: str) -> set[str]:
    """The rows that a case is about, by the id of its test."""
    return {found.upper() for found in _ROW.findall(case)} & CATALOGUE


def left_out(backend: str, case: str) -> str | None:
    """The key of ``NOT_HERE`` for which a case is not tried over a backend; None where it is."""
    file, name = case.split("::", 1)
    names = {Path(file).stem, name, name.partition("[")[0], *rows_of(case)}
    return next((key for key in NOT_HERE[backend] if key in names), None)
