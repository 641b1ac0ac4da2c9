"""Calls from signal handlers, destructors and trace functions: each works or raises, none hangs."""

from __future__ import annotations

import asyncio

import pytest

from supdist.engine import HostTool, Outcome, SandboxConfig, open_sandbox
from supdist.engine.sandbox import WorkerCall

ALARM = "import signal\ndef handler(*_):\n    {}\nsignal.signal(signal.SIGALRM, handler)\n"
ONCE = ALARM + "signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
OFTEN = ALARM + "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
CATCH = "try: {}\n    except RuntimeError as error: print(type(error).__name__)"
REFUSED = {
    "worker": ONCE.format(CATCH.format("worker('x')")) + "worker('slow')",
    "batch": ONCE.format(CATCH.format("worker_batch(['x'])")) + "worker('slow')",
    "final": ONCE.format(CATCH.format("FINAL('x')")) + "worker('slow')",
    "tool": ONCE.format(CATCH.format("tool()")) + "worker('slow')",
    "in-tool": ONCE.format(CATCH.format("worker('x')")) + "slow_tool()",
}
WORKS = {
    "handler": ONCE.format("seen.append(worker('x'))")
    + "seen = []\nimport time\nend = time.monotonic() + 5\nwhile not seen and time.monotonic() < end: pass\n"
    "assert seen == ['r']",
    "often": OFTEN.format("try: worker('x')\n    except RuntimeError: pass")
    + "for n in range(500): worker(str(n))\nsignal.setitimer(signal.ITIMER_REAL, 0)",
    "destructor": "import gc\nclass Circle:\n    def __init__(self): self.me = self\n"
    "    def __del__(self):\n        try: worker('x')\n        except RuntimeError: pass\n"
    "gc.set_threshold(1)\nfor n in range(100):\n    Circle(); worker(str(n))",
    "weakref": "import gc, weakref\nclass Circle: pass\ndef gone(_):\n    try: worker('x')\n"
    "    except RuntimeError: pass\nfor n in range(20):\n    circle = Circle(); circle.me = circle\n"
    "    ref = weakref.ref(circle, gone); del circle; gc.collect(); worker(str(n))",
    "trace": "import sys\nleft = 50\ndef trace(*_):\n    global left\n    left -= 1\n"
    "    if left > 0: worker('x')\n    return trace\nsys.settrace(trace)\nworker('y')\n"
    "assert sys.gettrace() is trace\nsys.settrace(None)",
    "profile": "import sys\nleft = 50\ndef profile(*_):\n    global left\n    left -= 1\n"
    "    if left > 0: worker('x')\nsys.setprofile(profile)\nworker('y')\nsys.setprofile(None)\n"
    "assert left < 50",
    "audit": "import sys\nleft = 50\ndef audit(*_):\n    global left\n    left -= 1\n"
    "    if left > 0: worker('x')\nsys.addaudithook(audit)\nopen('/dev/null').close()\nworker('y')\nleft = 0",
    "c-profile": "import cProfile\nprofile = cProfile.Profile()\nprofile.enable()\nworker('x')\n"
    "profile.disable()\nassert profile.getstats()",
}


async def run(code: str) -> tuple[Outcome, str]:
    """Return outcome and output of a cell; the next one works."""

    async def answer(call: WorkerCall) -> list[str]:
        if call.prompts == ["slow"]:
            await asyncio.sleep(0.3)
        return ["r"] * len(call.prompts)

    async def slow_tool() -> None:
        await asyncio.sleep(0.3)

    tools = {"tool": HostTool(lambda: 1), "slow_tool": HostTool(slow_tool)}
    async with open_sandbox(SandboxConfig(), on_call=answer, tools=tools) as sandbox:
        result = await sandbox.execute(code, timeout=10)
        after = await sandbox.execute("print(worker('again'))", timeout=10)
        assert (after.outcome, after.stdout) == (Outcome.OK, "r\n"), (result, after)
    return result.outcome, result.stdout


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
async def test_a_call_within_a_call_is_refused_at_once(code: str) -> None:
    assert await run(code) == (Outcome.OK, "ReentryError\n")


@pytest.mark.parametrize("code", WORKS.values(), ids=WORKS)
async def test_a_call_at_any_instruction_works_or_raises(code: str) -> None:
    outcome, _ = await run(code)
    assert outcome is Outcome.OK


async def test_a_handler_that_raises_between_cells_does_not_end_the_interpreter() -> None:
    async with open_sandbox() as sandbox:
        await sandbox.execute(OFTEN.format("global count; count += 1; raise ValueError") + "count = 0")
        for _ in range(20):
            await asyncio.sleep(0.005)
            await sandbox.execute("pass")
        result = await sandbox.execute("signal.setitimer(signal.ITIMER_REAL, 0)\nprint(count > 0)")
        assert not result.state_lost


async def test_a_handler_is_read_back_as_it_was_set() -> None:
    code = """
import signal
def handler(*_): pass
print(signal.signal(signal.SIGUSR1, handler), signal.getsignal(signal.SIGUSR1) is handler)
print(signal.signal(signal.SIGUSR1, signal.SIG_DFL) is handler)
"""
    async with open_sandbox() as sandbox:
        result = await sandbox.execute(code)
        assert result.stdout.split() == ["0", "True", "True"], result


async def test_an_audit_hook_that_raises_before_a_cell_is_the_cells_error() -> None:
    hook = (
        "import sys\ndef hook(event, _):\n    if event == 'fcntl.fcntl': raise ValueError('mine')\n"
        "sys.addaudithook(hook)"
    )
    async with open_sandbox() as sandbox:
        await sandbox.execute(hook)
        result = await sandbox.execute("1")
        assert (result.outcome, result.state_lost) == (Outcome.USER_ERROR, False), result
        assert result.error is not None
        assert result.error.message == "mine"
