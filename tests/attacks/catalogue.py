"""Every row of the catalogue of attacks, and those that do not apply here, each with its reason."""

from __future__ import annotations

import re
from pathlib import Path

_GROUPS = {
    "FS": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16),
    "EN": (1, 2, 3, 4, 5, 6, 9, 10, 11),
    "NW": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    "PR": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17),
    "ME": (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20),
    "CP": (1, 2, 4, 5, 8, 9, 10, 11),
    "OU": (1, 2, 3, 5, 6, 7, 8, 9, 10),
    "RP": (1, 2, 3, 4, 5, 7, 9, 11, 13, 14, 15, 17, 19, 21, 22, 23, 24, 25, 26),
    "SE": (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15),
    "PK": (1, 2, 3, 5, 6),
    "MP": (1, 2, 3, 4, 5, 7, 9, 11),
    "SY": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 18),
    "DV": (1, 2, 3),
    "FT": (1, 2, 3, 4, 5, 6, 7, 10, 12),
    "LG": (1, 2, 3, 4, 5, 6),
    "BR": (1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 16),
    "SC": (1, 2, 5),
    "LC": (1, 2, 4, 5, 6, 7, 8, 11, 12, 13),
    "PM": (1, 2),
}

CATALOGUE = frozenset(f"{group}{number}" for group, numbers in _GROUPS.items() for number in numbers)

NOT_APPLICABLE: dict[str, str] = {}

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
        # gVisor's kernel is isolated itself: it makes some 70 system calls of the host and has no network.
        # The filter for guests of Linux is not applied between a guest and gVisor.
        **dict.fromkeys(
            (
                "test_a_call_is_refused_before_the_kernel_looks_at_it[SY2]",
                "test_a_call_is_refused_before_the_kernel_looks_at_it[SY4]",
                "test_a_call_is_refused_before_the_kernel_looks_at_it[SY6]",
                "test_a_call_is_refused_before_the_kernel_looks_at_it[SY7]",
                "test_a_call_is_refused_before_the_kernel_looks_at_it[SY10]",
                "test_a_call_is_refused_before_the_kernel_looks_at_it[EN5]",
                "test_a_call_is_refused_before_the_kernel_looks_at_it[FS5]",
                "test_fs5_files_cannot_be_opened_by_handle",
                "test_sy2_no_process_gets_a_namespace",
                "test_sy13_no_terminal_can_be_typed_into",
                "test_another_abi_is_no_way_around[SY18-int80]",
                "test_pr11_no_process_can_be_looked_into_or_steered",
                "test_nw9_only_harmless_families_of_sockets_open",
                "test_nw10_descriptors_in_flight_of_one_do_not_stop_another",
                "test_me4_there_is_no_memory_that_outlives_processes",
                "test_me5_huge_pages_are_refused",
                "test_dv2_no_device_can_be_made",
                "test_dv2_a_node_that_is_there_is_dead_on_scratch",
            ),
            "gVisor's own kernel answers, and there is nothing of the host's behind what it gives",
        ),
        "test_a_death_from_outside_is_told_within_two_seconds[LC1-python]": "a guest's process is none of"
        " the host's",
        "test_watchdog": "CI's runsc is configured with --ignore-cgroups, so that nothing limits or counts"
        " memory and processor time there",
        "test_fs10_inodes_cannot_be_used_up": "gVisor's scratch counts no files; they are its memory, see"
        " the next",
        # `supdist-engine doctor` finds it, and says what to do.
        **dict.fromkeys(
            (
                "test_memory_is_bounded_and_the_verdict_true[ME1-list]",
                "test_memory_is_bounded_and_the_verdict_true[ME3]",
                "test_memory_is_bounded_and_the_verdict_true[ME4-shared-mapping]",
                "test_memory_is_bounded_and_the_verdict_true[ME5-memfd]",
                "test_memory_is_bounded_and_the_verdict_true[ME10-agent]",
                "test_memory_is_bounded_and_the_verdict_true[ME10-child]",
                "test_me2_slow_growth_over_cells_ends_truthfully",
                "test_me6_full_buffers_are_bounded",
                "test_time_has_an_end[CP8-constants]",
            ),
            "CI's runsc is configured with --ignore-cgroups, as its machines need it, so that no memory"
            " is limited there",
        ),
    },
}
"""For each backend, the cases that it cannot run or that would prove nothing, with the reason."""

PARTLY = {
    "NW12": "one user's sandboxes share the count where he has no subordinate ids; cells and shims go on",
    "ME19": "as NW12: pipes of the other are small then",
    "LC13": "70 sandboxes a run of the suite, not 10,000; growth by a page each would show",
    "RP3": "the guest has one connected stream and no address; the flood is of attempts to find one",
    "RP7": "the wire is MessagePack: the same shapes in its terms",
}
"""Rows that are tested in the part that exists here, and what is left out."""

WEAKER = {
    "docker": {
        "EN2": "init is seen in /proc, though nothing of it can be read: a daemon mounts /proc without"
        " hidepid",
        "EN9": "mountinfo names the folders in which the daemon keeps its layers",
        "NW6": "a socket that everybody may write to and that a program keeps in the folder of packages"
        " answers: it is a bind",
        "SY1": "all sandboxes are one user of the host, and share what the kernel counts by user"
        " (inotify, pages for pipes)",
        "NW12": "all sandboxes are one user of the host: descriptors in flight of one count for another",
        "ME19": "as NW12, for the pages of pipes",
        "ME20": "as NW12, for waiting signals; the daemon's limit holds",
    },
    "docker-runsc": {
        "EN2": "init is seen in /proc, and it can be looked into",
        "PR3": "init can be killed and stopped: the sandbox's own end, told at once or with the cell's time",
        "PR17": "init's limits can be lowered: the sandbox's own end, told at once",
        "PR8": "a refused process is told to the guest alone, so that its cell's outcome is its own error",
        "SY1": "no_new_privs and the filter cannot be measured: /proc does not tell; a guest may set its"
        " own priority among its own",
        "LC4": "thirty at once, not a hundred: a start uses both processors of a small machine for a second",
    },
}
"""Rows that hold over containers, and how they hold less than over the process backend."""

_ROW = re.compile(r"(?:\[|-|::test_)([A-Za-z]{2}\d+)(?=[-_\]]|$)")


def rows_of(case: str) -> set[str]:
    """The rows that a case is about, by the id of its test."""
    return {found.upper() for found in _ROW.findall(case)} & CATALOGUE


def left_out(backend: str, case: str) -> str | None:
    """The key of ``NOT_HERE`` for which a case is not tried over a backend; None where it is."""
    file, name = case.split("::", 1)
    names = {Path(file).stem, name, name.partition("[")[0], *rows_of(case)}
    return next((key for key in NOT_HERE[backend] if key in names), None)
