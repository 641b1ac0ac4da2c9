"""Models of servers that people start themselves: the server is asked for the window of the model.

An OpenAI-compatible API has no field for it. Each server has one of its own, and only what bounds a request
counts: the length that a model was trained for may be far more than the server keeps.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

from anyio import to_thread

from .openai import OpenAIHandler
from .openai_http import http_library, load_library
from .openai_options import without_secrets

ServerKind = Literal["ollama", "lmstudio", "llamacpp", "vllm"]

_SECONDS = 5.0
_MOST_BYTES = 1 << 20
# What else is no window of a model.
_LEAST, _MOST = 128, 1 << 30
_NUM_CTX = re.compile(r"^\s*num_ctx\s+(\d{1,9})\s*$", re.MULTILINE)
_NO_KEY = "none"

_log = logging.getLogger("supdist.handlers")


class LocalServerHandler(OpenAIHandler):
    """A model of a local server. Without ``window``, the server is asked when the handler is entered.

    A server that does not answer in five seconds, or not in its documented form, leaves the window unknown.
    """

    def __init__(self, model: str, *, server: ServerKind, **options: Any) -> None:
        """Ask nothing yet. ``options`` are those of ``OpenAIHandler``.

        Raises:
            ValueError: as ``OpenAIHandler``, or there is no such kind of server.
        """
        if server not in get_args(ServerKind):
            raise ValueError(f"server: {server!r} is none of {', '.join(get_args(ServerKind))}")
        super().__init__(model, **options)
        self.server: ServerKind = server
        self.window: int | None = options.get("window")
        self._was_asked = self.window is not None

    async def __aenter__(self) -> LocalServerHandler:
        await super().__aenter__()
        if not self._was_asked:
            try:
                # Runs that begin together wait for one answer.
                async with self._loops.get().opening:
                    if not self._was_asked:
                        await self._learn_window()
            except BaseException:
                await self.__aexit__(None, None, None)
                raise
        return self

    async def _learn_window(self) -> None:
        url = self._urls[0]
        key, _ = self._key(url)
        try:
            async with asyncio.timeout(_SECONDS):
                self.window = await _ask(self.server, url, self.model, key)
        # Refused, too slow, no JSON, too large: the first request says what is wrong with the server.
        except Exception as error:
            _log.debug("window of %s: %r", self.model, error)
        self._was_asked = True
        if self.window is None:
            _log.warning(
                "%s at %s does not say how long a prompt may be; give it as `window` of the model",
                self.model,
                without_secrets(url),
            )


async def _ask(server: ServerKind, url: str, model: str, key: str) -> int | None:
    root = re.sub(r"/v1/?$", "", url)
    async with _Client(await to_thread.run_sync(load_library, abandon_on_cancel=True), key) as client:
        match server:
            case "vllm":
                found = _named(await client.get(f"{root}/v1/models"), "data", "id", model)
                return _number(found, "max_model_len")
            case "llamacpp":
                # Of one slot: -c divided by -np.
                settings = _mapping(await client.get(f"{root}/props")).get("default_generation_settings")
                return _number(_mapping(settings), "n_ctx")
            case "lmstudio":
                # max_context_length is the model's, and not that of the loaded one.
                found = _named(await client.get(f"{root}/api/v0/models"), "data", "id", model)
                return _number(found, "loaded_context_length")
            case "ollama":
                return await _of_ollama(client, root, model)


async def _of_ollama(client: _Client, root: str, model: str) -> int | None:
    # The loaded model's is certain. Its num_ctx is for the next load. Without one, the server's default
    # holds, which no field has. model_info's context_length is what the model was trained for.
    names = (model, f"{model}:latest")
    loaded = await client.get(f"{root}/api/ps")
    for name in names:
        if (window := _number(_named(loaded, "models", "name", name), "context_length")) is not None:
            return window
    shown = _mapping(await client.post(f"{root}/api/show", {"model": model}))
    found = _NUM_CTX.search(str(shown.get("parameters", ""))[:_MOST_BYTES])
    return None if found is None else _checked(int(found[1]))


class _Client:
    """An HTTP client that bounds a reply. It follows no redirect: the key is for this server."""

    def __init__(self, context: Any, key: str) -> None:
        headers = {} if key == _NO_KEY else {"Authorization": f"Bearer {key}"}
        self._client = http_library().AsyncClient(
            verify=context, timeout=_SECONDS, follow_redirects=False, headers=headers
        )

    async def get(self, url: str) -> object:
        return await self._send(self._client.build_request("GET", url))

    async def post(self, url: str, body: Mapping[str, str]) -> object:
        return await self._send(self._client.build_request("POST", url, json=body))

    async def _send(self, request: Any) -> object:
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code != 200:
                return None
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise ValueError(f"the reply has more than {_MOST_BYTES} bytes")
        finally:
            await response.aclose()
        # A reply of the largest size takes 5 ms.
        return json.loads(bytes(content))

    async def __aenter__(self) -> _Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _named(reply: object, listed: str, field: str, name: str) -> Mapping[str, Any]:
    found: object = _mapping(reply).get(listed)
    items = cast("list[object]", found) if isinstance(found, list) else []
    return next((each for each in map(_mapping, items) if each.get(field) == name), _mapping(None))


def _number(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    # True is an int, too.
    return _checked(value) if type(value) is int else None


def _checked(value: int) -> int | None:
    return value if _LEAST <= value <= _MOST else None
