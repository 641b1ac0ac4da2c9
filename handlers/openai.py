"""Any endpoint that speaks the OpenAI chat API: OpenAI, Together, a vLLM server, and so on.

The ``openai`` SDK is imported with the first request. Retries with back-off are the SDK's alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from .base import Completion, FinishReason, Message, ModelHandler, PerLoop, Usage
from .errors import ContextTooLong, HandlerError, Rejected, Unavailable

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError
    from openai.types.chat import ChatCompletion

OPENAI_URL = "https://api.openai.com/v1"
TOGETHER_URL = "https://api.together.xyz/v1"

_MAX_REPLY = 16 * 1024 * 1024
"""Bytes of one reply, unpacked; the longest answers are a hundredth of it."""

_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "refusal"}


class OpenAIHandler(ModelHandler):
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        api_key_env: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float = 120.0,
        max_retries: int = 2,
        max_concurrency: int = 32,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        """Nothing is read or opened yet.

        Args:
            model: its name at the endpoint.
            base_url: the endpoint; OpenAI's by default.
            api_key: the key. By default it is read, with the first request, from the environment:
                ``TOGETHER_API_KEY`` for Together (or, where that is not set, ``OPENAI_API_KEY``),
                ``OPENAI_API_KEY`` for any other endpoint.
            api_key_env: another variable to read it from.
            temperature: of sampling; the endpoint's default where None.
            max_tokens: at most so many tokens in an answer.
            timeout: seconds of silence that end an attempt; one that is not silent may take twice as long.
            max_retries: attempts after the first, for what may pass (429, 5xx, connection).
            max_concurrency: requests at once, of this handler in one event loop.
            extra_body: more fields for the request's body.
        """
        self.model = model
        self.base_url = base_url or OPENAI_URL
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self._extra_body = extra_body
        self._timeout = timeout
        self._max_retries = max_retries
        self.max_concurrency = max_concurrency
        self._clients = PerLoop[_LoopClient]()

    def __repr__(self) -> str:
        return f"OpenAIHandler({self.model!r}, base_url={self.base_url!r})"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """One request. See ``ModelHandler.chat``."""
        import openai

        async with self:
            held = self._clients.get()
            async with held.slots:
                request: dict[str, Any] = {
                    "model": self.model,
                    "messages": [{"role": m["role"], "content": m["content"]} for m in messages],
                    "extra_body": self._extra_body,
                }
                request |= {key: value for key, value in self._sampling.items() if value is not None}
                client = self._client(held)
                try:
                    reply = cast("ChatCompletion", await client.chat.completions.create(**request))
                except openai.OpenAIError as error:
                    raise translate(error) from error
                except UnicodeEncodeError as error:
                    raise Rejected("the messages or the key hold what cannot be sent as text") from error
                except (ValueError, RecursionError) as error:
                    # The SDK lets through what the JSON decoder says of a body that is none.
                    raise Unavailable("the endpoint sent a reply that is no JSON") from error
        return _completion(reply)

    async def __aenter__(self) -> OpenAIHandler:
        self._clients.enter(lambda: _LoopClient(asyncio.Semaphore(self.max_concurrency)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = self._clients.leave()
        if held is not None and held.client is not None:
            await held.client.close()

    def _client(self, held: _LoopClient) -> AsyncOpenAI:
        if held.client is None:
            from openai import AsyncOpenAI

            try:
                key = self._key()
                held.client = AsyncOpenAI(
                    api_key=key,
                    base_url=self.base_url,
                    timeout=self._timeout,
                    max_retries=self._max_retries,
                    # OPENAI_CUSTOM_HEADERS could hold the key of another endpoint; what stands here comes first.
                    default_headers={"Authorization": f"Bearer {key}"},
                    http_client=_bounded_client(self._timeout),
                )
            except HandlerError:
                raise
            except Exception as error:  # a base URL, a proxy or a certificate file that cannot be used
                raise Rejected(f"no client can be made for {self.base_url}: {error}") from error
        return held.client

    def _key(self) -> str:
        if self._api_key:
            return self._api_key.strip()
        host = urlsplit(self.base_url).hostname or ""
        if self._api_key_env:
            names = [self._api_key_env]
        elif f".{host}".endswith(".together.xyz"):
            names = ["TOGETHER_API_KEY", "OPENAI_API_KEY"]
        else:
            names = ["OPENAI_API_KEY"]
        for name in names:
            if key := os.environ.get(name, "").strip():  # a line's end would show the key in h11's complaint
                return key
        if self._api_key_env is None and not f".{host}".endswith((".together.xyz", ".openai.com")):
            return "none"  # an endpoint of one's own mostly wants no key, but the SDK wants one to send
        raise Rejected(f"no API key for {host}: set {' or '.join(names)}")


class _LoopClient:
    """The client of one event loop; a connection belongs to the loop that opened it."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self.slots = slots
        self.client: AsyncOpenAI | None = None


def _bounded_client(timeout: float) -> Any:
    """The SDK's HTTP client, with a bound on what one attempt reads and on how long it takes.

    The SDK's own timeout is for each read alone: a body that drips would be read for ever, and one that does
    not end would fill the memory. A silent endpoint runs into that timeout first, and is tried again.
    """
    from openai import DefaultAsyncHttpxClient

    class BoundedClient(DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            try:
                async with asyncio.timeout(2 * timeout):
                    response = await super().send(request, stream=True, **options)
                    try:
                        body = bytearray()
                        async for part in response.aiter_bytes():
                            body += part
                            if len(body) > _MAX_REPLY:
                                raise Unavailable(f"the endpoint's reply is longer than {_MAX_REPLY} bytes")
                    finally:
                        await response.aclose()
            except TimeoutError as error:
                raise Unavailable("the endpoint's reply did not end in time") from error
            headers = [
                item for item in response.headers.multi_items() if item[0].lower() != "content-encoding"
            ]
            whole = type(response)(response.status_code, headers=headers, content=bytes(body))
            whole.request = response.request
            return whole

    return BoundedClient()


def translate(error: OpenAIError) -> HandlerError:
    """The SDK's exception as one of ours; told apart by class and by the API's error code."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _translate_status(error)
    if isinstance(error, openai.APIConnectionError):
        kind = "timed out" if isinstance(error, openai.APITimeoutError) else "failed"
        return Unavailable(f"the connection to the endpoint {kind}")
    if isinstance(error, openai.APIResponseValidationError):
        return Unavailable("the endpoint sent a reply that cannot be understood")
    return Rejected(f"{type(error).__name__}: {error}")


def _translate_status(error: Any) -> HandlerError:
    status, code = int(error.status_code), error.code
    message = f"the endpoint answered {status}: {error.message}"
    if code == "context_length_exceeded":
        return ContextTooLong(message)
    if code == "insufficient_quota":
        return Rejected(message)
    if status in (408, 409, 429) or status >= 500:
        return Unavailable(message, retry_after=_seconds(error.response.headers.get("retry-after")))
    return Rejected(message)


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None  # the other form is a date; whoever waits has a default


def _completion(reply: ChatCompletion) -> Completion:
    # The SDK builds its objects from whatever JSON came; an endpoint may have left out anything.
    try:
        choice = reply.choices[0]
        text = choice.message.content or choice.message.refusal or ""
        refused = not choice.message.content and bool(choice.message.refusal)
        finish: FinishReason = "refusal" if refused else _FINISH.get(choice.finish_reason, "other")
        used = (reply.usage.prompt_tokens or 0, reply.usage.completion_tokens or 0) if reply.usage else (0, 0)
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise Unavailable("the endpoint sent a reply without a completion") from error
    if not isinstance(text, str) or not all(type(count) is int and 0 <= count < 2**53 for count in used):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Unavailable("the endpoint sent a completion of the wrong type")
    return Completion(text, Usage(*used, 1), finish)
