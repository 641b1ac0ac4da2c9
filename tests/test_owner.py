from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from supdist.engine.sandbox.owner import current_owner, has_ended


def lease_of_a_dead_process() -> str:
    code = "from supdist.engine.sandbox.owner import current_owner; print(current_owner())"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_process_that_lives_has_not_ended_and_a_dead_one_has() -> None:
    assert not has_ended(current_owner())
    assert has_ended(lease_of_a_dead_process())


def test_another_process_with_a_dead_ones_pid_does_not_keep_its_lease() -> None:
    place, _, _ = current_owner().rpartition(":")
    assert has_ended(f"{place}:1")  # this pid, but it started at another time


@pytest.mark.parametrize("lease", ["", "x", "a:b:c:d", "boot:1:1:1", "::::"])
def test_of_a_process_elsewhere_nothing_is_said(lease: str) -> None:
    assert not has_ended(lease)


def test_what_stands_in_a_lease_is_no_path(tmp_path: Path) -> None:
    place, _, started = current_owner().rpartition(":")
    boot = place.rpartition(":")[0]
    assert not has_ended(f"{boot}:../{tmp_path}:{started}")
