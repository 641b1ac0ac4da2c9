"""Long messages of shims: the same values as decoded at once, and the same bytes as encoded at once."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.engine import slices
from supdist.engine.sandbox import long_messages
from supdist.engine.sandbox.long_messages import decode_long, encode_reply
from supdist.engine.sandbox.running_cell import RunningCell
from supdist.engine.slices import finish
from supdist.sandbox_image import protocol
from supdist.sandbox_image.protocol import CallError, Outcome

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CALLS = st.builds(protocol.Call, st.integers(1, 9), st.integers(1, 9), st.lists(TEXT, max_size=20))
FINALS = st.builds(protocol.Final, st.integers(1, 9), TEXT)
DISPLAYS = st.builds(
    protocol.Display,
    st.integers(1, 9),
    st.dictionaries(st.sampled_from(["text/plain", "text/html"]), TEXT),
    st.dictionaries(st.just("image/png"), st.binary(max_size=300)),
)
OTHERS = st.sampled_from([protocol.FileData(1, b"x", None), protocol.Exit(Outcome.OK, "")])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a slice have five characters or bytes."""
    for module in (slices, long_messages):
        monkeypatch.setattr(module, "SLICE", 5)
    monkeypatch.setattr("supdist.sandbox_image.guest_session.collector._PIECE_BYTES", 3)


@given(CALLS | FINALS | DISPLAYS | OTHERS)
def test_a_long_message_decodes_as_at_once(message: protocol.FromShim) -> None:
    assert finish(decode_long(protocol.encode(message))) == [message]
    assert finish(decode_long(memoryview(protocol.encode(message)))) == [message]  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # as the router's


@given(st.binary(max_size=300))
def test_long_output_becomes_pieces_of_it(data: bytes) -> None:
    outputs = finish(decode_long(protocol.encode(protocol.Output(3, 2, data))))
    pieces: list[bytes] = []
    for output in outputs:
        assert isinstance(output, protocol.Output)
        assert (output.cell, output.stream) == (3, 2)
        pieces.append(output.data)
    assert b"".join(pieces) == data
    assert all(len(piece) <= 5 for piece in pieces)


@given(st.lists(TEXT | st.builds(CallError, st.just("timeout"), TEXT), max_size=20))
def test_a_long_reply_is_encoded_as_at_once(results: list[str | CallError]) -> None:
    encoded = b"".join(finish(encode_reply(7, results)))
    assert protocol.decode_to_shim(encoded) == protocol.Reply(7, results)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=8)), max_size=20))
def test_the_output_of_a_cell_decodes_as_at_once(pieces: list[tuple[int, bytes]]) -> None:
    async def collect() -> tuple[str, str]:
        cell = RunningCell(1, result_bytes=1 << 20, output_bytes=1 << 19)
        for stream, data in pieces:
            cell.add(protocol.Output(1, 1 if stream == 1 else 2, data))
        cell.finish(
            protocol.CellEnd(1, Outcome.OK, None, 0.0, 0.0, False, False, 0, "", protocol.NOT_MEASURED)
        )
        result = await cell.result
        return result.stdout, result.stderr

    def whole(stream: int) -> str:
        return b"".join(data for each, data in pieces if each == stream).decode("utf-8", "replace")

    assert asyncio.run(collect()) == (whole(1), whole(2))
