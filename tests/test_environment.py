"""What every guest finds around it is written down once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from supdist.sandbox_image import environment

DOCKERFILE = Path(environment.__file__).with_name("Dockerfile")


def test_the_image_sets_the_variables_of_every_guest() -> None:
    """Its PATH is that of its base, where the base has its Python, and where pip works in a build."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE.read_text(), re.MULTILINE)
    set_there = dict(re.findall(r"(\w+)=(\S+)", block))
    assert set_there.pop("SUPDIST_WALL") == "container"
    assert set_there.pop("PIP_BREAK_SYSTEM_PACKAGES") == "1"
    of_guests = {"PATH", "PYTHONPATH"}
    assert set_there == {k: v for k, v in environment.VARIABLES.items() if k not in of_guests}


@pytest.mark.parametrize(
    ("cpus", "pids", "threads"), [(0.5, 64, "1"), (2.5, 64, "3"), (32.0, 64, "16"), (4.0, 1, "1")]
)
def test_numerical_libraries_start_as_many_threads_as_may_run(cpus: float, pids: int, threads: str) -> None:
    variables = environment.packages_variables("/opt/packages", cpus, pids)
    assert variables == {
        "PYTHONPATH": "/opt/packages:/opt/commands",
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }
