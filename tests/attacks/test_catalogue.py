"""Every row of the catalogue is tested, or has a reason, over each backend."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from attacks.catalogue import CATALOGUE, NOT_APPLICABLE, NOT_HERE, PARTLY, WEAKER, left_out, rows_of

COLLECTED = {"process": 574, "docker": 583, "docker-runsc": 538}
"""Cases of this folder that are tried over each backend. Changed by hand, so that none disappears unseen."""


@pytest.fixture(autouse=True)
def arena() -> None:
    """Nothing is attacked here."""


async def collect(backend: str, *options: str) -> list[str]:
    """The ids of the cases that pytest would try."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "--backend",
        backend,
        *options,
        str(Path(__file__).parent),
        cwd=Path(__file__).parent.parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return [line for line in output.decode().splitlines() if "::" in line]


@pytest.fixture
async def all_cases() -> list[str]:
    """Of every backend."""
    return await collect("process", "--all-cases")


async def test_every_row_is_tested_or_has_its_reason(all_cases: list[str]) -> None:
    tested = {row for case in all_cases for row in rows_of(case)}
    assert tested | NOT_APPLICABLE.keys() == CATALOGUE, sorted(CATALOGUE - tested - NOT_APPLICABLE.keys())
    assert tested & NOT_APPLICABLE.keys() == set()
    assert PARTLY.keys() <= tested
    assert all(NOT_APPLICABLE.values())
    assert all(weaker.keys() <= tested and all(weaker.values()) for weaker in WEAKER.values())


@pytest.mark.parametrize("over", NOT_HERE)
async def test_as_many_cases_are_tried_as_were_written(all_cases: list[str], over: str) -> None:
    """What is missing is what has its reason, and every reason is one for some case."""
    without = {case: left_out(over, case) for case in all_cases}
    tried = await collect(over)
    assert tried == [case for case, key in without.items() if key is None]
    assert len(tried) == COLLECTED[over]
    assert set(without.values()) - {None} == NOT_HERE[over].keys()
    assert all(NOT_HERE[over].values())


async def test_no_case_may_be_skipped() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        if path != Path(__file__):
            assert "pytest.skip" not in path.read_text(), path.name
            assert "xfail" not in path.read_text(), path.name


_WITH_A_NEW_BACKEND = """
import sys
sys.path.insert(0, "tests")
import support
support.BACKENDS["new"] = {"backend": "process"}
import pytest
early = "ignore::pytest.PytestAssertRewriteWarning"  # support imports anyio
sys.exit(pytest.main(["tests/attacks", "--backend", "new", "--collect-only", "-n2", "-W", early]))
"""


async def test_a_backend_that_the_attacks_do_not_know_is_one_usage_error() -> None:
    root = Path(__file__).parent.parent.parent
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WITH_A_NEW_BACKEND, cwd=root, stdout=PIPE, stderr=PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == pytest.ExitCode.USAGE_ERROR
    assert "NOT_HERE in catalogue.py" in errors.decode()
    assert b"INTERNALERROR" not in output + errors
