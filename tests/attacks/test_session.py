"""Group 9: the order of cells, answers and interrupts."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import psutil
import pytest
from attacks.lab import OK, RAW, Arena, assert_alive, comes_true, timed

from supdist.engine import Display, Outcome, Sandbox, SandboxError, SandboxLost
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.engine.sandbox.running_guest import Lost


async def test_se2_the_first_answer_stands(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, "FINAL('one')\nFINAL('two')")
        await assert_alive(sandbox)
    assert (result.outcome, result.final) == (OK, "one")


async def test_se2_a_second_answer_by_hand_is_a_breach(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(
            sandbox, RAW + "send(23, cell, 'one'); send(23, cell, 'two')\nimport time; time.sleep(60)"
        )
    assert (result.outcome, result.final) == (Outcome.PROTOCOL_VIOLATION, "one")


async def test_se3_what_is_pending_at_the_answer_is_cancelled(arena: Arena) -> None:
    began, ended, billed = 0, 0, 0

    async def slow(call: WorkerCall) -> list[str | CallError]:
        nonlocal began, ended, billed
        began += 1
        try:
            await asyncio.sleep(0.5)
            billed += 1
        finally:
            ended += 1
        return ["late"] * len(call.prompts)

    code = """
import threading, time
for i in range(5): threading.Thread(target=worker, args=(str(i),), daemon=True).start()
time.sleep(0.1)
FINAL("now")
"""
    async with arena.open(on_call=slow) as sandbox:
        result = await timed(sandbox, code)
        assert result.final == "now"
        await asyncio.sleep(0.6)
        assert (began, ended, billed) == (5, 5, 0)
        await assert_alive(sandbox)


STRAYS = {
    "SE4-thread": "threading.Thread(target=lambda: (time.sleep(0.3), FINAL('stray')), daemon=True).start()",
    "SE4-child": "os.fork() or (time.sleep(0.3), FINAL('stray'))",
    "SE4-raw": "threading.Thread(target=lambda: (time.sleep(0.3), send(23, cell, 'stray')),"
    " daemon=True).start()",
}


@pytest.mark.parametrize("stray", STRAYS)
async def test_an_answer_of_an_ended_cell_is_not_the_next_ones(arena: Arena, stray: str) -> None:
    """From the library it would be the current cell's own; sent by hand with the old number it is dropped."""
    async with arena.open() as sandbox:
        first = await timed(sandbox, RAW + "import threading, time\n" + STRAYS[stray])
        second = await timed(sandbox, "import time; time.sleep(0.6); print('own')")
        third = await timed(sandbox, "print('own')")
    assert (first.final, third.final) == (None, None)
    assert second.final is None, "nobody gave an answer in this cell"
    assert third.stdout == "own\n"


async def test_se4_what_an_ended_cell_shows_is_not_the_next_ones(arena: Arena) -> None:
    late = (
        "threading.Thread(target=lambda: (time.sleep(0.3), send(28, cell, {'text/plain': 'stray'},"
        " {})), daemon=True).start()"
    )
    async with arena.open() as sandbox:
        first = await timed(sandbox, RAW + "import threading, time\n" + late)
        second = await timed(sandbox, "import time; time.sleep(0.6); 'own'")
    assert (first.display, second.display) == ((), (Display({"text/plain": "'own'"}),))
    assert second.dropped == 1


async def test_se4_an_answer_of_a_killed_cell_is_kept_with_that_cell(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, "FINAL('before')\nimport os; os.kill(os.getpid(), 9)")
        assert result.state_lost
        await sandbox.reset()
        after = await timed(sandbox, "print(1)")
    assert after.final is None


MENTIONS = [
    "# FINAL('comment')",
    "print('FINAL(1)')",
    "s = '''\nFINAL(1)\n'''",
    "print(context)",
    "raise ValueError('FINAL(1)')",
    "def FINAL_VAR(x): return x\nFINAL_VAR('x')",
    "import sys; sys.stderr.write('FINAL(1)')",
    "x = {'final': 1, 'event': 'final'}; print(x)",
]


@pytest.mark.parametrize("number", range(len(MENTIONS)), ids=lambda number: f"SE5-{number}")
async def test_a_mention_is_no_answer(arena: Arena, number: int) -> None:
    async with arena.open(context="FINAL('from the document')\n```repl\nFINAL(1)\n```") as sandbox:
        result = await timed(sandbox, MENTIONS[number])
        control = await timed(sandbox, "FINAL(1)")
    assert (result.final, control.final) == (None, "1")


async def test_se6_an_exception_with_a_grand_name_is_an_error(arena: Arena) -> None:
    code = (
        "class FinalAnswerException(BaseException):\n  answer = 'forged'\n"
        "raise FinalAnswerException('forged')"
    )
    async with arena.open() as sandbox:
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    assert (result.outcome, result.final) == (Outcome.USER_ERROR, None)
    assert result.error is not None
    assert result.error.type == "FinalAnswerException"


WRONG_ANSWERS = {
    "SE7-object": "object()",
    "SE7-cycle": "(lambda x: (x.append(x), x)[1])([])",
    "SE7-huge": "'x' * (100 << 20)",
    "SE7-deep": "__import__('functools').reduce(lambda x, _: [x], range(100_000), 1)",
    "SE7-bytes": "b'x'",
    "SE7-keys": "{(1, 2): 3}",
}


@pytest.mark.timing
@pytest.mark.parametrize("wrong", WRONG_ANSWERS)
async def test_what_is_no_answer_is_the_cells_error(arena: Arena, wrong: str) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, f"FINAL({WRONG_ANSWERS[wrong]})")
        assert (result.outcome, result.final) == (Outcome.USER_ERROR, None), result
        again = await timed(sandbox, "FINAL('at last')")
    assert again.final == "at last"


async def test_se7_surrogates_are_replaced(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(sandbox, "FINAL('a\\ud800b')")
    assert result.final == "a\ufffdb"


async def test_se8_a_timeout_and_a_quick_cell_do_not_mix(arena: Arena) -> None:
    async with arena.open() as sandbox:
        for turn in range(40):
            await timed(sandbox, "while True: pass", timeout=0.01)
            result = await timed(sandbox, f"print({turn})")
            assert (result.outcome, result.stdout) == (OK, f"{turn}\n")


async def test_se9_a_second_end_is_a_breach(arena: Arena) -> None:
    async with arena.open() as sandbox:
        result = await timed(
            sandbox, RAW + "send(24, cell, None); send(24, cell, None)\nimport time; time.sleep(60)"
        )
        assert result.outcome is OK, "the first end counts"
        assert await comes_true(lambda: isinstance(sandbox._guest.state, Lost))  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
        with pytest.raises(SandboxLost):
            await sandbox.execute("1")


async def test_se11_an_interrupt_never_hits_the_next_cell(arena: Arena) -> None:
    outcomes: set[Outcome] = set()
    async with arena.open() as sandbox:
        for turn in range(100):
            task = asyncio.create_task(sandbox.execute("import time; time.sleep(0.004)"))
            await asyncio.sleep(0.0035 + turn * 2e-5)
            await sandbox.interrupt()
            outcomes.add((await task).outcome)
            quick = await timed(sandbox, "print('quick')")
            assert (quick.outcome, quick.stdout) == (OK, "quick\n")
    assert outcomes <= {OK, Outcome.KILLED}


async def test_se12_a_reset_leaves_no_process_of_the_old_session(arena: Arena) -> None:
    code = """
import os, subprocess, threading, time
subprocess.Popen(["sh", "-c", "sleep 600; :", "WORD"])
threading.Thread(target=time.sleep, args=(600,)).start()
if os.fork() == 0:
    os.setsid()
    time.sleep(600)
"""
    word, before = "sleeper" + secrets.token_hex(8), set(arena.machine.inits())
    async with arena.open() as sandbox:
        await timed(sandbox, code.replace("WORD", word))
        sleepers = arena.machine.marked(word, before)
        assert sleepers
        await sandbox.reset()
        assert await comes_true(lambda: not any(map(psutil.pid_exists, sleepers)))
        seen = await timed(
            sandbox,
            "import os; print(len([p for p in os.listdir('/proc') if p.isdecimal()]), 'code' in globals())",
        )
    assert seen.stdout == f"{1 if arena.machine.hides_init else 2} False\n", "the repl; init at most"


async def test_se13_a_callback_that_uses_its_own_session_gets_an_error(arena: Arena) -> None:
    errors: list[str] = []
    box: list[Sandbox] = []

    async def reenter(call: WorkerCall) -> list[str | CallError]:
        for use in (box[0].execute("1"), box[0].reset()):
            try:
                await use
            except SandboxError as error:
                errors.append(str(error))
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=reenter) as sandbox:
        box.append(sandbox)
        result = await timed(sandbox, "print(worker('x'))")
    assert result.stdout == "answer\n"
    assert len(errors) == 2
    assert all("a cell is running" in error for error in errors)


async def test_se14_nothing_is_restarted_in_silence(arena: Arena) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, "x = 1")
        result = await timed(sandbox, "import os; os._exit(0)")
        assert (result.outcome, result.state_lost) == (Outcome.CRASHED, True)
        for _ in range(3):
            with pytest.raises(SandboxLost, match="reset"):
                await sandbox.execute("print(x)")
        await sandbox.reset()
        assert (await timed(sandbox, "print('x' in globals())")).stdout == "False\n"


async def test_se15_names_that_were_overwritten_are_back(arena: Arena) -> None:
    async def answer(call: WorkerCall) -> list[str | CallError]:
        return [prompt.upper() for prompt in call.prompts]

    spoil = """
worker = None; FINAL = 1; worker_batch = "x"; WorkerError = 5; __builtins__ = {}
del context, query
__name__ = "evil"
"""
    async with arena.open(context="doc", query="why", on_call=answer) as sandbox:
        with contextlib.suppress(SandboxLost):
            await timed(sandbox, spoil)
        result = await timed(
            sandbox, "print(context, query, worker('x'), worker_batch(['y']), WorkerError)\nFINAL(2)"
        )
    assert result.stdout.startswith("doc why X ['Y'] <class")
    assert result.final == "2"
