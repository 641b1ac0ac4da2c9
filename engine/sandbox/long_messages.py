"""Decode and encode long messages of shims in slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

from ...sandbox_image import protocol
from ...sandbox_image.protocol import CallError, ImageForm, TextForm, Value
from ...sandbox_image.protocol.base import Message
from ..slices import SLICE, Steps, decode, encode

# The same messages, whose texts and bytes stay where they arrived. Only they can be long: the shim bounds
# the others, and cuts files into chunks.


class _Call(Value, frozen=True, tag=protocol.tag(protocol.Call)):
    call: int
    cell: int
    prompts: list[msgspec.Raw]


class _Final(Value, frozen=True, tag=protocol.tag(protocol.Final)):
    cell: int
    answer: msgspec.Raw


class _Display(Value, frozen=True, tag=protocol.tag(protocol.Display)):
    cell: int
    text: dict[TextForm, msgspec.Raw]
    images: dict[ImageForm, msgspec.Raw]


class _Output(Value, frozen=True, tag=protocol.tag(protocol.Output)):
    cell: int
    stream: Literal[1, 2]
    data: msgspec.Raw


_TYPES: tuple[type[Message], ...] = (protocol.Call, protocol.Final, protocol.Display, protocol.Output)
_LONG = frozenset(map(protocol.tag, _TYPES))
_Long: TypeAlias = _Call | _Final | _Display | _Output
_decode: Callable[[bytes], _Long] = msgspec.msgpack.Decoder(_Long).decode

# Bytes before a text or bytes, by their first byte (MessagePack specification, "str" and "bin").
_HEADER_BYTES = {0xC4: 2, 0xC5: 3, 0xC6: 5, 0xD9: 2, 0xDA: 3, 0xDB: 5}


def decode_long(payload: bytes) -> Steps[list[protocol.FromShim]]:
    """Decode a message. Long output becomes several messages."""
    if protocol.kind(payload) not in _LONG:
        return [protocol.decode_from_shim(payload)]
    match _decode(payload):
        case _Call(call, cell, raw):
            prompts: list[str] = []
            for each in raw:
                prompts.append((yield from _text(each)))
                yield
            return [protocol.Call(call, cell, prompts)]
        case _Final(cell, answer):
            return [protocol.Final(cell, (yield from _text(answer)))]
        case _Display(cell, forms, images):
            text: dict[TextForm, str] = {}
            for mime, form in forms.items():
                text[mime] = yield from _text(form)
            data: dict[ImageForm, bytes] = {mime: bytes(_body(form)) for mime, form in images.items()}
            return [protocol.Display(cell, text, data)]
        case _Output(cell, stream, output):
            body = _body(output)
            outputs: list[protocol.FromShim] = []
            for start in range(0, len(body), SLICE):
                outputs.append(protocol.Output(cell, stream, bytes(body[start : start + SLICE])))
                yield
            return outputs


def _text(raw: msgspec.Raw) -> Steps[str]:
    body = _body(raw)
    if len(body) <= SLICE:
        return str(body, "utf-8")
    return (yield from decode([body]))


def _body(raw: msgspec.Raw) -> memoryview:
    view = memoryview(raw)
    return view[_HEADER_BYTES.get(view[0], 1) :]


def encode_reply(
    call: int,
    results: Sequence[str | CallError],
    kind: type[protocol.Reply | protocol.ReplyPart] = protocol.Reply,
) -> Steps[list[bytes]]:
    """Encode a ``Reply`` or a part of one in pieces. Its texts hold no surrogates."""
    # An array of two numbers and an array (MessagePack specification, "array").
    head = protocol.encode(kind(call, []))[:-1]
    pieces = [head + _array_header(len(results))]
    for result in results:
        if not isinstance(result, str) or len(result) <= SLICE:
            pieces.append(protocol.encode(result))
        else:
            start, size = len(pieces), 0
            for piece in encode(result):
                pieces.append(piece)
                size += len(piece)
                yield
            pieces.insert(start, b"\xdb" + size.to_bytes(4, "big"))
        yield
    return pieces


def _array_header(size: int) -> bytes:
    return bytes([0x90 + size]) if size < 16 else b"\xdd" + size.to_bytes(4, "big")
