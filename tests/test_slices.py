"""Work in slices: the same results as at once, and an event loop that goes on."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine import slices
from supdist.engine.slices import decode, encode, finish, in_slices, join, sha256, strip_end

# Each is as wide as 1, 1, 2 and 4 bytes a character in memory.
ALPHABET = "a\n\xe9\u20ac\ud800\U0001f600"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a slice have five characters, so that a short text has many."""
    monkeypatch.setattr(slices, "SLICE", 5)
    monkeypatch.setattr(slices, "_JOINED", 8)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = sorted(min(each, len(data)) for each in at)
    return [data[start:end] for start, end in itertools.pairwise([0, *ends, len(data)])]


@pytest.mark.usefixtures("small")
@given(
    st.binary(max_size=40) | st.text(ALPHABET).map(lambda t: t.encode("utf-8", "replace")),
    st.lists(st.integers(0, 40)),
)
def test_bytes_decode_in_slices_as_at_once(data: bytes, at: list[int]) -> None:
    assert finish(decode(cut(data, at), "replace")) == data.decode("utf-8", "replace")


@pytest.mark.usefixtures("small")
@given(st.text(ALPHABET))
def test_a_text_is_cut_joined_encoded_and_hashed_in_slices_as_at_once(text: str) -> None:
    pieces = list(slices.text_slices(text))
    assert all(len(piece) <= 5 for piece in pieces)
    joined = finish(join(pieces))
    assert (joined, hash(joined), joined.isascii()) == (text, hash(text), text.isascii())
    assert b"".join(encode(text, "surrogatepass")) == text.encode("utf-8", "surrogatepass")
    assert finish(sha256(text)) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@pytest.mark.usefixtures("small")
@given(st.text("a\n", max_size=40))
def test_the_end_of_a_text_is_stripped_in_slices_as_at_once(text: str) -> None:
    assert strip_end(text, "\n") == len(text.rstrip("\n"))


@pytest.mark.usefixtures("small")
def test_strict_decoding_refuses_what_one_shot_decoding_refuses() -> None:
    with pytest.raises(UnicodeDecodeError):
        finish(decode([b"a\xff"]))
    with pytest.raises(UnicodeDecodeError):
        finish(decode([b"a\xe2\x82"]))


def count_to(number: int, seen: list[int]) -> Generator[None, None, int]:
    for each in range(number):
        seen.append(each)
        yield
    return number


async def test_the_event_loop_runs_between_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supdist.handlers.slices._TURN_SECONDS", 0.0)
    seen: list[int] = []
    turns: list[int] = []
    working = asyncio.ensure_future(in_slices(count_to(50, seen)))
    while not working.done():
        turns.append(len(seen))
        await asyncio.sleep(0)
    assert await working == 50
    assert len(set(turns)) > 10


async def test_several_works_share_one_turn_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("supdist.handlers.slices.time.monotonic", lambda: next(clock) * 0.001)
    seen: list[int] = []
    steps_a_turn: list[int] = []
    working = asyncio.gather(*(in_slices(count_to(30, seen)) for _ in range(10)))
    while not working.done():
        before = len(seen)
        await asyncio.sleep(0)
        steps_a_turn.append(len(seen) - before)
    assert await working == [30] * 10
    # The clock goes on by a millisecond at each look: five looks are a turn.
    assert max(steps_a_turn) <= 5


async def test_work_that_is_cancelled_or_fails_leaves_the_turn_to_others() -> None:
    seen: list[int] = []
    endless = asyncio.ensure_future(in_slices(count_to(10**9, seen)))
    await asyncio.sleep(0)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    with pytest.raises(UnicodeDecodeError):
        await in_slices(decode([b"\xff"]))
    assert await in_slices(count_to(3, seen)) == 3
