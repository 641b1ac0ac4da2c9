"""Host tools and worker calls run in the context variables of whoever executes the cell."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence

import pytest
from support import SMALL_CONFIG, Open, block

from supdist.engine import HostTool, SyncSandbox, arun, run
from supdist.engine.sandbox import WorkerCall
from supdist.engine.toolbox.toolbox import Tool
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio

VARIABLE = contextvars.ContextVar("VARIABLE", default="default")


def plain() -> str:
    return VARIABLE.get()


async def coroutine() -> str:
    before = VARIABLE.get()
    # A change stays in its call, as in a task.
    VARIABLE.set("changed by a tool")
    await asyncio.sleep(0)
    return before


async def on_call(call: WorkerCall) -> Sequence[str]:
    return [VARIABLE.get()] * len(call.prompts)


TOOLS: dict[str, Tool] = {"plain": HostTool(plain), "coroutine": HostTool(coroutine)}
SHOW_ALL = "print(plain(), coroutine(), worker('x'))"


async def test_each_call_runs_in_the_context_of_the_caller_of_execute(small: Open) -> None:
    VARIABLE.set("at open")
    async with small(tools=TOOLS, on_call=on_call) as box:
        for value in ("first", "second"):
            VARIABLE.set(value)
            assert (await box.execute(SHOW_ALL)).stdout == f"{value} {value} {value}\n"
        await box.reset()
        VARIABLE.set("after a reset")
        assert (await box.execute(SHOW_ALL)).stdout == "after a reset " * 2 + "after a reset\n"
        assert VARIABLE.get() == "after a reset"


async def test_callers_in_several_tasks_have_each_their_own(small: Open) -> None:
    async with small(tools=TOOLS, on_call=on_call) as box:

        async def execute(value: str) -> str:
            VARIABLE.set(value)
            return (await box.execute(SHOW_ALL)).stdout

        for value in ("a", "b"):
            assert await asyncio.create_task(execute(value)) == f"{value} {value} {value}\n"


def test_a_sandbox_without_an_event_loop_takes_the_context_of_its_caller() -> None:
    VARIABLE.set("at open")
    with SyncSandbox(SMALL_CONFIG, tools=TOOLS, on_call=on_call) as box:
        VARIABLE.set("at execute")
        assert box.execute(SHOW_ALL).stdout == "at execute at execute at execute\n"


async def test_the_tools_of_a_run_see_the_context_of_its_caller() -> None:
    supervisor = ScriptedHandler([block("FINAL(plain() + ', ' + coroutine())")])
    VARIABLE.set("caller of arun")
    result = await arun(
        query="q", context="c", supervisor=supervisor, worker=None, tools=TOOLS, sandbox=SMALL_CONFIG
    )
    assert result.answer == "caller of arun, caller of arun"


def test_the_tools_of_a_plain_run_do_too() -> None:
    supervisor = ScriptedHandler([block("FINAL(plain() + ', ' + coroutine())")])
    VARIABLE.set("caller of run")
    result = run(
        query="q", context="c", supervisor=supervisor, worker=None, tools=TOOLS, sandbox=SMALL_CONFIG
    )
    assert result.answer == "caller of run, caller of run"
