"""Experiments over a Ray cluster of three nodes; one node is killed. They need the extra ``ray``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
from eval_support import play, rows, settings
from lookup_task import python_path
from support import REPOSITORY

from supdist.tools.evals.records import EXAMPLES, RECORDS, read_records
from supdist.tools.testing.fake_openai import FakeOpenAI, Request, Text

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.usefixtures("bare_environment"),
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install 'supdist-engine[ray]'"
    ),
]

N, PROCESSORS = 20, 6


async def started(folder: Path, *arguments: str, **environment: str) -> Process:
    environ = {
        **os.environ,
        "PYTHONPATH": python_path(folder),
        "HOME": str(folder),
        **environment,
    }  # Ray keeps a token at home
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=folder, env=environ, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


@pytest.fixture
def nodes_folder() -> Generator[str]:
    """Return a folder for the nodes' temporary files, with a short name: Ray has sockets below it."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def test_a_node_that_dies_half_way_costs_no_example_and_doubles_none(
    tmp_path: Path, nodes_folder: str
) -> None:
    """It dies while every processor of every node has an example under way."""
    in_use, dead = asyncio.Event(), asyncio.Event()
    held: list[Request] = []
    asked = Counter[str]()

    async def play_and_hold(request: Request) -> Text:
        asked[json.dumps([request.model, request.body["messages"]])] += 1
        if request.model == "big" and len(server.requests) > N and not dead.is_set():  # one of each example
            held.append(request)
            if len(held) == PROCESSORS:
                in_use.set()
            await dead.wait()
        return play(request)

    async with FakeOpenAI(play_and_hold) as server:
        write_settings(server, tmp_path)
        cluster = await started(tmp_path, str(REPOSITORY / "tests/ray_nodes.py"), TMPDIR=nodes_folder)
        try:
            address = await line(cluster)
            bench = await started(
                tmp_path, str(REPOSITORY / "tools/run_experiment.py"),
                "--config", "experiment.json", "--ray-address", address, "--out", "run", "--json",
            )  # fmt: skip
            await asyncio.wait_for(in_use.wait(), 60)
            assert cluster.stdin is not None
            cluster.stdin.write(b"kill\n")
            assert await line(cluster) == "killed"
            dead.set()
            out, err = await asyncio.wait_for(bench.communicate(), 60)
            assert bench.returncode == 0, err.decode()
        finally:
            assert cluster.stdin is not None
            cluster.stdin.close()
            await asyncio.wait_for(
                cluster.wait(), 60
            )  # and not for its pipes: children of the dead node hold them
    assert json.loads(out)["correct"] == N
    left = [
        path for place in (nodes_folder, tempfile.gettempdir()) for path in Path(place).glob("supdist-ex*")
    ]
    assert left == [], "the tasks that began after the node's death removed what it left"
    records = read_records(tmp_path / "run")
    assert len(records) == len((tmp_path / "run" / RECORDS).read_text().splitlines()) == N
    assert {row["supervisor_calls"] for row in rows(tmp_path / "run")} == {"2"}
    again = [times for times in asked.values() if times > 1]
    assert 1 <= len(again) <= PROCESSORS, "what was under way on the dead node is asked once more"
    assert set(again) == {2}
    for record in records:
        log = tmp_path / "run" / EXAMPLES / record.example / "supervisor.jsonl"
        events = [json.loads(text) for text in log.read_text().splitlines()]
        assert {event["run_id"] for event in events} == {record.run_id}
        assert events[-1]["event"] == "run_end"


def write_settings(server: FakeOpenAI, folder: Path) -> None:
    content = settings(server, n=N, concurrency=PROCESSORS, executor="ray")
    for role in ("supervisor", "worker"):
        content[role]["timeout"] = 60.0
    (folder / "experiment.json").write_text(json.dumps(content))
