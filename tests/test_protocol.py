from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine.jail import rootfs
from supdist.engine.jail.setup_errors import SetupError, SetupStep
from supdist.sandbox_image import protocol
from supdist.sandbox_image.protocol import FrameBuffer, Violation, frame

LIMIT = 1 << 12


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.lists(st.integers(1, 50), min_size=1))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    buffer, received, at, turn = FrameBuffer(LIMIT), list[bytes](), 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        received += buffer.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert received == payloads


@pytest.mark.parametrize("size", [0, LIMIT + 1, 1 << 31, (1 << 32) - 1])
def test_a_bad_length_is_refused_before_any_payload(size: int) -> None:
    with pytest.raises(Violation):
        FrameBuffer(LIMIT).feed(size.to_bytes(4, "little"))


def test_a_frame_of_exactly_the_limit_passes_and_may_wait_for_its_last_byte() -> None:
    buffer = FrameBuffer(LIMIT)
    data = frame(b"x" * LIMIT)
    assert buffer.feed(data[:-1]) == []
    assert buffer.feed(data[-1:]) == [b"x" * LIMIT]


@given(st.binary(max_size=300))
def test_no_bytes_make_a_decoder_raise_anything_but_its_own_error(data: bytes) -> None:
    for decode in (protocol.decode_from_guest, protocol.decode_to_guest):
        try:
            decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(), st.binary()
)
ITEMS = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)


@given(st.lists(ITEMS, max_size=6))
def test_a_tool_call_of_any_shape_is_one_or_none(items: list[Any]) -> None:
    """Beside the fuzz of raw bytes, which seldom gets past the message's number."""
    try:
        message = protocol.decode_from_guest(msgspec.msgpack.encode([27, *items]))
    except msgspec.MsgspecError:
        return
    assert isinstance(message, protocol.ToolCall)
    assert [type(item) for item in items] == [int, int, int, bytes]
    assert protocol.decode_from_shim(protocol.encode(message)) == message


FORMS = st.dictionaries(
    st.sampled_from(["text/plain", "text/html", "image/svg+xml", "image/png", "image/jpeg", "text/css"]),
    st.text() | st.binary() | SCALARS,
    max_size=3,
)


@given(st.lists(FORMS | ITEMS, max_size=4))
def test_a_display_of_any_shape_is_one_or_none(items: list[Any]) -> None:
    try:
        message = protocol.decode_from_guest(msgspec.msgpack.encode([28, 1, *items]))
    except msgspec.MsgspecError:
        return
    assert isinstance(message, protocol.Display)
    text, images = items
    assert all(form in get_args(protocol.TextForm) and type(text[form]) is str for form in text)
    assert all(form in get_args(protocol.ImageForm) and type(images[form]) is bytes for form in images)
    assert protocol.decode_from_shim(protocol.encode(message)) == message


@given(st.integers(), st.binary() | st.builds(protocol.ToolFailure, st.just("failed"), st.text()))
def test_a_tool_reply_comes_out_as_it_went_in(call: int, result: bytes | protocol.ToolFailure) -> None:
    reply = protocol.ToolReply(call % (1 << 62), result)
    assert protocol.decode_to_guest(protocol.encode(reply)) == reply
    assert protocol.decode_to_shim(protocol.encode(reply)) == reply


def test_the_kind_of_a_message_can_be_read_without_decoding_it() -> None:
    message = protocol.Done(7, None)
    assert protocol.kind(protocol.encode(message)) == 24
    assert protocol.kind(b"") == 0


LINKS = [
    protocol.ToGuest,
    protocol.FromGuest,
    protocol.ToShim,
    protocol.FromShim,
    protocol.ToZygote,
    protocol.FromZygote,
    protocol.ToIsolated,
    protocol.FromIsolated,
]


def test_every_message_has_a_number_of_its_own_that_kind_can_read() -> None:
    """One byte after a header of one byte: fewer than 128 numbers, fewer than 16 items."""
    messages = {message for link in LINKS for message in get_args(link)}
    numbers = [protocol.tag(message) for message in messages]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 128 for number in numbers)
    assert all(len(message.__struct_fields__) < 15 for message in messages)
    assert messages == set(protocol.Message.__subclasses__())


def test_a_failure_that_is_encoded_by_hand_is_the_protocols() -> None:
    failure = SetupError("user_namespace", 95)
    data = rootfs.setup_failed(protocol.tag(protocol.SetupFailed), failure)
    assert protocol.decode_from_zygote(data) == protocol.SetupFailed("user_namespace", 95)
    assert all(len(name) < 32 for name in get_args(SetupStep))


@pytest.mark.parametrize(
    "items",
    [
        [24, 1, None, "one too many"],
        [24, 1],
        [24, "1", None],
        [24, True, None],
        [99, 1],
        ["done", 1, None],
        [40],  # Kill: a word of the engine's, not of a guest's
        [22, 1, 1, "not a list"],
        [22, 1, 1, [b"bytes"]],
        [23, 1, 5],
        [27, 1, 1, 0, "text"],
        [27, 1, 1, "name", b"[[],{}]"],
        [27, 1, 1, 0, ["list"]],
        [28, 1, {"text/css": "x"}, {}],
        [28, 1, {"image/png": "x"}, {}],
        [28, 1, {"text/plain": b"x"}, {}],
        [28, 1, {}, {"image/png": "text"}],
        [28, 1, {1: "x"}, {}],
        [28, 1, {}],
        [8, 1, b"1"],  # ToolReply: a word of the engine's
        {"tag": 24},
        [],
        None,
    ],
)
def test_a_guest_cannot_say_what_is_not_in_its_union(items: object) -> None:
    with pytest.raises(msgspec.MsgspecError):
        protocol.decode_from_guest(msgspec.msgpack.encode(items))


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    with pytest.raises((msgspec.MsgspecError, RecursionError)):
        protocol.decode_from_guest(b"\x91" * 200_000)


def test_lone_surrogates_cannot_be_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        protocol.encode(protocol.Final(1, "\ud800"))
