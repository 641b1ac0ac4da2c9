"""A model behind an OpenAI-compatible API. handlers/README.md describes retries."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from anyio import to_thread

from .base import Completion, Message, ModelHandler, PerLoop, Price, without_thoughts
from .endpoints import Endpoints
from .errors import HandlerError, NoAccess, Rejected, Unavailable
from .openai_bodies import CodedContents, is_long, utf8_bytes
from .openai_errors import Asked, client_error, translate
from .openai_http import WholeReply, bounded_client, http_library, load_library, whole_reply
from .openai_options import checked_body, checked_headers, endpoint_urls, is_at, without_secrets
from .openai_replies import BrokenStream, CompletionBuilder, parse_reply
from .openai_retries import reporting_client, retry_reason
from .rates import RateLimit, Use, admit
from .retries import Retry, RetryReason, reason_of, report_retry
from .slices import Steps, in_slices
from .thoughts import MessageStream

if TYPE_CHECKING:
    from ssl import SSLContext

    from openai import AsyncOpenAI


# Bytes of English text in a token, for the estimate before a request.
_TOKEN_BYTES = 4

# A private endpoint mostly needs no key, but the SDK must send one.
_NO_KEY = "none"
_HOW_TO_GIVE_ONE = "beside BASE_URL set OPENAI_API_KEY; in a file, name its variable in api_key_env"


class OpenAIHandler(ModelHandler):
    """A model behind one OpenAI-compatible endpoint, or several that share the load.

    handlers/README.md documents the arguments.

    Raises:
        ValueError: there is no endpoint, or a header or field cannot be set.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        api_key_env: str | Mapping[str, str | None] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float = 120.0,
        max_retries: int = 2,
        max_concurrency: int = 32,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        window: int | None = None,
        price: Price | None = None,
    ) -> None:
        self._urls = endpoint_urls(base_url)
        self._extra_body = checked_body(extra_body or {})
        self._extra_headers = checked_headers(extra_headers or {})
        self.model = model
        self.base_url = without_secrets(self._urls[0])
        self.max_tokens = self._extra_body.get(
            "max_completion_tokens", self._extra_body.get("max_tokens", max_tokens)
        )
        self.samples = self._extra_body.get("temperature", temperature) != 0
        self.window = window
        self.price = price
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self._timeout = timeout
        self._max_retries = max_retries
        self.max_concurrency = max_concurrency
        limited = requests_per_minute is not None or tokens_per_minute is not None
        self._limit = RateLimit(requests_per_minute, tokens_per_minute) if limited else None
        self._certificates: SSLContext | None = None
        self._loops = PerLoop[_LoopState]()

    def __repr__(self) -> str:
        return f"OpenAIHandler({self.model!r}, base_url={self.base_url!r})"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Send one request."""
        return await self._answer(messages, None)

    async def chat_stream(self, messages: Sequence[Message], on_text: Callable[[str], None]) -> Completion:
        """Send one request and stream the answer."""
        return await self._answer(messages, on_text)

    def identity(self) -> dict[str, Any]:
        """See ``ModelHandler.identity``. It holds no secrets."""
        urls = sorted(map(without_secrets, self._urls))
        own = {"handler": "openai", "model": self.model, "base_url": urls, "extra_body": self._extra_body}
        return own | self._sampling

    async def __aenter__(self) -> OpenAIHandler:
        self._loops.enter(lambda: _LoopState(self._urls, self.max_concurrency))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shared = self._loops.leave()
        if shared is not None and shared.http is not None:
            await shared.http.aclose()

    async def _answer(self, messages: Sequence[Message], on_text: Callable[[str], None] | None) -> Completion:
        call, start = _Call(), time.monotonic()
        before = _call.set(call)
        try:
            async with self:
                shared = self._loops.get()
                async with shared.slots:
                    call.queued = time.monotonic() - start
                    if shared.http is None:
                        await self._open(shared)
                    if self._limit is not None:
                        call.tokens = await in_slices(_estimate(messages)) + (self.max_tokens or 0)
                    if is_long(messages):
                        call.contents = CodedContents()
                        messages = await in_slices(call.contents.code(messages))
                    completion = await self._try_endpoints(shared, call, messages, on_text)
        finally:
            _call.reset(before)
        used = completion.usage.input_tokens + completion.usage.output_tokens
        if self._limit is not None and call.use is not None and used:
            self._limit.correct(call.use, used)
        return replace(completion, retries=call.attempts - 1, queued=call.queued)

    # Each ready endpoint is tried once, the last one with the SDK's retries. One call makes at most
    # ``max_retries`` + number of endpoints attempts, of 2 * timeout each.
    async def _try_endpoints(
        self,
        shared: _LoopState,
        call: _Call,
        messages: Sequence[Message],
        on_text: Callable[[str], None] | None,
    ) -> Completion:
        endpoint, last = shared.endpoints.choose(())
        tried = [endpoint]
        while True:
            left = self._max_retries + len(tried) - call.attempts
            client = self._client(shared, endpoint.url, left - 1 if last else 0)
            request = self._request(endpoint.url, messages)
            try:
                with self._named(endpoint.url), shared.endpoints.track_request(endpoint):
                    asked = self._asked(endpoint.url)
                    if on_text is None:
                        return await _request_whole(client, request, asked)
                    return await _request_stream(client, request, on_text, asked)
            except Unavailable as error:
                spent = call.attempts >= self._max_retries + len(tried)
                if last and (spent or not isinstance(error, BrokenStream)):
                    raise
                reason = reason_of(error)
            if not last:
                endpoint, last = shared.endpoints.choose(tried)
                tried.append(endpoint)
            report_retry(Retry(reason, 0.0, call.attempts + 1, self._max_retries + len(tried)))

    @contextmanager
    def _named(self, url: str) -> Generator[None]:
        """Let each error name the model and the endpoint."""
        try:
            yield
        except HandlerError as error:
            error.args = (f"the model {self.model} at {without_secrets(url)}: {error}",)
            raise

    def _request(self, url: str, messages: Sequence[Message]) -> dict[str, Any]:
        limit = "max_completion_tokens" if is_at(url, "openai.com") else "max_tokens"
        sampling = {"temperature": self._sampling["temperature"], limit: self._sampling["max_tokens"]}
        return {
            "model": self.model,
            "messages": [{"role": m["role"], "content": m["content"]} for m in messages],
            "extra_body": self._extra_body,
            **{key: value for key, value in sampling.items() if value is not None},
        }

    async def _open(self, shared: _LoopState) -> None:
        # Calls that start together must not make two clients.
        async with shared.opening:
            if shared.http is not None:
                return
            try:
                if self._certificates is None:
                    self._certificates = await to_thread.run_sync(load_library, abandon_on_cancel=True)
                shared.http = bounded_client(
                    self._certificates,
                    self._timeout,
                    self.max_concurrency,
                    partial(self._admit, shared.turn),
                    follow_redirects=not self._extra_headers,
                    on_failure=_note_failure,
                )
            # For example, an invalid proxy or certificate file.
            except Exception as error:
                raise client_error(error) from error

    async def _admit(self, turn: asyncio.Lock) -> CodedContents | None:
        call = _call.get()
        if self._limit is not None:
            start = time.monotonic()
            call.use = Use(call.tokens)
            await admit(self._limit, call.use, turn)
            call.queued += time.monotonic() - start
        call.attempts += 1
        return call.contents

    def _client(self, shared: _LoopState, url: str, retries: int) -> AsyncOpenAI:
        if (url, retries) not in shared.clients:
            try:
                key, _ = self._key(url)
                client = reporting_client(_report_wait)(
                    api_key=key,
                    base_url=url,
                    timeout=shared.http.timeout,
                    max_retries=retries,
                    # OPENAI_CUSTOM_HEADERS could hold the key of another endpoint; these headers win.
                    default_headers={"Authorization": f"Bearer {key}"} | self._extra_headers,
                    http_client=shared.http,
                )
            except HandlerError:
                raise
            # For example, an invalid base URL.
            except Exception as error:
                raise Rejected(
                    f"no client can be made for {self.model} at {without_secrets(url)}: {error}"
                ) from error
            if not is_at(url, "openai.com"):
                # The SDK reads these from the environment; they are meant for OpenAI alone.
                client.organization = client.project = None
            shared.clients[url, retries] = client
        return shared.clients[url, retries]

    def _asked(self, url: str) -> Asked:
        key, source = self._key(url)
        return Asked(without_secrets(url), key, source, self._timeout)

    def _key(self, url: str) -> tuple[str, str]:
        """Return the key, and where it is from."""
        if self._api_key and self._api_key.strip() != _NO_KEY:
            return self._api_key.strip(), "to the key of the argument api_key"
        named = self._api_key_env if isinstance(self._api_key_env, str | None) else self._api_key_env.get(url)
        if named:
            names = [named]
        elif isinstance(self._api_key_env, Mapping):
            return _NO_KEY, f"without a key ({_HOW_TO_GIVE_ONE})"
        elif is_at(url, "together.xyz"):
            names = ["TOGETHER_API_KEY", "OPENAI_API_KEY"]
        else:
            names = ["OPENAI_API_KEY"]
        for name in () if self._api_key else names:
            # With a line end in it, h11's error would show the key.
            if key := os.environ.get(name, "").strip():
                return key, f"to the key of {name}"
        wanted = named is not None or is_at(url, "together.xyz", "openai.com")
        if not wanted or self._api_key or "Authorization" in self._extra_headers:
            return _NO_KEY, f"without a key (set {' or '.join(names)}, or name its variable in api_key_env)"
        raise NoAccess(f"no API key for {self.model} at {without_secrets(url)}: set {' or '.join(names)}")


class _LoopState:
    """What the users of one event loop share."""

    def __init__(self, urls: Sequence[str], max_concurrency: int) -> None:
        self.slots = asyncio.Semaphore(max_concurrency)
        self.turn = asyncio.Lock()
        self.opening = asyncio.Lock()
        self.endpoints = Endpoints(urls)
        self.http: Any = None
        self.clients: dict[tuple[str, int], AsyncOpenAI] = {}


@dataclass(slots=True)
class _Call:
    """One call over all its attempts."""

    tokens: int = 0
    attempts: int = 0
    queued: float = 0.0
    use: Use | None = None
    contents: CodedContents | None = None
    failure: RetryReason = "unavailable"


# The SDK calls ``_admit`` in the caller's context, without an argument for the call.
_call: ContextVar[_Call] = ContextVar("call")


def _note_failure(failure: int | Exception) -> None:
    _call.get().failure = retry_reason(failure)


def _report_wait(seconds: float, retries_left: int) -> None:
    call = _call.get()
    report_retry(Retry(call.failure, seconds, call.attempts + 1, call.attempts + retries_left))


async def _request_whole(client: AsyncOpenAI, request: dict[str, Any], asked: Asked) -> Completion:
    with _translated(asked):
        reply = cast("object", await client.chat.completions.create(**request))
    return await without_thoughts(parse_reply(reply, asked))


async def _request_stream(
    client: AsyncOpenAI, request: dict[str, Any], on_text: Callable[[str], None], asked: Asked
) -> Completion:
    answer, message = CompletionBuilder(asked), MessageStream(on_text)
    async with aclosing(_chunks(client, request, asked)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, WholeReply):
                whole = parse_reply(chunk.reply, asked)
                message.add(whole.text)
                message.finish()
                return await without_thoughts(whole)
            if text := answer.add_chunk(chunk):
                message.add(text)
    message.finish()
    return await without_thoughts(answer.completion(streamed=True))


async def _chunks(client: AsyncOpenAI, request: dict[str, Any], asked: Asked) -> AsyncGenerator[Any]:
    import openai

    # An older SDK lets the exceptions of the HTTP library through, once the stream has begun.
    broken = (openai.APIConnectionError, http_library().RequestError)
    with _translated(asked):
        stream: Any = await client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        try:
            if (whole := await whole_reply(stream.response)) is not None:
                yield whole
                return
            async for chunk in stream:
                yield chunk
        except broken as error:
            raise BrokenStream("the endpoint's stream broke off") from error
        finally:
            await stream.close()


@contextmanager
def _translated(asked: Asked) -> Generator[None]:
    import openai

    try:
        yield
    except openai.OpenAIError as error:
        raise translate(error, asked.key, asked) from error
    except UnicodeEncodeError as error:
        raise Rejected("the messages or the key cannot be encoded as text") from error
    except (ValueError, RecursionError) as error:
        # The SDK passes on the JSON decoder's exception.
        raise Unavailable("the endpoint sent a reply that is not JSON") from error


def _estimate(messages: Sequence[Message]) -> Steps[int]:
    size = yield from utf8_bytes(messages)
    return size // _TOKEN_BYTES + len(messages) * _TOKEN_BYTES
