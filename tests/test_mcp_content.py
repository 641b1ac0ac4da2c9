"""What a model is shown of a result."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.types import BlobResourceContents, ContentBlock, EmbeddedResource, ImageContent, TextContent

from supdist.sandbox_image.mcp.content import IMAGE_BYTES, contents, file_content
from supdist.sandbox_image.mcp.session import Cell
from supdist.sandbox_image.protocol import ErrorInfo, Outcome

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20


def cell(
    outcome: Outcome = Outcome.OK, *, lost: bool = False, display: tuple[dict[str, str | bytes], ...] = ()
) -> Cell:
    return Cell(outcome, "", "", display, None, lost, "")


def blocks_of(result: Cell, *, keeps_files: bool = False) -> list[ContentBlock]:
    steps = contents(result, timeout=1.0, limit=100, keeps_files=keeps_files)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            blocks: list[ContentBlock] = end.value
            return blocks


def texts(result: Cell, *, keeps_files: bool = False) -> list[str]:
    blocks = blocks_of(result, keeps_files=keeps_files)
    return [block.text for block in blocks if isinstance(block, TextContent)]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_end_but_a_good_one_is_told_with_what_is_left(outcome: Outcome) -> None:
    own = outcome in (Outcome.OK, Outcome.USER_ERROR, Outcome.BUDGET_EXCEEDED)
    assert (texts(cell(outcome)) == ["(no output)"]) is own
    if not own:
        assert texts(cell(outcome))[0].endswith("The variables are kept.")
        assert texts(cell(outcome, lost=True))[0].endswith(
            "Every variable and file is lost; a new session has begun."
        )
        assert "the files are kept" in texts(cell(outcome, lost=True), keeps_files=True)[0]


def test_a_value_is_shown_in_the_form_that_says_most() -> None:
    image: dict[str, str | bytes] = {"text/plain": "<Figure>", "image/png": PNG}
    (block,) = blocks_of(cell(display=(image,)))
    assert block == ImageContent(data=base64.b64encode(PNG).decode(), mime_type="image/png")
    table: dict[str, str | bytes] = {"text/html": "<table>", "text/plain": "a b"}
    assert texts(
        cell(display=(table, {"image/png": base64.b64encode(PNG).decode()}, {"text/html": "<p>"}))
    ) == [
        "a b",
        "<p>",
    ]


@pytest.mark.parametrize(
    "bundle",
    [
        {"image/png": b"none"},
        {"image/png": "no base64"},
        {"image/png": PNG + bytes(IMAGE_BYTES)},
        {"application/x": b""},
        {"text/plain": b"bytes"},
        {},
    ],
)
def test_what_cannot_be_shown_is_said(bundle: dict[str, str | bytes]) -> None:
    (said,) = texts(cell(display=(bundle,)))
    assert said.startswith("[")


@given(st.binary())
def test_a_file_arrives_whole_in_some_form(data: bytes) -> None:
    block = file_content("file:///work/f", data)
    match block:
        case TextContent():
            assert block.text.encode() == data
        case EmbeddedResource(resource=BlobResourceContents(blob=blob)):
            assert base64.b64decode(blob) == data
        case ImageContent():
            assert base64.b64decode(block.data) == data
        case _:
            raise AssertionError(block)


def test_output_is_cut_after_a_terminal_would_have_shown_it() -> None:
    bar = "".join(f"\r{done}%" for done in range(101))
    error = ErrorInfo("E", "m", "\x1b[31mE\x1b[0m: m")
    shown = Cell(
        Outcome.USER_ERROR, bar + "\nresult", "\x1b[1mbad\x1b[0m", [{"text/plain": "1\r2"}], error, False, ""
    )
    assert texts(shown) == ["100%\nresult", "2", "stderr:\nbad", "E: m"]
    quiet = Cell(Outcome.OK, "\x1b[?25l", "\x1b[?25h", [], None, lost=False, detail="")
    assert texts(quiet) == ["(no output)"]


def test_a_survived_limit_is_explained_once() -> None:
    detail = "more than 9 bytes of output: print less; the variables are kept"
    shown = Cell(Outcome.OUTPUT_LIMIT, "", "", [], None, lost=False, detail=detail)
    assert texts(shown) == ["The code was stopped: it wrote too much output. The variables are kept."]
