from __future__ import annotations

import asyncio
import io
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine import TaskError
from supdist.engine.sandbox.context import (
    ContextMemory,
    encode_beside_loop,
    encode_context,
    new_memory,
    write_sealed,
)
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest.repl import load_context

TEXTS = st.text(st.characters(exclude_categories=()))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(TEXTS | st.lists(PLAIN, max_size=5) | st.dictionaries(TEXTS, PLAIN, max_size=5))
def test_every_context_arrives_equal(context: object) -> None:
    kind = write_sealed(fd := new_memory(), context)
    arrived = load_context(protocol.Load(kind, "descriptor", b""), fd)
    assert arrived == context
    assert type(arrived) is type(context)


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("letter", ["a", "é", "語", "\N{GRINNING FACE}", "\ud800"])
def test_a_text_arrives_equal_wherever_its_pieces_are_cut(letter: str, more: int) -> None:
    text = "ab" + letter * ((2 << 20) + more)
    kind = write_sealed(fd := new_memory(), text)
    assert os.pread(fd, 10, 0) == text[:10].encode("utf-8", "surrogatepass")[:10]
    assert load_context(protocol.Load(kind, "descriptor", b""), fd) == text


def test_a_text_is_encoded_a_piece_at_a_time() -> None:
    largest = 0

    class Sink:
        def write(self, data: bytes | memoryview, /) -> None:
            nonlocal largest
            largest = max(largest, len(data))

    encode_context("é" * 10_000_000, Sink())
    assert largest <= 4 << 20


@pytest.mark.parametrize("thing", [object(), print, int, range(3), [open]])
def test_an_object_of_a_class_is_refused_by_name(thing: object) -> None:
    with pytest.raises(TaskError, match="the context holds an object of type"):
        encode_context({"deep": [thing]}, io.BytesIO())


def test_no_pickle_of_a_context_names_anything_to_import() -> None:
    class Evil(str):
        __slots__ = ()

        def __reduce__(self) -> tuple[object, ...]:
            return (os.getcwd, ())

    with pytest.raises(TaskError):
        encode_context([Evil("x")], io.BytesIO())
    encode_context([1, "a", {"b": (2,)}], plain := io.BytesIO())
    assert pickle.loads(plain.getvalue()) == [1, "a", {"b": (2,)}]


def test_a_context_that_is_nested_too_deeply_is_an_error() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TaskError, match="nested too deeply"):
        encode_context(deep, io.BytesIO())


def test_sealed_memory_cannot_be_changed() -> None:
    write_sealed(fd := new_memory(), "abc")
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_the_same_text_is_written_once() -> None:
    memory, text = ContextMemory(), "x" * 1000
    fds = [memory.descriptor(text)]
    assert memory.write(fds[0], text) == "text"
    fds.append(memory.descriptor(text))
    assert os.pread(fds[1], 10, 0) == b"x" * 10
    fds.append(memory.descriptor(text + "y"))
    assert memory.write(fds[1], text) == memory.write(fds[2], text + "y") == "text"
    inodes = [os.fstat(fd).st_ino for fd in fds]
    assert inodes[0] == inodes[1] != inodes[2]
    assert os.fstat(fds[2]).st_size == 1001
    for fd in fds:
        os.close(fd)
    memory.close()


def test_what_was_asked_for_twice_before_it_was_written_is_written_twice() -> None:
    """Nobody gets memory that is empty, or that can be changed."""
    memory, text = ContextMemory(), "x" * 1000
    fds = [memory.descriptor(text), memory.descriptor(text)]
    for fd in fds:
        assert memory.write(fd, text) == "text"
    for fd in fds:
        assert os.pread(fd, 2000, 0) == text.encode()
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"y", 0)
        os.close(fd)
    memory.close()


def test_none_is_a_context_and_no_text_that_is_kept() -> None:
    memory = ContextMemory()
    fd = memory.descriptor(None)
    assert memory.write(fd, None) == "object"
    assert load_context(protocol.Load("object", "descriptor", b""), fd) is None


async def test_two_sandboxes_that_open_at_once_write_a_long_text_once() -> None:
    memory, text = ContextMemory(), "x" * (3 << 20)
    (one, _), (two, _) = await asyncio.gather(memory.written(text), memory.written(text))
    assert os.fstat(one).st_ino == os.fstat(two).st_ino
    assert os.fstat(one).st_size == len(text)
    for fd in (one, two):
        os.close(fd)
    memory.close()


async def test_a_context_that_is_refused_leaves_no_descriptor() -> None:
    memory = ContextMemory()
    # The first use of a thread opens descriptors.
    os.close((await memory.written(["x"]))[0])
    before = len(os.listdir("/proc/self/fd"))
    for encode in (memory.written, encode_beside_loop):
        with pytest.raises(TaskError):
            await encode(["x" * 100_000, object()])
    assert len(os.listdir("/proc/self/fd")) == before
    memory.close()
