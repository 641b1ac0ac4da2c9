"""An error whose reason is the sandbox says what to do."""

from __future__ import annotations

import pytest
from support import Open

from supdist.engine import Outcome

pytestmark = pytest.mark.anyio

LOOKUP = "import socket\n{}try:\n    socket.getaddrinfo('example.com', 80)\nexcept OSError as error:\n"
CLASSES = "class Refused(Exception):\n    __module__ = 'library'\n"

HINTS = {
    "create_task": (
        "import asyncio\nc = asyncio.sleep(0)\nasyncio.create_task(c)",
        "RuntimeError", "add an await to the cell, such as `await asyncio.sleep(0)`",
    ),
    "get_running_loop": ("import asyncio\nasyncio.get_running_loop()", "RuntimeError", "add an await"),
    "asyncio.run": (
        "import asyncio\nawait asyncio.sleep(0)\nasyncio.run(asyncio.sleep(0))",
        "RuntimeError", "write `await main()` in the place of `asyncio.run(main())`",
    ),
    "breakpoint": ("breakpoint()", "BdbQuit", "there is no terminal: print the values"),
    "set_trace": ("import pdb; pdb.set_trace()", "BdbQuit", "there is no terminal: print the values"),
    "getpass": ("import getpass; getpass.getpass()", "EOFError", "there is no terminal: assign the value"),
    "args": (
        LOOKUP.format(CLASSES) + "    raise Refused(Refused('no', error)) from None",
        "Refused", "has no network",
    ),
    "cause": (LOOKUP.format(CLASSES) + "    raise Refused('no') from error", "Refused", "has no network"),
    "context": (LOOKUP.format(CLASSES) + "    raise Refused('no')", "Refused", "has no network"),
    "urlopen": ("import urllib.request as u; u.urlopen('http://example.com')", "URLError", "has no network"),
    "address": ("import socket as s; s.create_connection(('192.0.2.1', 80))", "", "has no network"),
    "connect": ("import socket; s = socket.socket(); s.connect(('192.0.2.1', 80))", "", "has no network"),
    "group": (
        LOOKUP.format("") + "    raise ExceptionGroup('some', [error])", "ExceptionGroup", "has no network",
    ),
    "IPython": (
        "from IPython.display import display, HTML", "ModuleNotFoundError",
        "`display(x)` is there without an import",
    ),
    "clear_output": ("clear_output()", "NameError", "this is no notebook, and printed text stays"),
    "get_ipython": ("get_ipython().run_line_magic('ls', '')", "NameError", "this is no IPython"),
}  # fmt: skip


@pytest.mark.parametrize("name", HINTS)
async def test_an_error_of_the_sandbox_has_a_hint(small: Open, name: str) -> None:
    code, kind, words = HINTS[name]
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert result.error is not None
    assert result.error.type == (kind or result.error.type)
    assert "Hint: " in result.error.message
    assert words in result.error.message
    assert words in result.error.traceback


@pytest.mark.parametrize(
    "code",
    [
        LOOKUP.format("") + "    1 / 0",
        "error = ValueError()\nerror.__cause__ = error.__context__ = error\nraise error",
        "error = ValueError()\nfor _ in range(10_000): error = ValueError(error)\nraise ValueError('many')",
        "raise RuntimeError('no')",
    ],
)
async def test_other_errors_have_none(small: Open, code: str) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(code)
    assert result.error is not None
    assert "Hint: " not in result.error.message + result.error.traceback


@pytest.mark.parametrize(
    ("code", "status"), [("exit()", "None"), ("import sys; sys.exit(0)", "0"), ("raise SystemExit('x')", "x")]
)
async def test_an_exit_ends_only_the_cell_and_says_so(small: Open, code: str, status: str) -> None:
    async with small() as sandbox:
        ended = await sandbox.execute(f"kept = 5\n{code}")
        after = await sandbox.execute("print(kept)")
    assert ended.error is not None
    assert (ended.outcome, ended.error.type, ended.error.message) == (
        Outcome.USER_ERROR, "SystemExit", status,
    )  # fmt: skip
    assert "Hint: only the cell ended; the session goes on, with its variables." in ended.error.traceback
    assert after.stdout == "5\n"
