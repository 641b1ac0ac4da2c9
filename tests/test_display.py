"""What a cell shows: its last value in the forms that notebooks know, and its figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support import Open, block, echo

from supdist.engine import Display, Outcome, Sandbox, arun
from supdist.engine.sandbox import as_data
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio

RICH = """
class Rich:
    def __repr__(self): return "plain"
    def _repr_html_(self): return "<b>rich</b>"
    def _repr_svg_(self): return "<svg/>"
    def _repr_png_(self): return b"\\x89PNG bytes"
"""

FORMS = {
    "text/plain": "plain", "text/html": "<b>rich</b>", "image/svg+xml": "<svg/>",
    "image/png": b"\x89PNG bytes",
}  # fmt: skip


async def show(sandbox: Sandbox, code: str, **arguments: Any) -> list[dict[str, str | bytes]]:
    result = await sandbox.execute(code, **arguments)
    assert result.outcome is Outcome.OK, result
    return [dict(display.data) for display in result.display]


@pytest.mark.parametrize(
    ("code", "plain"),
    [
        ("1 + 1", "2"),
        ("x = 'a\\nb'\nx", "'a\\nb'"),
        ("print('out')\n[1, {'k': (2,)}]", "[1, {'k': (2,)}]"),
        ("worker('x')", "'X'"),
        ("x = 5", None),
        ("None", None),
        ("print(1)", None),
        ("5;", None),
        ("for i in range(3):\n    i", None),
        ("FINAL(1)", None),
        ("", None),
        ("'\\ud800'", "'\\ud800'"),
    ],
)
async def test_the_last_expression_is_shown_and_nothing_else(
    small: Open, code: str, plain: str | None
) -> None:
    async with small(on_call=echo) as sandbox:
        assert await show(sandbox, code) == ([] if plain is None else [{"text/plain": plain}])
        assert (await sandbox.execute("print('_' in dir())")).stdout == "False\n"


async def test_a_value_is_shown_in_all_its_forms(small: Open) -> None:
    async with small() as sandbox:
        result = await sandbox.execute(f"{RICH}\nRich()")
        class_itself = await show(sandbox, "Rich")
        bundle = await show(
            sandbox,
            "class Both:\n"
            "    def _repr_mimebundle_(self, include, exclude):\n"
            "        return {'text/plain': 'own', 'image/jpeg': b'jpeg', 'application/x-other': 1},"
            " {'width': 1}\n"
            "    def _repr_html_(self): return None\n"
            "    def _repr_svg_(self): return '<svg/>', {'metadata': 1}\n"
            "Both()",
        )
    assert result.display == (Display(FORMS),)
    assert class_itself == [{"text/plain": "<class '__main__.Rich'>"}]
    assert bundle == [{"text/plain": "own", "image/jpeg": b"jpeg", "image/svg+xml": "<svg/>"}]
    assert result.display[0].as_text() == "plain\n[image/svg+xml, 6 bytes]\n[image/png, 10 bytes]"
    assert as_data(result)["display"] == [{**FORMS, "image/png": "iVBORyBieXRlcw=="}]


FAILING = {
    "raises": ("raise ValueError('no')", "[repr failed: ValueError: no]"),
    "leaves": ("import sys; sys.exit(3)", "[repr failed: SystemExit: 3]"),
    "recurses": ("return repr(self)", "[repr failed: RecursionError: maximum recursion depth exceeded"),
    "is no text": ("return 5", "[repr failed: TypeError: __repr__ returned non-string (type int)]"),
    "fails to fail": (
        "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})",
        "[repr failed: E: <exception str() failed>]",
    ),
}


@pytest.mark.parametrize("how", FAILING)
async def test_a_repr_that_fails_is_told_and_costs_the_cell_nothing(small: Open, how: str) -> None:
    body, told = FAILING[how]
    async with small() as sandbox:
        shown = await show(sandbox, f"class Bad:\n    def __repr__(self): {body}\nx = 1\nBad()")
        assert (await sandbox.execute("print(x)")).stdout == "1\n"
    assert len(shown) == 1
    assert str(shown[0]["text/plain"]).startswith(told)


async def test_other_forms_than_the_one_that_fails_are_kept(small: Open) -> None:
    code = RICH + "Rich._repr_html_ = lambda self: 1 / 0\nRich._repr_svg_ = lambda self: 5\nRich()"
    async with small() as sandbox:
        assert await show(sandbox, code) == [
            {
                "text/plain": "plain\n[_repr_html_ failed: ZeroDivisionError: division by zero]",
                "image/png": FORMS["image/png"],
            }
        ]


async def test_a_repr_is_code_of_the_cell(small: Open) -> None:
    """It prints, asks workers and is interrupted; the variables are kept."""
    code = "class Busy:\n    def __repr__(self):\n        print('here')\n        {}\nx = 1\nBusy()"
    async with small(on_call=echo) as sandbox:
        asks = await sandbox.execute(code.format("return worker('asked')"))
        hangs = await sandbox.execute(code.format("while True: pass"), timeout=0.3)
        after = await sandbox.execute("print(x)")
    assert (asks.stdout, asks.display) == ("here\n", (Display({"text/plain": "ASKED"}),))
    assert (hangs.outcome, hangs.stdout, hangs.display) == (Outcome.TIMEOUT, "here\n", ())
    assert not hangs.state_lost
    assert hangs.error is not None
    assert 'File "<cell 2>", line 4, in __repr__' in hangs.error.traceback
    assert "sandbox_image" not in hangs.error.traceback
    assert after.stdout == "1\n"


async def test_what_is_too_large_is_replaced_by_a_note(small: Open) -> None:
    code = RICH + "Rich._repr_png_ = lambda self: b'x' * {}\nRich()"
    async with small(display="64KiB") as sandbox:
        fits = await show(sandbox, code.format(60 << 10))
        large = await show(sandbox, code.format(64 << 10))
        text = await show(sandbox, "'x' * 1_000_000")
    assert len(fits[0]["image/png"]) == 60 << 10
    assert large == [
        {
            "text/plain": "plain\n[image/png of 65536 bytes left out: larger than what is left of 65536]",
            "text/html": "<b>rich</b>",
            "image/svg+xml": "<svg/>",
        }
    ]
    assert len(text[0]["text/plain"]) == 64 << 10


async def test_a_huge_value_costs_little(small: Open) -> None:
    """A list of references in a sandbox whose memory would not hold its ``repr`` of 300 MB."""
    async with small(memory="256MiB") as sandbox:
        shown = await show(sandbox, "[[0] * 1000] * 100_000")
    plain = str(shown[0]["text/plain"])
    assert plain.startswith("[[0, 0, 0, ")
    assert plain.endswith("\n[... cut after 100000 characters]")


PYPLOT = """
import sys, types
class Figure:
    def __init__(self, number): self.number = number
    def __repr__(self): return f"figure {self.number}"
    def savefig(self, image, **options): image.write(b"drawing of %d" % self.number)
figures = {}
def figure(number=None):
    number = number or len(figures) + 1
    return figures.setdefault(number, Figure(number))
pyplot, module = types.ModuleType("matplotlib.pyplot"), types.ModuleType("matplotlib.figure")
pyplot.get_fignums, pyplot.figure = lambda: sorted(figures), figure
pyplot.close, module.Figure = lambda which: figures.clear(), Figure
sys.modules["matplotlib.pyplot"], sys.modules["matplotlib.figure"] = pyplot, module
"""
"""As much of pyplot as the display of figures needs; matplotlib itself is tested in test_packages."""


def drawn(*numbers: int) -> list[dict[str, str | bytes]]:
    return [{"text/plain": f"figure {n}", "image/png": f"drawing of {n}".encode()} for n in numbers]


async def test_open_figures_are_shown_once_in_order_and_closed(small: Open) -> None:
    async with small() as sandbox:
        assert await show(sandbox, PYPLOT) == []
        assert await show(sandbox, "figure(2), figure(1)\nx = 1") == drawn(1, 2)
        assert await show(sandbox, "figure(1); figure(2)") == drawn(2, 1)
        assert await show(sandbox, "figures") == [{"text/plain": "{}"}]
        raised = await sandbox.execute("f = figure(3); 1 / 0")
        stopped = await sandbox.execute("f = figure(3)\nwhile True: pass", timeout=0.2)
        many = await show(sandbox, "for i in range(40): figure(i + 1)")
        broken = await show(sandbox, "f = figure(1); f.savefig = None\nx = 1")
        await sandbox.execute("pyplot.get_fignums = None")
        no_pyplot = await show(sandbox, "1")
    assert (raised.outcome, [dict(each.data) for each in raised.display]) == (Outcome.USER_ERROR, drawn(3))
    assert (stopped.outcome, stopped.display) == (Outcome.TIMEOUT, ())
    assert many[:30] == drawn(*range(1, 31))
    assert many[30:] == [{"text/plain": "[10 more figures left out: 30 of a cell are shown]"}]
    note = "[drawing the figure failed: TypeError: 'NoneType' object is not callable]"
    assert broken == [{"text/plain": f"figure 1\n{note}"}]
    assert no_pyplot[1:] == [
        {"text/plain": "[showing the figures failed: TypeError: 'NoneType' object is not callable]"}
    ]


async def test_in_a_run_values_are_shown_to_the_supervisor_and_logged(tmp_path: Path) -> None:
    supervisor = ScriptedHandler(
        [block(f"{RICH}\nprint('printed')\nRich()"), block("'y' * 50_000"), block("FINAL(1)")]
    )
    await arun(
        query="q", context="c", supervisor=supervisor, worker=ScriptedHandler([]), output_limit=400,
        log_dir=tmp_path,
    )  # fmt: skip
    told = [call[-1]["content"] for call in supervisor.calls]
    assert "Output:\nprinted\nplain\n[image/svg+xml, 6 bytes]\n[image/png, 10 bytes]" in told[1]
    assert "characters left out" in told[2]
    assert told[2].count("y") < 500
    events = [json.loads(line) for line in (tmp_path / "repl.jsonl").read_text().splitlines()]
    logged = next(event["display"] for event in events if event["event"] == "cell")
    image = {"bytes": 10, "sha256": hashlib.sha256(b"\x89PNG bytes").hexdigest()}
    assert logged == [{**FORMS, "image/png": image}]
