"""Group LG, the sizes of logs: what a guest writes cannot fill the disk of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attacks.lab import Arena
from support import block

from supdist.engine import RunLimits, SandboxConfig, arun
from supdist.handlers import ScriptedHandler

MIB = 1 << 20
BUDGET = 8 * MIB

# Each writes more than 15 MiB of log where nothing bounds it.
FLOODS = {
    # A control character takes six bytes of JSON.
    "LG5-output": "import sys\nsys.stdout.write('\\x01' * (15 << 20))",
    "LG5-outputs": "for n in range(120): print(str(n) * 150_000)",
    "LG5-display": "class Shown:\n"
    "    def _repr_html_(self): return '\\x01' * (7 << 20)\n"
    "    def __repr__(self): return 'x'\n"
    "Shown()",
    # Refused prompts cost nothing, and are logged.
    "LG5-prompts": "for n in range(20):\n"
    "    worker_batch([str(n) + m * (1 << 18) for m in 'abcd'], return_errors=True)",
    "LG5-short-prompts": "for n in range(200):\n"
    "    worker_batch([str(n) + m * 20_000 for m in 'abcd'], return_errors=True)",
    "LG5-answer": "FINAL('\\x01' * (4 << 20))",
}


async def log_of(folder: Path, box: SandboxConfig, code: str, **options: Any) -> int:
    """Return the bytes of the logs of a run of this code."""
    options = {"limits": RunLimits(max_worker_calls=1), **options}
    done = await arun(
        query="q",
        context="c",
        supervisor=ScriptedHandler([block(code), block("FINAL('over')")]),
        worker=ScriptedHandler(lambda _: "x"),
        sandbox=box.model_copy(update={"output": 16 * MIB, "display": 8 * MIB}),
        log_dir=folder,
        **options,
    )
    assert done.stop_reason == "final"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("flood", list(FLOODS))
async def test_no_output_prompt_or_value_fills_the_disk(
    flood: str, limits: SandboxConfig, tmp_path: Path
) -> None:
    size = await log_of(tmp_path, limits, FLOODS[flood], log_bytes=BUDGET)
    # Beyond the budget a line has about 1 KiB.
    assert size < BUDGET + MIB


async def test_lg5_without_a_budget_prompts_fill_it(
    limits: SandboxConfig, arena: Arena, tmp_path: Path
) -> None:
    """The control: each of these prompts is another."""
    arena.most_seconds = 60
    size = await log_of(tmp_path, limits, FLOODS["LG5-prompts"], log_bytes=None)
    assert size > 2 * BUDGET
