"""Without control groups the kernel's structures of mappings count as memory."""

from __future__ import annotations

import os

import pytest

from supdist.engine import Outcome, SandboxConfig
from supdist.engine.jail.process_tree import Memory, Process, ProcessTree
from supdist.engine.jail.watchdog import Watchdog

MIB = 1 << 20
LIMITS = SandboxConfig(memory="64MiB", pids=8).resource_limits()
INIT, REPL = (Process(pid, 100, "S", 1, 0.0, 0.0) for pid in (1, 2))


class Mapped(ProcessTree):
    """Two processes with as many mappings each."""

    def __init__(self, mapped: int, address_space: int) -> None:
        super().__init__(0)
        self.mapped = mapped
        self.most = address_space // os.sysconf("SC_PAGE_SIZE")
        self.counted = 0

    def processes(self) -> list[Process]:
        """See ``ProcessTree.processes``."""
        return [INIT, REPL]

    def memory(self, process: Process) -> Memory:
        """See ``ProcessTree.memory``."""
        return Memory(20 * MIB, 0, most_mappings=self.most)

    def proportional_memory(self, process: Process) -> int:
        """See ``ProcessTree.proportional_memory``."""
        return 20 * MIB

    def mappings(self, process: Process) -> int:
        """See ``ProcessTree.mappings``."""
        self.counted += 1
        return self.mapped


@pytest.mark.parametrize(
    ("mapped", "address_space", "outcome", "counted"),
    [
        (60_000, 300 * MIB, Outcome.OOM, 2),
        # Much address space, as a thread's stack and arena take, is no mapping.
        (300, 8 << 30, None, 2),
        # Too little to hold so many.
        (300, 64 * MIB, None, 0),
    ],
)
def test_mappings_count_and_are_counted_only_if_they_may_matter(
    mapped: int, address_space: int, outcome: Outcome | None, counted: int
) -> None:
    tree = Mapped(mapped, address_space)
    dog = Watchdog(tree, LIMITS, sockets=None, duty=None, processors=2, clock=lambda: 0.0)
    ended = dog.check(1.0)
    assert (ended[0] if ended else None, tree.counted) == (outcome, counted)
