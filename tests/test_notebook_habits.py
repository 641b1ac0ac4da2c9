"""What people write in notebooks runs in a cell, or the error says what to write instead."""

from __future__ import annotations

import pytest
from support import Open, block, echo

from supdist.engine import Outcome, arun
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio

WORKS = {
    "await": ("import asyncio\nprint(await asyncio.sleep(0, 'hi'))", "hi\n"),
    "async for": (
        "async def f():\n    yield 1\nasync for i in f(): print(i)\nprint([i async for i in f()])",
        "1\n[1]\n",
    ),
    "async with": (
        "import asyncio\nasync with asyncio.timeout(9) as x: print(type(x).__name__)",
        "Timeout\n",
    ),
    "asyncio.run": ("import asyncio\nasync def f(): print(1)\nasyncio.run(f())", "1\n"),
    "indented": ("\n    x = 1\n    print(x)\n", "1\n"),
    "indented, a string at the margin": (
        "    s = '''\na\n    b'''\n    print([s])",
        "['\\na\\n    b']\n",
    ),
    "indented with a comment at the margin": ("# a\n    print(1)\n# b\n    print(2)", "1\n2\n"),
    "tabs": ("\tprint(1)\n\tprint(2)", "1\n2\n"),
    "fence": ("```python\nprint('hi')\n```", "hi\n"),
    "open fence": ("~~~\nprint('hi')", "hi\n"),
    "fence in a list": ("  ```{python}\n  print('hi')\n  ```\n", "hi\n"),
    "prompts": (">>> x = 3\n>>> x\n3\n>>> for i in [1]:\n...     print(i)\n1\n", "1\n"),
    "IPython's prompts": ("In [1]: x = 3\n   ...: print(x)\n\nOut[1]: 3\n", "3\n"),
    "BOM": ("\ufeffprint(1)", "1\n"),
    "CRLF": ("if 1:\r\n    print(1)\r\n%matplotlib inline\r\n", "1\n"),
    "%matplotlib": ("%matplotlib inline\n%load_ext autoreload\n%autoreload 2\nprint('hi')", "hi\n"),
    "a string with %": ("%matplotlib inline\nx = '''\n%ls\n!ls\n'''\nprint(x)", "\n%ls\n!ls\n\n"),
    "brackets with %": ("%matplotlib inline\nx = [7\n%4,\n8]\nprint(x)", "[3, 8]\n"),
    "%cd": ("%cd /tmp", "/tmp\n"),
    "!": ("x = 2\nfor i in range(2):\n    !echo $i {x + 1} '$$'", "0 3 $\n1 3 $\n"),
    "x = !": ("a = !printf 'a\\nb\\n'\nprint(a)", "['a', 'b']\n"),
    "! over two lines": ("!echo a \\\n  b\nprint('c')", "a b\nc\n"),
    "%%bash": ('%%bash\necho "it\'s"\n', "it's\n"),
    "%%writefile": ("%%writefile f.py\nprint('x')\n", "Writing f.py\n"),
    "%%capture": ("%%capture out\nprint('''a\n b''')\n", ""),
    "%%python": ("%%python\nprint(1)", "1\n"),
}


@pytest.mark.parametrize("habit", WORKS)
async def test_a_habit_of_notebooks_works(small: Open, habit: str) -> None:
    code, printed = WORKS[habit]
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert (result.error, result.stdout) == (None, printed)


async def test_a_statement_is_timed_and_its_value_kept(small: Open) -> None:
    async with small() as sandbox:
        value = await sandbox.execute("%time 1 + 1")
        statement = await sandbox.execute("%time x = 5\nprint(x)")
        cell = await sandbox.execute("%%time\ny = '''\n a'''\ny")
        often = await sandbox.execute("%timeit -n 2 -r 3 x + 1")
        helped = await sandbox.execute("def f(a): 'does it'\nf?")
    assert ("Wall time" in value.stdout, value.display[0].as_text()) == (True, "2")
    assert ("Wall time" in statement.stdout, statement.stdout[-2:]) == (True, "5\n")
    assert ("Wall time" in cell.stdout, cell.display[0].as_text()) == (True, "'\\n a'")
    assert "per loop (mean ± std. dev. of 3 runs, 2 loops each)" in often.stdout
    assert "f(a)" in helped.stdout
    assert "does it" in helped.stdout


async def test_timeit_returns_its_result_when_asked(small: Open) -> None:
    async with small() as sandbox:
        kept = await sandbox.execute(
            "x = %timeit -o -n 2 -r3 1\nprint(x.loops, len(x.all_runs), x.best <= x.worst)"
        )
        shown = await sandbox.execute("%%timeit -qo -n 1 -r 2\ny = 1\n")
        plain = await sandbox.execute("%timeit -n 1 -r 1 1")
    assert kept.stdout.endswith(" per loop (mean ± std. dev. of 3 runs, 2 loops each)\n2 3 True\n")
    assert shown.stdout == ""
    assert (shown.display[0].as_text() or "").startswith("<TimeitResult : ")
    assert plain.display == ()


async def test_prun_profiles(small: Open) -> None:
    async with small() as sandbox:
        line = await sandbox.execute(
            "def slow(): return sorted([2, 1])\n%prun -s cumtime -l 5 x = slow()\nprint(x)"
        )
        cell = await sandbox.execute("%%prun\ny = slow()\n")
        failed = await sandbox.execute("%prun 1 / 0")
        unknown = await sandbox.execute("%prun -T file slow()")
    for result in (line, cell):
        assert (result.error, "(slow)" in result.stdout, "ncalls" in result.stdout) == (None, True, True)
    assert line.stdout.endswith("[1, 2]\n")
    assert failed.error is not None
    assert failed.error.type == "ZeroDivisionError"
    assert unknown.error is not None
    assert unknown.error.message == "%prun takes only -s KEY and -l LINES here, not -T"


REFUSED = {
    "!pip": ("!pip install numpy", "ModuleNotFoundError", "the sandbox has no network"),
    "!python -m pip": ("!python3 -m pip install numpy", "ModuleNotFoundError", "--packages DIR"),
    "%pip": ("%pip install numpy", "ModuleNotFoundError", "the sandbox has no network"),
    "%magic": ("x = 1\n%sql select", "SyntaxError", "%sql is a command of IPython"),
    "%load_ext": ("%load_ext sql", "SyntaxError", "import the library"),
    "%%magic": ("%%javascript\nalert(1)", "SyntaxError", "%%javascript is a command of IPython"),
    "text around a fence": ("Here:\n```python\nx = 1\n```", "SyntaxError", "a Markdown fence"),
    "NUL": ("x = 1\ny = 'a\0b'", "SyntaxError", "a NUL character (U+0000)"),
    "curly quotes": ("print(\u201chi\u201d)", "SyntaxError", 'write a straight quote " instead'),
    "no-break space": ("x =\xa01", "SyntaxError", "write a plain space instead"),
    "tabs and spaces": ("if 1:\n\tx = 1\n        y = 2", "TabError", "write four spaces for each tab"),
}


@pytest.mark.parametrize("habit", REFUSED)
async def test_what_cannot_work_says_what_to_write(small: Open, habit: str) -> None:
    code, kind, words = REFUSED[habit]
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert result.error is not None
    assert (result.outcome, result.error.type) == (Outcome.USER_ERROR, kind)
    assert words in result.error.message
    assert words in result.error.traceback


@pytest.mark.parametrize(
    "code",
    [
        "```python\nx = 1\n1 / 0\n```",
        "    x = 1\n\n    1 / 0",
        "%matplotlib inline\n!true\n1 / 0",
        "import asyncio\nawait asyncio.sleep(0)\n1 / 0",
        ">>> x = 1\n1\n>>> 1 / 0",
        "%%time\nx = 1\n1 / 0",
    ],
)
async def test_a_traceback_has_the_cells_own_lines(small: Open, code: str) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert result.error is not None
    assert result.error.traceback.splitlines()[1] == '  File "<cell 1>", line 3, in <module>'
    assert result.error.traceback.splitlines()[2].strip().removeprefix(">>> ") == "1 / 0"
    assert result.error.type == "ZeroDivisionError"


async def test_tasks_live_on_while_later_cells_await(small: Open) -> None:
    async with small() as sandbox:
        await sandbox.execute(
            "import asyncio\nt = asyncio.create_task(asyncio.sleep(0.01, 'x'))\nawait asyncio.sleep(0)"
        )
        await sandbox.execute("asyncio.run(asyncio.sleep(0))")
        result = await sandbox.execute("await t")
        cancelled = await sandbox.execute("u = asyncio.create_task(asyncio.sleep(9))\nu.cancel()\nawait u")
    assert result.display[0].as_text() == "'x'"
    assert cancelled.error is not None
    assert cancelled.error.type == "CancelledError"


@pytest.mark.parametrize(
    "wait", ["await asyncio.sleep(60)", "await spin()", "await asyncio.to_thread(time.sleep, 60)"]
)
async def test_a_cell_that_awaits_is_interrupted_and_cleans_up(small: Open, wait: str) -> None:
    code = (
        "import asyncio, time\nasync def spin():\n    while True: pass\n"
        f"try:\n    {wait}\nfinally:\n    print('cleaned')"
    )
    async with small() as sandbox:
        stopped = await sandbox.execute(code, timeout=0.3)
        after = await sandbox.execute("print(await asyncio.sleep(0, 'next'))")
    assert (stopped.outcome, stopped.stdout, stopped.state_lost) == (Outcome.TIMEOUT, "cleaned\n", False)
    assert stopped.error is not None
    assert (stopped.error.type, wait in stopped.error.traceback) == ("KeyboardInterrupt", True)
    assert "base_events" not in stopped.error.traceback
    assert after.stdout == "next\n"


async def test_worker_calls_of_coroutines_answer_each_its_own_prompt(small: Open) -> None:
    code = (
        "import asyncio\nasync def ask(p): return worker(p)\n"
        "a = await asyncio.gather(*[ask(f'a{i}') for i in range(20)])\n"
        "b = await asyncio.gather(*[asyncio.to_thread(worker, f'b{i}') for i in range(20)])\n"
        "print(a == [f'A{i}' for i in range(20)], b == [f'B{i}' for i in range(20)])"
    )
    async with small(on_call=echo) as sandbox:
        result = await sandbox.execute(code)
    assert (result.error, result.stdout) == (None, "True True\n")


async def test_display_shows_values_and_a_name_of_the_code_comes_first(small: Open) -> None:
    async with small() as sandbox:
        shown = await sandbox.execute("display(1, [2])\ndisplay({'text/html': '<b>'}, raw=True)\n3")
        many = await sandbox.execute("for i in range(50): display(i)\n'value'")
        own = await sandbox.execute("def display(x): print('own', x)\ndisplay(1)")
        later = await sandbox.execute("display(2)")
    assert [each.data["text/plain"] for each in shown.display] == ["1", "[2]", "{'text/html': '<b>'}", "3"]
    assert shown.display[2].data["text/html"] == "<b>"
    assert [each.as_text() for each in many.display] == [
        *map(str, range(30)), "'value'", "[20 more displays left out: 30 of a cell are shown]",
    ]  # fmt: skip
    assert (own.stdout, later.stdout) == ("own 1\n", "own 2\n")


async def test_the_last_values_are_kept_unless_the_code_has_an_underscore_of_its_own(small: Open) -> None:
    async with small() as sandbox:
        for code in ("1", "2", "x = 5", "None", "3"):
            await sandbox.execute(code)
        last = await sandbox.execute("print(_, __, ___)")
        await sandbox.execute("for _ in range(2): pass")
        await sandbox.execute("7")
        own = await sandbox.execute("print(_)")
        await sandbox.execute("del _\nimport gettext\ngettext.install('x')")
        await sandbox.execute("8")
        installed = await sandbox.execute("print(_('text'))")
    assert (last.stdout, own.stdout, installed.stdout) == ("3 2 1\n", "1\n", "text\n")


async def test_a_supervisor_may_write_as_in_a_notebook() -> None:
    reply = block("%matplotlib inline\nimport asyncio\nFINAL(await asyncio.to_thread(worker, 'x'))")
    worker = ScriptedHandler(["from the worker"])
    result = await arun(query="q", context="c", supervisor=ScriptedHandler([reply]), worker=worker)
    assert result.answer == "from the worker"
