"""Group 11: the guest changes the runtime around it."""

from __future__ import annotations

import time

import pytest
from attacks.lab import DEATHS, OK, RAW, Arena, Attack, assert_alive, name, timed

from supdist.engine import Outcome
from supdist.engine.sandbox import CallError, WorkerCall

WRONG = (Outcome.USER_ERROR,)
ANY_END = (OK, *WRONG, *DEATHS, Outcome.PROTOCOL_VIOLATION, Outcome.TIMEOUT)

PATCHES: list[Attack] = [
    Attack(id="MP1-none", code="import sys; sys.stdout = sys.stderr = sys.stdin = None", expect=(OK, *WRONG)),
    Attack(
        id="MP1-evil", expect=(OK, *WRONG),
        code="import sys\nclass W:\n  def write(self, t): raise SystemExit\n"
            "  def flush(self): raise MemoryError\nsys.stdout = sys.stderr = W()\nprint(1)",
    ),
    Attack(
        id="MP1-hanging", expect=(OK, *WRONG, Outcome.TIMEOUT), lost=None, timeout=0.5,
        code="import sys\nclass W:\n  def write(self, t): pass\n  def flush(self):\n    while True: pass\n"
            "sys.stdout = W()",
    ),
    Attack(id="MP2-builtins",
           code="import builtins\n"
               "for n in ('print', 'open', 'len', 'isinstance', '__import__', '__build_class__'):"
               " setattr(builtins, n, None)", expect=ANY_END, lost=None),
    Attack(id="MP2-clear", code="import builtins; builtins.__dict__.clear()", expect=ANY_END, lost=None,
        timeout=1),
    Attack(id="MP2-modules", code="import sys; sys.modules.clear()", expect=ANY_END, lost=None, timeout=1),
    Attack(
        id="MP3", expect=ANY_END, lost=None, timeout=1,
        code="import json, socket, struct, threading, time, os, select\n"
            "for m in (json, struct, threading, time, select):\n  for n in dir(m):\n"
            "    if not n.startswith('__'): setattr(m, n, None)",
    ),
    Attack(
        id="MP3-protocol", expect=ANY_END, lost=None, timeout=1,
        code=RAW + "protocol.encode = lambda m: b'\\xc0'\nprotocol.frame = lambda p: b'\\xff' * 8\n"
            "protocol.FrameBuffer.feed = lambda s, d: []",
    ),
    Attack(id="MP3-os", code="import os\nos.dup2 = os.close = os.getpid = os.read = lambda *a: 0",
        expect=ANY_END, lost=None, timeout=1),
    Attack(
        id="MP3-thread", expect=ANY_END, lost=None, timeout=1,
        code=RAW + "channel._send_lock.acquire()",
    ),
    Attack(
        id="MP3-ids", expect=ANY_END, lost=None, timeout=1,
        code=RAW + "import itertools\nchannel._numbers = itertools.count(-5)\n"
            "primitives._current_cell = lambda: 99\nFINAL('x')",
    ),
    Attack(id="MP5-null", code="import ctypes; ctypes.string_at(0)", expect=(Outcome.CRASHED,), lost=True,
        detail="SIGSEGV"),
    Attack(
        id="MP5-memset",
        code="import ctypes, sys; ctypes.memset(id(sys.modules), 0xff, 64); sys.modules['x']; import json5",
        expect=ANY_END, lost=None,
    ),
    Attack(
        id="MP5-channel", code=RAW + "import ctypes; ctypes.memset(id(channel), 0, 48)", expect=ANY_END,
        lost=None, timeout=1
    ),
    Attack(id="MP5-code",
           code="import ctypes\nfor at in (id(print), id(list)): ctypes.memset(at, 0x41, 32)\nprint([1])",
           expect=ANY_END, lost=None, timeout=1),
    Attack(id="MP5-refcount",
           code="import ctypes\nfor _ in range(1000): ctypes.pythonapi.Py_DecRef(ctypes.py_object(()))\n"
               "x = ((),) * 5", expect=ANY_END, lost=None, timeout=1),
    Attack(id="MP5-stack", code="import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", lost=None,
           timeout=3, expect=(Outcome.CRASHED, *WRONG, Outcome.TIMEOUT, Outcome.OOM)),
    Attack(id="MP9-excepthook",
        code="import sys, threading\nsys.excepthook = threading.excepthook = lambda *a: 1 / 0\n1 / 0",
        expect=WRONG),
    Attack(id="MP9-str",
        code="class E(Exception):\n  def __str__(self): raise E()\n  __repr__ = __str__\nraise E()",
        expect=WRONG),
    Attack(
        id="MP9-str-loops", code="class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E()",
        expect=(*WRONG, Outcome.TIMEOUT), lost=None, timeout=0.4,
    ),
    Attack(id="MP9-str-exits", code="class E(Exception):\n  def __str__(self): raise SystemExit\nraise E()",
        expect=WRONG),
    Attack(id="MP9-str-huge",
        code="class E(Exception):\n  def __str__(self): return 'x' * (50 << 20)\nraise E()", expect=WRONG),
    Attack(id="MP9-str-kind",
           code="class S(str):\n  def encode(self, *a): raise KeyboardInterrupt\nclass E(Exception):\n"
               "  def __str__(self): return S('s')\nraise E()", expect=WRONG),
    Attack(id="MP9-name", code="raise type('x' * 10**6, (Exception,), {})('m')", expect=WRONG),
    Attack(id="MP9-meta",
           code="class M(type):\n  __name__ = property(lambda s: 1 / 0)\n"
               "class E(Exception, metaclass=M): pass\nraise E()", expect=(*WRONG, *DEATHS), lost=None),
    Attack(id="MP9-chain",
           code="e = None\nfor i in range(10_000):\n  try: raise ValueError(i) from e\n"
               "  except ValueError as x: e = x\nraise e", expect=(*WRONG, Outcome.TIMEOUT), lost=None,
               timeout=3),
    Attack(id="MP9-cycle", code="a, b = ValueError(), ValueError()\na.__cause__, b.__cause__ = b, a\nraise a",
        expect=WRONG),
    Attack(id="MP9-group",
           code="e = ValueError()\nfor _ in range(10_000): e = ExceptionGroup('g', [e])\nraise e",
           expect=(*WRONG, Outcome.CRASHED), lost=None),
    Attack(id="MP9-recursion", code="def f(): return f()\nf()", expect=WRONG),
]  # fmt: skip


@pytest.mark.parametrize("attack", PATCHES, ids=name)
async def test_a_runtime_that_was_patched_ends_its_cell(arena: Arena, attack: Attack) -> None:
    """The next cell works, or the interpreter is lost and a reset brings a whole one; nothing hangs."""
    async with arena.open(on_call=answer) as sandbox:
        result = await timed(sandbox, attack.code, attack.timeout, attack.within)
        assert result.outcome in attack.expect, result
        assert attack.lost is None or result.state_lost is attack.lost, result
        assert attack.detail in result.detail
        if result.error is not None:
            assert len(result.error.message) + len(result.error.traceback) + len(result.error.type) < 40_000
        if not result.state_lost:
            after = await timed(sandbox, "print(worker('x'))", timeout=1, within=3)
            if attack.lost is False:
                assert after.stdout == "X\n", after
            else:
                assert after.outcome in ANY_END
        await sandbox.reset()
        assert (await timed(sandbox, "print(worker('x'))")).stdout == "X\n"


async def answer(call: WorkerCall) -> list[str | CallError]:
    return [prompt.upper() for prompt in call.prompts]


async def test_mp4_the_channel_found_gives_no_more_power(arena: Arena) -> None:
    code = """
import gc
found = [o for o in gc.get_objects() if type(o).__name__ in ("Channel", "Primitives", "Repl")]
print(len(found) > 0)
channel = next(o for o in found if type(o).__name__ == "Channel")
import sys
protocol = sys.modules["supdist.sandbox_image.protocol"]
channel.send(protocol.Call(1, 1, ["forged"]))
print(channel.reply(1))
channel.send(protocol.Final(1, "by object"))
"""
    asked: list[str] = []

    async def note(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=note) as sandbox:
        result = await timed(sandbox, code)
        await assert_alive(sandbox)
    assert (result.stdout, result.final, asked) == ("True\n['answer']\n", "by object", ["forged"])


HANGERS = {
    "MP7-atexit": "import atexit, time; atexit.register(time.sleep, 1e6)",
    "MP7-finalize": "import weakref, time\nclass C: pass\nc = C(); weakref.finalize(c, time.sleep, 1e6)",
    "MP7-del": "class D:\n  def __del__(self):\n    while True: pass\nd = D()",
    "MP7-threading": "import threading, time; threading._shutdown = lambda: time.sleep(1e6)",
    "MP7-exit": "import os, time; os._exit = lambda *a: time.sleep(1e6)",
    "MP7-signals": "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, lambda *a: None)\n"
    "  except (OSError, ValueError): pass",
}


@pytest.mark.timing
@pytest.mark.parametrize("hanger", HANGERS)
async def test_what_hangs_at_the_end_does_not_delay_the_close(arena: Arena, hanger: str) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, HANGERS[hanger])
        started = time.monotonic()
        await sandbox.close()
        assert time.monotonic() - started < 1


KINDS = """
class S(str):
    __len__ = lambda s: 0
    __str__ = lambda s: "lies"
    __eq__ = lambda s, o: True
    __hash__ = str.__hash__
    encode = lambda s, *a: b"lies"
    isascii = lambda s: True
class L(list):
    __iter__ = lambda s: iter(["from iter"])
class I(int):
    __str__ = __repr__ = lambda s: "lies " * 10
    __index__ = lambda s: -1
class D(dict):
    items = lambda s: [("x", object())]
"""


async def test_mp11_evil_subclasses_are_plain_on_the_host(arena: Arena) -> None:
    asked: list[str] = []

    async def note(call: WorkerCall) -> list[str | CallError]:
        asked.extend(call.prompts)
        assert all(type(prompt) is str for prompt in call.prompts)
        return ["answer"] * len(call.prompts)

    async with arena.open(on_call=note) as sandbox:
        await timed(sandbox, KINDS)
        result = await timed(sandbox, "worker(S('truth\\ud800')); worker_batch(L(['a'])); FINAL(S('truth'))")
        for value in ("I(5)", "D(a=1)", "L(['b'])", "[S('c'), I(1)]"):
            final = await timed(sandbox, f"FINAL({value})")
            assert final.final is None or type(final.final) is str
    assert asked[0] == "truth\ufffd"
    assert result.final == "truth"
    assert type(result.final) is str
