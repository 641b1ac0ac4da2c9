"""What a host tool may be called with, and give: written and read at both ends of a hostile wire."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.sandbox_image import plain
from supdist.sandbox_image.plain import MAX_DEPTH, MAX_VALUES, NotPlain, TooLarge

ROOM = 1 << 20

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=40,
)


@given(VALUES)
def test_plain_data_comes_out_as_it_went_in(value: Any) -> None:
    back = plain.decode(plain.encode(value, ROOM))
    assert (back, repr(back)) == (value, repr(value)), "1, 1.0 and True are told apart"


@given(
    st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | VALUES.map(json.dumps).map(str.encode)
)
def test_no_bytes_make_the_reader_raise_anything_but_its_own_error(data: bytes) -> None:
    try:
        value = plain.decode(data)
    except NotPlain:
        return
    assert plain.decode(plain.encode(value, 10 * ROOM)) == value, "what was read can be written"


@given(VALUES, st.data())
def test_mutants_of_plain_data_are_read_or_refused(value: Any, data: st.DataObject) -> None:
    mutant = bytearray(plain.encode(value, ROOM))
    for _ in range(data.draw(st.integers(1, 4))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    try:
        plain.decode(bytes(mutant))
    except NotPlain:
        return


class Colour(enum.IntEnum):
    RED = 1


class Word(str):
    __slots__ = ()

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("value", "back"),
    [((1, (2,)), [1, [2]]), (Colour.RED, 1), (Word("x"), "x"), ({Word("k"): True}, {"k": True}),
        ("\ud800", "\ufffd")],
)  # fmt: skip
def test_what_is_almost_plain_becomes_plain(value: object, back: object) -> None:
    read = plain.decode(plain.encode(value, ROOM))
    assert (read, type(read)) == (back, type(back))


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "type set"), (b"x", "type bytes"), (object(), "type object"), (print, "builtin_function"),
        ({1: 2}, "key of type int"), ({None: 2}, "key of type NoneType"), (math.nan, "not finite"),
        (-math.inf, "not finite"), (1 << 64, "64 bits"), (-(1 << 63) - 1, "64 bits"),
        (nested(MAX_DEPTH + 1), "32 levels"), (cycle(), "32 levels"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_named_by_its_type(value: object, words: str) -> None:
    with pytest.raises(NotPlain, match=words):
        plain.encode(value, ROOM)


@pytest.mark.parametrize("value", ["x" * 101, ["é" * 60], {"k" * 200: 1}, list(range(60))])
def test_bytes_are_counted_as_they_are_written(value: object) -> None:
    with pytest.raises(TooLarge, match="more than 100 bytes"):
        plain.encode(value, 100)


def test_the_largest_that_fits_fits() -> None:
    assert plain.encode("x" * 98, 100) == b'"' + b"x" * 98 + b'"'
    assert plain.decode(plain.encode(nested(MAX_DEPTH), ROOM)) == nested(MAX_DEPTH)
    assert plain.decode(plain.encode([0] * (MAX_VALUES - 1), ROOM)) == [0] * (MAX_VALUES - 1)
    with pytest.raises(TooLarge, match="10000 values"):
        plain.encode([0] * MAX_VALUES, ROOM)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"NaN", b"Infinity", b"1e999", b"9" * 100_000, b"18446744073709551616", b"[" * 100_000,
        b'{"a":' * 50_000, b'"\\ud800"', b'"\xff"', b"[1] 2", b"{1: 2}", b"[" * 33 + b"]" * 33,
        b"\x93\x01\x02\x03", b"[" + b"[]," * 60_000 + b"[]]",
    ],
)  # fmt: skip
def test_a_peer_that_does_not_keep_to_it_is_refused(data: bytes) -> None:
    with pytest.raises(NotPlain):
        plain.decode(data)


def test_the_same_rules_hold_whoever_wrote_the_json() -> None:
    assert plain.decode(msgspec.json.encode({"a": [1, 2.5, None, True, "é"]})) == {
        "a": [1, 2.5, None, True, "é"]
    }


def test_brackets_in_a_text_are_no_containers() -> None:
    text = '[{"\\' * 20_000
    assert plain.decode(plain.encode([text, {text: text}], ROOM)) == [text, {text: text}]
