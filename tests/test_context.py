from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supdist.engine import TaskError
from supdist.engine.sandbox.context import ContextMemory, encode_context, write_sealed
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest.repl import load_context

TEXTS = st.text(st.characters(exclude_categories=()))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(TEXTS | st.lists(PLAIN, max_size=5) | st.dictionaries(TEXTS, PLAIN, max_size=5))
def test_every_context_arrives_equal(context: object) -> None:
    encoded = encode_context(context)
    arrived = load_context(protocol.Load(encoded.kind, "descriptor", b""), write_sealed(encoded.data))
    assert arrived == context
    assert type(arrived) is type(context)


@pytest.mark.parametrize("thing", [object(), print, int, range(3), [open]])
def test_an_object_of_a_class_is_refused_by_name(thing: object) -> None:
    with pytest.raises(TaskError, match="the context holds an object of type"):
        encode_context({"deep": [thing]})


def test_no_pickle_of_a_context_names_anything_to_import() -> None:
    class Evil(str):
        __slots__ = ()

        def __reduce__(self) -> tuple[object, ...]:
            return (os.getcwd, ())

    with pytest.raises(TaskError):
        encode_context([Evil("x")])
    assert pickle.loads(encode_context([1, "a", {"b": (2,)}]).data) == [1, "a", {"b": (2,)}]


def test_a_context_that_is_nested_too_deeply_is_an_error() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TaskError, match="nested too deeply"):
        encode_context(deep)


def test_sealed_memory_cannot_be_changed() -> None:
    fd = write_sealed(b"abc")
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_the_same_text_is_written_once() -> None:
    memory, text = ContextMemory(), "x" * 1000
    first, kind = memory.descriptor(text)
    second, _ = memory.descriptor(text)
    other, _ = memory.descriptor(text + "y")
    inodes = [os.fstat(fd).st_ino for fd in (first, second, other)]
    assert kind == "text"
    assert inodes[0] == inodes[1] != inodes[2]
    for fd in (first, second, other):
        os.close(fd)
    memory.close()
