"""How the events of a run reach its caller: ``on_event``, ``astream``, ``logging``, a notebook."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support import SMALL_CONFIG, block, upper_worker

from supdist.engine import RunConfig, TaskError, arun, astream, run
from supdist.engine.event_sink import EventQueue
from supdist.engine.events import BlockStarted, Event, Metrics, RunEnded, RunStarted, SupervisorWrote, Warned
from supdist.handlers import Rejected, ScriptedHandler


def options(*replies: str | Rejected, **changes: Any) -> dict[str, Any]:
    supervisor = ScriptedHandler(list(replies or [block("FINAL(worker('a'))")]))
    return {"query": "q", "context": "c", "supervisor": supervisor, "worker": upper_worker(),
            "sandbox": SMALL_CONFIG, **changes}  # fmt: skip


async def read_all(stream: AsyncGenerator[Event], events: list[Event]) -> None:
    async for event in stream:
        events += [event]


async def test_an_async_on_event_gets_all_events_in_order_before_the_result() -> None:
    plain: list[Event] = []
    slow: list[Event] = []

    async def on_event(event: Event) -> None:
        plain.append(event)
        for _ in range(5):
            await asyncio.sleep(0)
        slow.append(event)

    result = await arun(**options(on_event=on_event))
    assert result.answer == "A"
    assert slow == plain
    assert isinstance(slow[0], RunStarted)
    assert isinstance(slow[-1], RunEnded)
    assert slow[-1].result == result


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_on_event_that_raises_is_logged_once_and_costs_no_paid_run(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(_: Event) -> None:
        raise ValueError("my mistake\x1b[2J")

    async def raises_later(event: Event) -> None:
        raises(event)

    result = await arun(**options(on_event=raises_later if is_async else raises))
    assert result.answer == "A"
    assert "on_event raised ValueError: my mistake\\x1b[2J (events lost: " in result.warnings[0]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [(each.name, each.exc_info is not None) for each in errors] == [("supdist.run", True)]


async def test_an_on_event_that_hangs_ends_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supdist.engine.event_sink._LAST_SECONDS", 0.05)

    async def hang(_: Event) -> None:
        await asyncio.get_running_loop().create_future()

    assert (await arun(**options(on_event=hang))).answer == "A"


async def test_astream_yields_the_events_and_at_last_the_result() -> None:
    told: list[Event] = []
    async with aclosing(astream(**options(on_event=told.append))) as stream:
        events = [event async for event in stream]
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)
    assert events[-1].result is not None
    assert events[-1].result.answer == "A"
    wrote = [event.text for event in events if isinstance(event, SupervisorWrote)]
    assert "".join(wrote) == block("FINAL(worker('a'))")
    # Of the metrics, only the newest waits.
    assert [each for each in told if not isinstance(each, Metrics)] == [
        each for each in events if not isinstance(each, Metrics)
    ]


async def test_astream_raises_what_ends_the_run() -> None:
    events: list[Event] = []
    with pytest.raises(Rejected, match="no such model"):
        await read_all(astream(**options(Rejected("no such model"))), events)
    assert isinstance(events[-1], RunEnded)
    assert events[-1].how == "failed"
    with pytest.raises(TaskError, match="query is empty"):
        await read_all(astream(**options(query=" ")), [])
    with pytest.raises(TaskError, match="on_event"):
        await read_all(astream(**options(on_event="print")), [])


async def test_a_stream_that_is_left_early_ends_its_run() -> None:
    told: list[Event] = []
    config = RunConfig(on_event=told.append)
    async with aclosing(astream(**options(block("while True: pass"), config=config))) as stream:
        async for event in stream:
            if isinstance(event, BlockStarted):
                break
    assert isinstance(told[-1], RunEnded)
    assert told[-1].how == "cancelled"


async def test_only_the_newest_metrics_wait_for_a_slow_reader() -> None:
    queue = EventQueue()
    for number in range(1000):
        queue.put(Metrics(done=number))
    queue.put(Warned("x"))
    queue.close()
    assert [await queue.get() for _ in range(3)] == [Metrics(done=999), Warned("x"), None]


async def test_a_run_is_in_pythons_logging_without_what_models_wrote(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "supdist")
    result = await arun(**options("SECRET", block("print('SECRET'); FINAL(1)")))
    lines = [record.getMessage() for record in caplog.records if record.name == "supdist.run"]
    assert f"run {result.run_id}: turn 2: block ok after" in "\n".join(lines)
    assert lines[-1].startswith(f"run {result.run_id}: ended (final) after")
    assert "SECRET" not in "\n".join(lines)


NOTEBOOK = ["""
from supdist.engine import SandboxConfig, SyncSandbox, arun, run
from supdist.handlers import ScriptedHandler
def ask(): return dict(
    query="q", context="c", worker=ScriptedHandler(lambda _: "a"),
    supervisor=ScriptedHandler(["```repl\\nFINAL(worker_batch(['<b>', 'y'])[0] + '<script>')\\n```"]))
run(**ask())
""", "await arun(**ask())", """
with SyncSandbox() as sandbox: result = sandbox.execute('''
class Table:
    def _repr_html_(self): return "<table onclick=x()><tr><td colspan=2>7<script>bad()</script><img src=http://x></table>"
Table()''')
result
"""]  # fmt: skip


@pytest.mark.slow
def test_a_notebook_shows_progress_and_results(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "outputs": [],
            "source": each,
            "execution_count": None,
        }
        for number, each in enumerate(NOTEBOOK)
    ]
    # Neither has types.
    client: Any = import_module("nbclient").NotebookClient
    from_dict: Any = import_module("nbformat").from_dict
    notebook = from_dict({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    client(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[list[dict[str, Any]]] = [[dict(each) for each in part.outputs] for part in notebook.cells]
    asked, awaited, cell = outputs
    assert [each["output_type"] for each in asked] == ["display_data", "execute_result"]
    progress, result = (each["data"]["text/html"] for each in asked)
    assert "turn 1 of 15 · ended · worker 2 of 2" in progress
    assert "a&lt;script&gt;" in result
    # Many runs at a time would fill the notebook.
    assert [each["output_type"] for each in awaited] == ["execute_result"]
    assert '<table><tr><td colspan="2">7</td></tr></table>' in cell[0]["data"]["text/html"]


def test_no_progress_is_shown_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    run(**options())
    assert capsys.readouterr() == ("", "")
