"""Every row of the catalogue is tested or has its reason, and no case is lost in silence."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from attacks.catalogue import CATALOGUE, NOT_APPLICABLE, PARTLY

COLLECTED = 494
"""Cases of this folder. Changed by hand with every case, so that none disappears unseen."""

_ROW = re.compile(r"(?:\[|-|::test_)([A-Za-z]{2}\d+)(?=[-_\]]|$)")


@pytest.fixture
async def collected() -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", str(Path(__file__).parent),
        cwd=Path(__file__).parent.parent.parent, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    return [line for line in output.decode().splitlines() if "::" in line]


async def test_every_row_is_tested_or_has_its_reason(collected: list[str]) -> None:
    tested = {found.upper() for case in collected for found in _ROW.findall(case)} & CATALOGUE
    assert tested | NOT_APPLICABLE.keys() == CATALOGUE, sorted(CATALOGUE - tested - NOT_APPLICABLE.keys())
    assert tested & NOT_APPLICABLE.keys() == set()
    assert PARTLY.keys() <= tested
    assert all(NOT_APPLICABLE.values())


async def test_as_many_cases_are_collected_as_were_written(collected: list[str]) -> None:
    assert len(collected) == COLLECTED


async def test_no_case_may_be_skipped() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        if path != Path(__file__):
            assert "pytest.skip" not in path.read_text(), path.name
            assert "xfail" not in path.read_text(), path.name
