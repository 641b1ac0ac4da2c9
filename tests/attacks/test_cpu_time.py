"""Group 6: processor time, and code that is an attack on its compiler."""

from __future__ import annotations

import time

import pytest
from attacks.lab import OK, Arena, Attack, assert_alive, name, timed

from supdist.engine import Outcome

pytestmark = pytest.mark.timing

TIMEOUT = (Outcome.TIMEOUT,)

ENDLESS: list[Attack] = [
    Attack(id="CP1", code="while True: pass", expect=TIMEOUT, timeout=0.3, within=1),
    Attack(id="CP2-power", code="10**10**8", expect=TIMEOUT, lost=None, timeout=0.3, within=2),
    Attack(
        id="CP2-regex", code="import re; re.match('(a*)*b', 'a' * 40)", expect=TIMEOUT, lost=None,
        timeout=0.3, within=2
    ),
    Attack(
        id="CP2-scrypt",
        code="import hashlib\nwhile True: hashlib.scrypt(b'', salt=b'', n=1 << 14, r=8, p=400)",
        expect=(*TIMEOUT, Outcome.USER_ERROR), lost=None, timeout=0.3, within=2,
    ),
    Attack(id="CP2-sorted", code="sorted(range(10**9), key=lambda _: 0)", lost=None, timeout=0.3, within=2,
           expect=(*TIMEOUT, Outcome.OOM, Outcome.USER_ERROR)),
    Attack(id="CP2-sum", code="sum(range(10**13))", expect=TIMEOUT, lost=True, timeout=0.3, within=2),
    Attack(id="CP2-digits", code="import sys; sys.set_int_max_str_digits(0); str(7 ** 3_000_000)",
           expect=TIMEOUT, lost=None, timeout=0.2, within=2),
    Attack(id="CP4-sleep", code="import time; time.sleep(1e6)", expect=TIMEOUT, timeout=0.3, within=1),
    Attack(
        id="CP4-deadlock", code="import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
        expect=TIMEOUT, timeout=0.3, within=1,
    ),
    Attack(id="CP4-select", code="import select; select.select([], [], [])", expect=TIMEOUT, timeout=0.3,
        within=1),
    Attack(
        id="CP5-import",
        code="open('slow.py', 'w').write('while True: pass')\n"
        "import sys; sys.path.insert(0, '')\nimport slow",
        expect=TIMEOUT, timeout=0.3, within=1,
    ),
    Attack(
        id="CP5-del", code="class D:\n  def __del__(self):\n    while True: pass\nd = D()\ndel d",
        expect=TIMEOUT, lost=None, timeout=0.3, within=2,
    ),
    Attack(
        id="CP5-repr", code="class R:\n  def __repr__(self):\n    while True: pass\nR()", expect=TIMEOUT,
        timeout=0.3, within=1
    ),
    Attack(
        id="CP5-repr-stubborn", expect=TIMEOUT, lost=True, timeout=0.3, within=2,
        code="class R:\n  def _repr_html_(self):\n    while True:\n      try:\n"
            "        for x in iter(int, 1): x += 1\n      except BaseException: pass\nR()",
    ),
    Attack(
        id="CP5-repr-of-many", expect=TIMEOUT, timeout=0.3, within=1,
        code="import time\nclass R:\n  def __repr__(self):\n    time.sleep(0.01)\n    return ''\n"
            "[R()] * 10**6",
    ),
    Attack(
        id="CP8-parentheses", code="(" * 1_000_000, expect=(Outcome.USER_ERROR, Outcome.CRASHED), lost=None,
        within=3
    ),
    Attack(
        id="CP8-terms", code="x = " + "+".join(["1"] * 100_000), lost=None, within=3,
        expect=(OK, Outcome.USER_ERROR, Outcome.CRASHED),
    ),
    Attack(
        id="CP8-attributes", code="x" + ".a" * 100_000, lost=None, within=3,
        expect=(Outcome.USER_ERROR, Outcome.CRASHED),
    ),
    Attack(
        id="CP8-nested",
        code="\n".join(" " * depth + "if True:" for depth in range(99)) + "\n" + " " * 99 + "x = 1",
        expect=(OK, Outcome.USER_ERROR), lost=None,
    ),
    Attack(id="CP8-constants", code="x = (1,) * 10**8 * 10", expect=(Outcome.USER_ERROR, Outcome.OOM),
        lost=None),
    Attack(id="CP8-minus", code="-" * 200_000 + "1", expect=(Outcome.USER_ERROR, Outcome.CRASHED), lost=None,
        within=3),
]  # fmt: skip


@pytest.mark.parametrize("attack", ENDLESS, ids=name)
async def test_time_has_an_end(arena: Arena, attack: Attack) -> None:
    await arena.carry_out(attack)


@pytest.mark.parametrize(
    "code",
    [
        "import atexit, time; atexit.register(lambda: time.sleep(1e6))",
        "class D:\n  def __del__(self):\n    while True: pass\nd = D()",
        "import threading, time; threading.Thread(target=time.sleep, args=(1e6,)).start()",
    ],
    ids=["atexit", "del", "thread"],
)
async def test_cp5_a_guest_that_will_not_end_does_not_delay_the_close(arena: Arena, code: str) -> None:
    async with arena.open() as sandbox:
        await timed(sandbox, code)
        started = time.monotonic()
        await sandbox.close()
        assert time.monotonic() - started < 1 + arena.machine.start_seconds


async def test_cp5_processor_time_is_limited_too(arena: Arena) -> None:
    """A child that burns on after its cell, in the background."""
    async with arena.open(cpu_seconds=1) as sandbox:
        result = await timed(sandbox, "while True: pass", timeout=4, within=6)
    assert result.outcome in (Outcome.RESOURCE_LIMIT, Outcome.KILLED), result
    assert result.elapsed < 3


async def test_cp8_a_huge_source_is_refused_before_it_is_sent(arena: Arena) -> None:
    async with arena.open() as sandbox:
        with pytest.raises(ValueError, match="too long"):
            await sandbox.execute("#" * (100 << 20))
        await assert_alive(sandbox)
