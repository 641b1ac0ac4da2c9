"""An eval in its own process, killed and interrupted: nothing is lost, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from eval_support import asked_twice, config, play, rows, settings
from lookup_task import Lookup, python_path
from process_support import ended, started
from support import REPOSITORY

from supdist.tools.evals.records import EXAMPLES, read_records
from supdist.tools.evals.runner import run_experiment
from supdist.tools.testing.fake_openai import FakeOpenAI, Request, Status, Text

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("engine", "bare_environment")]

EXAMPLES_IN_ALL = 20
CALLS = 4  # of an example: two turns, a worker call, a verdict


@asynccontextmanager
async def evaluate(folder: Path, *arguments: str) -> AsyncGenerator[Process]:
    """Start the program, and end it with the context."""
    (folder / "tmp").mkdir(exist_ok=True)  # an engine that is killed while it starts leaves something there
    environment = {**os.environ, "PYTHONPATH": python_path(folder), "TMPDIR": str(folder / "tmp")}
    program = [sys.executable, str(REPOSITORY / "tools/run_experiment.py"), *arguments]
    async with started(*program, cwd=folder, env=environment) as process:
        yield process


def write_settings(server: FakeOpenAI, folder: Path, **changes: Any) -> str:
    content = settings(server, task_options={"judged": True}, n=EXAMPLES_IN_ALL, **changes)
    (folder / "experiment.json").write_text(json.dumps(content))
    return "experiment.json"


@pytest.mark.parametrize(
    ("request_number", "seconds", "concurrency"), [(1, 0.0, 1), (30, 0.004, 1), (41, 0.0, 4), (77, 0.002, 4)]
)
async def test_killed_and_resumed_it_gives_what_an_uninterrupted_run_gives_and_pays_once(
    request_number: int, seconds: float, concurrency: int, tmp_path: Path
) -> None:
    """Killed so long after a request came: with it under way, or answered, or while its answer is stored."""
    killed = asyncio.Event()

    def play_until_killed(request: Request) -> Text:
        if len(server.requests) == request_number:
            asyncio.get_running_loop().call_later(seconds, kill)
        return play(request)

    def kill() -> None:
        process.kill()
        killed.set()

    async with FakeOpenAI(play_until_killed) as server:
        file = write_settings(server, tmp_path, concurrency=concurrency)
        async with evaluate(tmp_path, "--config", file, "--out", "run") as process:
            await asyncio.wait_for(killed.wait(), 60)
            assert (await ended(process))[0] == -signal.SIGKILL
        before = len(read_records(tmp_path / "run"))
        assert before < EXAMPLES_IN_ALL
        await server.idle()
        async with evaluate(tmp_path, "--resume", "run", "--json") as process:
            code, out, err = await ended(process)
        assert code == 0, err
        assert asked_twice(server) <= concurrency, "those in flight alone"
        assert len(server.requests) - asked_twice(server) == EXAMPLES_IN_ALL * CALLS
        whole = await uninterrupted(server, tmp_path / "whole")
    assert rows(tmp_path / "run") == whole
    result = json.loads(out)
    assert (result["correct"], result["failed"]) == (EXAMPLES_IN_ALL, 0)
    for record in read_records(tmp_path / "run"):
        log = tmp_path / "run" / EXAMPLES / record.example / "supervisor.jsonl"
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert {event["run_id"] for event in events} == {record.run_id}, "no half log before it"
        assert events[-1]["event"] == "run_end"


async def uninterrupted(server: FakeOpenAI, folder: Path) -> list[dict[str, str]]:
    whole = config(server, task_options={"judged": True}, n=EXAMPLES_IN_ALL)
    await run_experiment(whole, folder, task=Lookup(judged=True))
    return rows(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_it_cleanly_and_it_says_how_to_go_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    def play_and_interrupt(request: Request) -> Text:
        if len(server.requests) == 10:
            process.send_signal(number)
        return play(request)

    async with FakeOpenAI(play_and_interrupt) as server:
        file = write_settings(server, tmp_path)
        async with evaluate(tmp_path, "--config", file, "--out", "run") as process:
            got, _, err = await ended(process)
        assert got == code
        why = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        assert err.splitlines()[-1] == f"supdist-engine: {why}; go on with --resume run"
        assert "Traceback" not in err
        assert len(rows(tmp_path / "run")) == len(read_records(tmp_path / "run"))
        async with evaluate(tmp_path, "--resume", "run") as process:
            got, out, err = await ended(process)
        assert got == 0, err
        assert "100% right (20/20)" in out
        assert out.splitlines()[-1] == "run"


async def test_a_refused_key_ends_it_and_it_says_how_to_go_on(tmp_path: Path) -> None:
    async with FakeOpenAI(lambda _: Status(401, message="no such key")) as server:
        file = write_settings(server, tmp_path)
        async with evaluate(tmp_path, "--config", file, "--out", "run") as process:
            got, _, err = await ended(process)
    assert got == 5, err
    assert "supdist-engine: go on with --resume run" in err.splitlines()
    assert "no such key" in err.splitlines()[-1]
