"""Host tools as a way out, and guest tools as a way in."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from attacks.lab import RAW, Arena, Attack, ShimGrowth, assert_alive, breach, name, timed
from support import scan_memory_for

from supdist.engine import HostTool, Outcome
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.engine.toolbox.toolbox import ToolUse
from supdist.sandbox_image import protocol

BREACHES = [
    breach("RP11-tool-unknown", "send(27, 1, cell, 2, b'[[],{}]')", "a tool that does not exist"),
    breach("RP11-tool-negative", "send(27, 1, cell, -1, b'[[],{}]')", "a tool that does not exist"),
    breach("RP11-tool-absurd", "send(27, 1, cell, 1 << 63, b'[[],{}]')"),
    breach("RP11-tool-by-name", "send(27, 1, cell, 'shout', b'[[],{}]')"),
    breach("RP11-tool-text", "send(27, 1, cell, 0, '[[],{}]')"),
    breach("RP11-tool-items", "send(27, 1, cell, 0, [['x'], {}])"),
    breach("RP11-tool-missing", "send(27, 1, cell, 0)"),
    breach("RP11-tool-too-many", "send(27, 1, cell, 0, b'[[],{}]', {'timeout': 1e9})"),
    breach("RP7-tool-long", f"send(27, 1, cell, 0, b'x' * {protocol.TOOL_ARGUMENT_BYTES + 1})",
        "arguments longer"),
    breach("RP13-tool-reply", "send(8, 1, b'\"forged\"')"),
    breach("RP13-tool-failure", "send(8, 1, ['failed', 'forged'])"),
    breach("RP14-tool-same-call", "send(22, 5, cell, ['a']); send(27, 5, cell, 0, b'[[\"x\"],{}]')",
        "used before"),
    breach("RP14-tool-lower", "send(22, 5, cell, ['a']); send(27, 4, cell, 0, b'[[\"x\"],{}]')",
        "used before"),
    breach("RP17-tool-future", "send(27, 1, cell + 1, 0, b'[[\"x\"],{}]')", "cell that was never started"),
    breach("RP17-tool-cell-zero", "send(27, 1, 0, 0, b'[[\"x\"],{}]')", "cell that was never started"),
]  # fmt: skip


class Shout:
    """Two tools that count what they are called with."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.tools = {"shout": HostTool(self.shout), "anything": HostTool(self.anything)}

    def shout(self, text: str) -> str:
        self.heard.append(text)
        return text.upper()

    async def anything(self, *things: Any, **named: Any) -> int:
        self.heard.append("anything")
        return len(things) + len(named)


@pytest.mark.parametrize("attack", BREACHES, ids=name)
async def test_a_breach_ends_the_session_and_calls_nothing(arena: Arena, attack: Attack) -> None:
    shout = Shout()

    async def answer(call: WorkerCall) -> list[str | CallError]:
        return ["answer"] * len(call.prompts)

    async with arena.open(tools=shout.tools, on_call=answer) as sandbox:
        result = await timed(sandbox, attack.code, attack.timeout, attack.within)
    assert (result.outcome, result.state_lost) == (Outcome.PROTOCOL_VIOLATION, True)
    assert attack.detail in result.detail
    assert shout.heard == []


async def test_without_tools_there_is_nothing_to_call(arena: Arena) -> None:
    code = RAW + "send(27, 1, cell, 0, b'[[],{}]')\nimport time; time.sleep(60)"
    async with arena.open() as sandbox:
        result = await timed(sandbox, code, timeout=5, within=1.5)
    assert result.outcome is Outcome.PROTOCOL_VIOLATION
    assert "a tool that does not exist" in result.detail


async def test_the_raw_way_works_when_it_keeps_to_the_protocol(arena: Arena) -> None:
    """The control of this file."""
    shout = Shout()
    code = RAW + "send(27, 7, cell, 0, b'[[\"x\"],{}]'); print(channel.tool_reply(7))"
    async with arena.open(tools=shout.tools) as sandbox:
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    assert (result.stdout, shout.heard) == ("b'\"X\"'\n", ["x"])


HOSTILE = {
    "RP7-empty": b"", "RP7-deep": b"[" * 200_000,
    "RP7-deep-inside": b"[[" + b"[" * 100 + b"]" * 100 + b"],{}]", "RP7-deep-maps": b'[[],{"a":' * 20_000,
    "RP7-number": b"[[" + b"9" * 200_000 + b"],{}]", "RP7-float": b"[[1e999],{}]", "RP7-nan": b"[[NaN],{}]",
    "RP7-wide": b"[[18446744073709551616],{}]", "RP7-many": b"[[" + b"[]," * 60_000 + b"[]],{}]",
    "RP9-utf8": b'[["\xff"],{}]', "RP9-surrogate": b'[["\\ud800"],{}]', "RP9-raw-nul": b'[["\x00"],{}]',
    "RP11-null": b"null", "RP11-swapped": b"[{},[]]", "RP11-short": b"[[]]", "RP11-more": b"[[],{},1]",
    "RP11-map": b'{"args": []}', "RP11-trailing": b"[[],{}] ", "RP11-key": b"[[],{1:2}]",
    "RP11-pickle": pickle.dumps([[], {}]), "RP11-msgpack": b"\x92\x90\x80",
}  # fmt: skip


@pytest.mark.parametrize("row", HOSTILE)
async def test_arguments_that_are_none_call_nothing_and_the_session_goes_on(arena: Arena, row: str) -> None:
    shout, uses = Shout(), list[ToolUse]()
    code = RAW + f"send(27, 1, cell, 1, {HOSTILE[row]!r}); print(channel.tool_reply(1).code)"
    async with arena.open(tools=shout.tools, on_tool=uses.append) as sandbox:
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    if row == "RP11-trailing":  # white space is JSON's own
        assert shout.heard == ["anything"]
        return
    assert result.stdout == "bad_arguments\n", result
    assert shout.heard == []
    assert [(use.error, use.args) for use in uses] == [("bad_arguments", None)]


async def test_rp7_heavy_arguments_do_not_hold_up_the_loop(arena: Arena) -> None:
    """The most values that are read, and the most bytes; the watch measures how late the loop is."""
    shout = Shout()
    code = (
        RAW
        + "allowed, refused = (b'[[' + b'[],' * many + b'[]],{}]' for many in (9_990, 87_000))\n"
        + "for call in range(1, 61): send(27, call, cell, 1, allowed if call % 2 else refused)\n"
        + "print([type(channel.tool_reply(call)).__name__ for call in range(1, 61)] == ['bytes',"
        " 'ToolFailure'] * 30)"
    )
    async with arena.open(tools=shout.tools) as sandbox:
        result = await timed(sandbox, code, timeout=10, within=12)
    assert result.stdout == "True\n", result
    assert len(shout.heard) == 30


async def test_rp5_results_that_nobody_reads_are_bounded(arena: Arena) -> None:
    """The largest results, asked for many times and never read."""
    arena.most_growth = 96 << 20
    given = 0

    def give() -> str:
        nonlocal given
        given += 1
        return "x" * ((1 << 20) - 2)

    code = (
        RAW + "for call in range(1, 1001): send(27, call, cell, 0, b'[[],{}]')\nimport time; time.sleep(60)"
    )
    async with arena.open(tools={"give": HostTool(give)}) as sandbox:
        growth = ShimGrowth()
        result = await growth.watch(sandbox, code)
    assert given <= 400, "what fits into the sandbox's memory and the shim's; the others were not even read"
    assert growth.most < 160 << 20, f"the shim grew by {growth.most >> 20} MiB"
    assert type(result.outcome) is Outcome


async def test_rp19_a_flood_of_calls_is_slowed_and_few_are_let_in_at_once(arena: Arena) -> None:
    running, most = 0, 0

    async def hang() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    code = RAW + "for call in range(1, 5001): send(27, call, cell, 0, b'[[],{}]')"
    async with arena.open(tools={"hang": HostTool(hang, max_calls=10**6)}) as sandbox:
        task = asyncio.create_task(sandbox.execute(code, timeout=2))
        while most < 64:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        await sandbox.interrupt()
        await asyncio.wait_for(task, 5)
    assert (most, running) == (64, 0)


async def test_a_budget_holds_against_raw_frames(arena: Arena) -> None:
    called = 0

    def count() -> None:
        nonlocal called
        called += 1

    code = (
        RAW
        + "for call in range(1, 301): send(27, call, cell, 0, b'[[],{}]')\n"
        + "codes = [getattr(channel.tool_reply(call), 'code', None) for call in range(1, 301)]\n"
        + "print(codes.count(None), codes.count('budget_exceeded'))"
    )
    uses: list[ToolUse] = []
    tools = {"count": HostTool(count, max_calls=20)}
    async with arena.open(tools=tools, on_tool=uses.append) as sandbox:
        result = await timed(sandbox, code, timeout=5, within=6)
    assert (result.stdout, called, len(uses)) == ("20 280\n", 20, 21)


async def test_se4_a_call_after_its_cell_is_not_made(arena: Arena) -> None:
    shout = Shout()
    code = RAW + "old = cell\nsend(27, 1, cell - 1, 0, b'[[\"late\"],{}]'); print(channel.tool_reply(1).code)"
    async with arena.open(tools=shout.tools) as sandbox:
        await timed(sandbox, "x = 1")
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    assert (result.stdout, shout.heard, result.dropped) == ("cancelled\n", [], 1)


async def test_en3_the_memory_holds_nothing_of_a_host_tool(arena: Arena, canary: str, tmp_path: Path) -> None:
    """In closure, defaults and errors. A guest tool with the same canary is the control."""

    def ask(name: str, key: str = canary) -> str:
        """Ask."""
        raise LookupError(f"{name} {key} {tmp_path}")

    def tell(_: str) -> str:
        return canary

    code = "try: ask('x')\nexcept ToolError as error: print(error)\n"
    code += scan_memory_for(canary)
    async with arena.open(tools={"ask": HostTool(ask)}) as sandbox:
        result = await timed(sandbox, code, timeout=5, within=6)
    async with arena.open(tools={"ask": tell}) as inside:
        control = await timed(inside, code, timeout=5, within=6)
    assert result.stdout == "failed: the tool failed\nnothing\n", result
    assert control.stdout == "found\n", control


async def test_fs1_a_function_that_travels_runs_behind_the_walls(
    arena: Arena, canary: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(canary)
    path = str(file)

    def read() -> str:
        import os

        with open(path) as secret:
            return secret.read() + str(dict(os.environ))

    async with arena.open(tools={"read": read}) as sandbox:
        result = await timed(sandbox, "print(read())")
    assert result.error is not None
    assert result.error.type == "FileNotFoundError"
    assert canary in await asyncio.to_thread(read), "on the host it does"


async def test_pk3_with_tools_too_the_engine_deserialises_nothing(
    arena: Arena, audited: list[str], tmp_path: Path
) -> None:
    loaded, shout = tmp_path / "loaded", Shout()
    code = f"""
import os, pickle
class Evil:
    def __reduce__(self): return (os.system, ("touch {loaded}",))
text = pickle.dumps(Evil()).decode("latin-1")
print(shout(text) == text.upper(), anything(text, evil=text), local(text) == text)
for wrong in (Evil(), pickle.dumps(Evil())):
    try: anything(wrong)
    except ToolError as error: print(error.code)
"""
    async with arena.open(tools={**shout.tools, "local": lambda text: text}) as sandbox:  # pyright: ignore[reportUnknownLambdaType]  # a lambda has no annotations
        result = await timed(sandbox, code)
    assert result.stdout == "True 2 True\nbad_arguments\nbad_arguments\n", result
    assert audited == []
    assert not loaded.exists()
