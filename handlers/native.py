"""What handlers of a provider's own SDK share: the HTTP client, the key, attempts and their errors."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from anyio import to_thread

from .base import Completion, Message, ModelHandler, PerLoop, Price
from .conversations import Conversation, alternate
from .errors import HandlerError, NoAccess, Rejected, Unavailable, Unreachable
from .openai_bodies import CodedContents, is_long
from .openai_http import bounded_client, load_library
from .openai_parts import token_count
from .openai_replies import BrokenStream, system_words, without_key
from .retries import NOT_MADE, Retry, reason_of, report_retry
from .slices import in_slices

if TYPE_CHECKING:
    from ssl import SSLContext

# Seconds before the next attempt, if the provider names none; doubled each time.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0

# Seconds. A provider that asks for a longer wait gets no further attempt.
_LONGEST_ASKED = 60.0

# The SDK must send a key. A proxy may need none.
_NO_KEY = "none"


class TryAgain(Unavailable):
    """An attempt failed, and another may succeed."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider and its SDK.

    Attributes:
        keys: variables that may hold the key, in order.
        package: the module of the SDK.
        extra: what installs it.
    """

    name: str
    url: str
    keys: tuple[str, ...]
    package: str
    extra: str


class NativeHandler(ModelHandler):
    """A model of one provider, through its SDK. Only this class waits and tries again."""

    provider: Provider

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        api_key_env: str | Mapping[str, str | None] | None,
        timeout: float,
        max_retries: int,
        max_concurrency: int,
        window: int | None,
        price: Price | None,
    ) -> None:
        self.model = model
        self._url = base_url or self.provider.url
        self.base_url = re.sub(r"//[^/]*@", "//", self._url).partition("?")[0]
        self.window = window
        self.price = price
        self.max_concurrency = max_concurrency
        self._api_key = api_key
        self._api_key_env = api_key_env
        self._timeout = timeout
        self._max_retries = max_retries
        self._certificates: SSLContext | None = None
        self._loops = PerLoop[_LoopState]()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, base_url={self.base_url!r})"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Send one request."""
        return await self._answer(messages, None)

    async def chat_stream(self, messages: Sequence[Message], on_text: Callable[[str], None]) -> Completion:
        """Send one request and stream the answer."""
        return await self._answer(messages, on_text)

    @abstractmethod
    def _make_client(self, http: Any, key: str) -> Any:
        """Return the SDK's client."""

    @abstractmethod
    def _request(self, conversation: Conversation, sizes: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of the SDK's call; ``sizes`` are the characters of system and turns."""

    @abstractmethod
    async def _ask(
        self, client: Any, request: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> Completion:
        """Make one attempt."""

    @abstractmethod
    def _translate(self, error: Exception, key: str) -> HandlerError | None:
        """Return an exception of the SDK as one of ours; None if it is another's."""

    async def __aenter__(self) -> NativeHandler:
        self._loops.enter(lambda: _LoopState(self.max_concurrency))
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
                    queued = time.monotonic() - start
                    if shared.client is None:
                        await self._open(shared)
                    try:
                        request = await self._coded_request(call, messages)
                    except UnicodeEncodeError as error:
                        raise Rejected(f"{self._who()}: the messages cannot be encoded as text") from error
                    completion = await self._attempts(shared, call, request, on_text)
        finally:
            _call.reset(before)
        return replace(completion, retries=call.attempts - 1, queued=queued)

    async def _coded_request(self, call: _Call, messages: Sequence[Message]) -> dict[str, Any]:
        talk = alternate(messages)
        sizes = [len(talk.system), *(len(turn["content"]) for turn in talk.turns)]
        if is_long(talk.turns) or is_long([{"role": "system", "content": talk.system}]):
            call.contents = CodedContents()
            head: list[Message] = [{"role": "system", "content": talk.system}] if talk.system else []
            coded = await in_slices(call.contents.code([*head, *talk.turns]))
            talk = Conversation(coded[0]["content"] if head else "", coded[len(head) :])
        else:
            # Google's SDK would send half a surrogate pair.
            _ = [turn["content"].encode() for turn in talk.turns], talk.system.encode()
        return self._request(talk, sizes)

    async def _attempts(
        self, shared: _LoopState, call: _Call, request: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> Completion:
        wait = _FIRST_WAIT
        for left in range(self._max_retries, -1, -1):
            try:
                return await self._attempt(shared, request, on_text)
            except (TryAgain, BrokenStream, Unreachable) as error:
                asked = error.retry_after
                if not left or (asked is not None and asked > _LONGEST_ASKED):
                    raise
                # Not all at the same time, after a provider's pause.
                seconds = wait * random.uniform(0.75, 1) if asked is None else asked  # noqa: S311 - no secret
                report_retry(Retry(reason_of(error), seconds, call.attempts + 1, call.attempts + left))
                await asyncio.sleep(seconds)
                wait = min(2 * wait, _LONGEST_WAIT)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(
        self, shared: _LoopState, request: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> Completion:
        key = shared.key
        try:
            return await self._ask(shared.client, request, on_text)
        except HandlerError:
            raise
        except UnicodeEncodeError as error:
            raise Rejected(f"{self._who()}: the key cannot be encoded as text") from error
        except Exception as error:
            if (ours := self._translate(error, key) or self._other_error(error)) is None:
                raise
            raise ours from error
        finally:
            # The SDK may leave it open when the caller is cancelled, or a reply is malformed.
            if (body := _call.get().body) is not None:
                await body.aclose()

    def _other_error(self, error: Exception) -> HandlerError | None:
        library_error = _connection_error(error)
        if library_error is not None:
            return library_error(self._who())
        # Decoders of JSON, and the SDKs' checks of shape: pydantic's ValidationError is a ValueError.
        if isinstance(error, ValueError | RecursionError | AttributeError | TypeError | LookupError):
            return Unavailable(f"{self._who()} sent a reply that cannot be understood")
        return None

    def _who(self) -> str:
        return f"{self.model} at {self.base_url}"

    async def _open(self, shared: _LoopState) -> None:
        # Calls that start together must not make two clients.
        async with shared.opening:
            if shared.client is not None:
                return
            key = self._key()
            try:
                if self._certificates is None:
                    self._certificates = await to_thread.run_sync(self._load, abandon_on_cancel=True)
                if shared.http is None:
                    shared.http = bounded_client(
                        self._certificates,
                        self._timeout,
                        self.max_concurrency,
                        _admit,
                        # At a redirect to another host, the library drops ``Authorization`` alone.
                        follow_redirects=False,
                        client_class=self._client_class(),
                        on_stream=_hold,
                    )
                shared.key = key
                shared.client = self._make_client(shared.http, key)
            except ModuleNotFoundError as error:
                raise Rejected(
                    f"{self._who()} needs the package {self.provider.package}, which is not installed:"
                    f" pip install 'supdist-engine[{self.provider.extra}]'"
                ) from error
            # For example, an invalid proxy, certificate file or URL.
            except Exception as error:
                raise Rejected(
                    f"no client can be made for {self.base_url}: {without_key(key, error)}"
                ) from error

    def _load(self) -> SSLContext:
        __import__(self.provider.package)
        return load_library()

    def _client_class(self) -> Any:
        """Return the HTTP client's class that the SDK takes; None for the one of OpenAI's."""
        return None

    def _key(self) -> str:
        if self._api_key:
            return self._api_key.strip()
        named = self._api_key_env
        if isinstance(named, Mapping):
            # Decided for each endpoint, by the permissions of a file.
            named = named.get(self._url)
            if named is None:
                return _NO_KEY
        names = (named,) if named else self.provider.keys
        for name in names:
            # With a line end in it, h11's error would show the key.
            if key := os.environ.get(name, "").strip():
                return key
        raise NoAccess(f"no API key for {self._who()}: set {' or '.join(names)}")


class _LoopState:
    """What the users of one event loop share."""

    def __init__(self, max_concurrency: int) -> None:
        self.slots = asyncio.Semaphore(max_concurrency)
        self.opening = asyncio.Lock()
        self.http: Any = None
        self.client: Any = None
        self.key = ""


@dataclass(slots=True)
class _Call:
    """One call over all its attempts."""

    attempts: int = 0
    contents: CodedContents | None = None
    body: Any = None


# The HTTP client calls ``_admit`` in the caller's context, without an argument for the call.
_call: ContextVar[_Call] = ContextVar("native call")


async def _admit() -> CodedContents | None:
    call = _call.get()
    call.attempts += 1
    return call.contents


def _connection_error(error: BaseException) -> Callable[[str], HandlerError] | None:
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("httpx")]
    if "HTTPError" not in names and "InvalidURL" not in names:
        return None
    timed_out = "TimeoutException" in names
    what = f"the connection {'timed out' if timed_out else 'failed'}"
    if any(name in names for name in NOT_MADE):
        return lambda who: Unreachable(f"{who}: {what}: {system_words(error)}")
    if "RequestError" not in names:
        return lambda who: Rejected(f"{who}: {system_words(error)}")
    return lambda who: TryAgain(
        f"{who}: {what}: {system_words(error) or names[0]}", reason="timeout" if timed_out else None
    )


def connection_failure(error: BaseException | None, who: str) -> HandlerError | None:
    """Return the HTTP library's exception as one of ours; None if it is another's."""
    found = None if error is None else _connection_error(error)
    return None if found is None else found(who)


def whole_count(value: object) -> int:
    """Return a number of tokens; 0 for what is none."""
    return token_count(value) or 0


def text_of(value: object) -> str:
    """Return a text of a reply; empty if there is none.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text belongs")
    return value


def field_of(value: object, *names: str) -> Any:
    """Return a nested field of a decoded reply; None if there is none."""
    for name in names:
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, object]", value).get(name)
    return value


def _hold(body: Any) -> None:
    _call.get().body = body
