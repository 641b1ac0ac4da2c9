"""The windows of local servers, learnt from what their documentation says they answer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from supdist.engine.model_specs import model_named
from supdist.handlers.local_servers import LocalServerHandler, ServerKind

Replies = Mapping[str, Any]


@asynccontextmanager
async def serving(replies: Replies) -> AsyncGenerator[tuple[str, list[str]]]:
    """Answer ``METHOD /path`` with JSON, bytes, or a redirect's URL; 404 for others."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line = " ".join(head.split(" ")[:2])
        asked.append(f"{line}{' with a key' if 'authorization:' in head.lower() else ''}")
        reply = replies.get(line)
        if reply is None:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif isinstance(reply, str):
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {reply}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def window(kind: ServerKind, replies: Replies, model: str = "m") -> int | None:
    async with serving(replies) as (root, _):
        url = f"{root}/v1"
        async with LocalServerHandler(model, server=kind, base_url=url, api_key_env={url: None}) as handler:
            return handler.window


OLLAMA_PS: Any = {"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "context_length": 32768}]}
OLLAMA_SHOW: Any = {
    "parameters": 'stop                           "<|im_end|>"\nnum_ctx                        16384',
    "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 262144},
}
VLLM: Any = {"data": [{"id": "other", "max_model_len": 1}, {"id": "m", "max_model_len": 40960}]}
LLAMACPP: Any = {"default_generation_settings": {"n_ctx": 8192, "params": {}}, "total_slots": 2}
LMSTUDIO: Any = {"data": [{"id": "m", "max_context_length": 131072, "loaded_context_length": 4096}]}
NOT_LOADED: Any = {"data": [{"id": "m", "max_context_length": 131072}]}
CASES: list[tuple[ServerKind, Replies, str, int | None]] = [
    ("vllm", {"GET /v1/models": VLLM}, "m", 40960),
    ("llamacpp", {"GET /props": LLAMACPP}, "m", 8192),
    ("lmstudio", {"GET /api/v0/models": LMSTUDIO}, "m", 4096),
    ("lmstudio", {"GET /api/v0/models": NOT_LOADED}, "m", None),
    ("ollama", {"GET /api/ps": OLLAMA_PS, "POST /api/show": OLLAMA_SHOW}, "qwen3:8b", 32768),
    # Not loaded: the Modelfile's num_ctx is what the next load takes.
    ("ollama", {"GET /api/ps": {"models": []}, "POST /api/show": OLLAMA_SHOW}, "qwen3:8b", 16384),
    # The trap: a trained length of 262144, of which the server may keep 4096.
    ("ollama", {"POST /api/show": {**OLLAMA_SHOW, "parameters": ""}}, "qwen3:8b", None),
    ("ollama", {"GET /api/ps": {"models": [{"name": "m:latest", "context_length": 2048}]}}, "m", 2048),
    ("vllm", {}, "m", None),
    ("llamacpp", {}, "m", None),
]
HOSTILE: list[Any] = [
    b"",
    b"\xff\xfe",
    b"[" * 200_000,
    b'{"data": ' + b" " * (2 << 20) + b"}",
    b'{"data": [{"id": "m", "max_model_len": ' + b"9" * 5000 + b"}]}",
    [],
    {"data": {}},
    {"data": [1, None, []]},
    {"data": [{"id": "m", "max_model_len": "4096"}]},
    {"data": [{"id": "m", "max_model_len": True}]},
    {"data": [{"id": "m", "max_model_len": -5}]},
    {"data": [{"id": "m", "max_model_len": 10**30}]},
]


@pytest.mark.parametrize(("kind", "replies", "model", "known"), CASES)
async def test_the_server_tells_the_window(
    kind: ServerKind, replies: Replies, model: str, known: int | None
) -> None:
    assert await window(kind, replies, model) == known


@pytest.mark.parametrize("reply", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_reply_leaves_the_window_unknown(
    reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "supdist.handlers"):
        assert await window("vllm", {"GET /v1/models": reply}) is None
    assert "m at http://127.0.0.1" in caplog.text
    assert "does not say how long a prompt may be" in caplog.text


async def test_a_server_that_is_silent_or_away_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supdist.handlers.local_servers._SECONDS", 0.2)
    stop = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with LocalServerHandler("m", server="vllm", base_url=url) as handler:
            assert handler.window is None
        stop.set()
    async with LocalServerHandler("m", server="vllm", base_url=url) as handler:
        assert handler.window is None


async def test_a_given_window_is_kept_and_the_server_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k")
    async with serving({"GET /v1/models": VLLM}) as (root, asked):
        options: dict[str, Any] = {"server": "vllm", "base_url": f"{root}/v1", "api_key_env": "MY_KEY"}
        async with LocalServerHandler("m", window=999, **options) as handler:
            assert handler.window == 999
        assert asked == []
        handler = LocalServerHandler("m", **options)

        async def enter() -> int | None:
            async with handler:
                return handler.window

        assert await asyncio.gather(enter(), enter()) == [40960, 40960]
        assert await enter() == 40960
        assert asked == ["GET /v1/models with a key"]


async def test_no_redirect_is_followed() -> None:
    async with serving({"GET /v1/models": VLLM}) as (elsewhere, asked):
        assert await window("vllm", {"GET /v1/models": f"{elsewhere}/v1/models"}) is None
        assert asked == []


async def test_a_preset_asks_its_server() -> None:
    async with serving({"GET /props": LLAMACPP}) as (root, asked):
        spec = model_named("llamacpp/any", {"LLAMACPP_BASE_URL": root})
        async with spec.build("supervisor", Path(), 8) as handler:
            assert handler.window == 8192
    assert asked == ["GET /props"]


def test_an_unknown_kind_of_server_is_an_error() -> None:
    kind: Any = "tgi"
    with pytest.raises(ValueError, match="'tgi' is none of ollama, lmstudio, llamacpp, vllm"):
        LocalServerHandler("m", server=kind)
