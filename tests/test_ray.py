"""Experiments over a Ray cluster of three nodes, one of which is killed. Without the extra ``ray`` they are skipped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from experiment_support import play, rows, settings
from lookup_task import entry_point
from supdist.tools.experiments.records import EXAMPLES, RECORDS, read_records
from supdist.tools.fake_openai import FakeOpenAI, Request, Text
from support import REPOSITORY

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.usefixtures("bare_environment"),
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install 'supdist-engine[ray]'"
    ),
]

N = 20


async def started(folder: Path, *arguments: str) -> Process:
    path = os.pathsep.join([str(entry_point(folder / "installed")), str(REPOSITORY / "tests")])
    environ = {**os.environ, "PYTHONPATH": path, "HOME": str(folder)}  # Ray keeps a token at home
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, env=environ, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def test_a_node_that_dies_half_way_costs_no_example_and_doubles_none(tmp_path: Path) -> None:
    half_way = asyncio.Event()
    served_by = Counter[str]()

    def play_and_tell(request: Request) -> Text:
        if request.model == "big":
            served_by[str(request.body["messages"][1]["content"])] += 1
        if len(server.requests) == 30:
            half_way.set()
        return Text(play(request).text, delay=0.05)

    async with FakeOpenAI(play_and_tell) as server:
        content = settings(server, n=N, concurrency=6, executor="ray")
        (tmp_path / "experiment.json").write_text(json.dumps(content))
        cluster = await started(tmp_path, str(REPOSITORY / "tests/ray_nodes.py"))
        try:
            address = await line(cluster)
            bench = await started(
                tmp_path, str(REPOSITORY / "tools/run_experiment.py"),
                "--config", "experiment.json", "--ray-address", address, "--out", "run",
            )  # fmt: skip
            await asyncio.wait_for(half_way.wait(), 60)
            assert cluster.stdin is not None
            cluster.stdin.write(b"kill\n")
            assert await line(cluster) == "killed"
            _, err = await asyncio.wait_for(bench.communicate(), 120)
            assert bench.returncode == 0, err.decode()
        finally:
            await asyncio.wait_for(cluster.communicate(), 60)
    records = read_records(tmp_path / "run")
    assert len(records) == N
    assert len((tmp_path / "run" / RECORDS).read_text().splitlines()) == N
    assert all(record.correct for record in records)
    assert {row["supervisor_calls"] for row in rows(tmp_path / "run")} == {"2"}
    assert max(served_by.values()) > 2, "none was under way on the node that died"
    for record in records:
        log = tmp_path / "run" / EXAMPLES / record.example / "supervisor.jsonl"
        events = [json.loads(text) for text in log.read_text().splitlines()]
        assert {event["run_id"] for event in events} == {record.run_id}
        assert events[-1]["event"] == "run_end"
