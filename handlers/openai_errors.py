"""Turn what an endpoint or the SDK reports into our errors, with words that say what to do."""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .errors import (
    ContextTooLong,
    HandlerError,
    NoAccess,
    Rejected,
    Unavailable,
    UnavailableReason,
    Unreachable,
)
from .openai_http import ERROR_EXTENSION, IN_REPLY_EXTENSION, http_library
from .openai_parts import field, items

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, OpenAIError

# Characters: a shorter key is no secret, and may be a word.
_SHORTEST_KEY = 8

# Characters of an endpoint's words in a message; of a page or a proxy's text.
_MAX_MESSAGE = 2000
_MAX_PAGE = 300
_MAX_ITEMS = 8
_MAX_PAGE_READ = 4096

# Fields that mean that the messages are too long. Prose is not read, since it changes.
_TOO_LONG_CODE = "context_length_exceeded"  # OpenAI, and those that copy its codes
_TOO_LONG_TYPE = "exceed_context_size_error"  # llama.cpp's server
_TOO_LONG_PARAMS = ("input_tokens", "input_text")  # vLLM's server: BadRequestError for one of these

_REASONS: dict[int, UnavailableReason] = {408: "timeout", 429: "rate_limit", 504: "timeout"}

# Wrong key, no credit, no such model. Not 403: some endpoints send it for a single text that they flag.
_NO_ACCESS = (401, 402, 404)
# What the codes and types of an error say, with any status.
_NO_ACCESS_CODES = frozenset({
    "insufficient_quota", "insufficient_credits", "insufficient_balance", "payment_required",
    "billing_not_active", "billing_hard_limit_reached", "invalid_api_key", "authentication_error",
    "invalid_authentication", "permission_error", "permission_denied", "account_deactivated",
    "model_not_found",
})  # fmt: skip
# Where no status says it.
_STATUS_OF = {
    **dict.fromkeys(("invalid_request_error", "bad_request", "BadRequestError", "invalid_prompt"), 400),
    **dict.fromkeys(("unauthorized", "AuthenticationError"), 401),
    **dict.fromkeys(("NotFoundError", "not_found_error"), 404),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "rate_limited", "too_many_requests"), 429),
}

_TAG = re.compile(r"<(?:script|style)\b[^<]{0,2000}</(?:script|style)>|<[^<>]{0,500}>", re.IGNORECASE)
_VERSION_IN_PATH = re.compile(r"/v\d+(?:alpha|beta)?\d*(?:/|$)")


class Asked(NamedTuple):
    """What a request was sent with.

    Attributes:
        url: the endpoint, without secrets.
        key: it stands in no message.
        key_source: with which key, in words, as in "to the key of OPENAI_API_KEY".
        timeout: seconds.
    """

    url: str = ""
    key: str = ""
    key_source: str = ""
    timeout: float | None = None


class Said(NamedTuple):
    """What the body of an error says. ``has_form`` if it is an error of an API, and no page."""

    message: str = ""
    code: str = ""
    kind: str = ""
    param: str = ""
    retry_after: float | None = None
    has_form: bool = False


def translate(error: OpenAIError, key: str = "", asked: Asked | None = None) -> HandlerError:
    """Return the SDK's exception as one of ours, without the key."""
    import openai

    asked = asked or Asked(key=key)
    if isinstance(error, openai.APIStatusError):
        if (ours := error.response.extensions.get(ERROR_EXTENSION)) is not None:
            return ours
        return _status_error(error, asked)
    if isinstance(error, openai.APIConnectionError):
        return _connection_error(error, isinstance(error, openai.APITimeoutError), asked)
    if isinstance(error, openai.APIResponseValidationError):
        return Unavailable("the endpoint sent a reply that cannot be understood")
    # An error event in a stream: the status was 200.
    if isinstance(error, openai.APIError):
        said = read_error(error.body if error.body else error.message)
        # A test may set a field of the exception alone.
        said = said._replace(code=said.code or _word(error.code), kind=said.kind or _word(error.type))
        return error_in_reply(said, asked, "the endpoint broke off its stream")
    return Rejected(f"{type(error).__name__}: {without_key(asked.key, error)}")


def _status_error(error: APIStatusError, asked: Asked) -> HandlerError:
    status, response = int(error.status_code), error.response
    said = read_error(error.body)
    code, kind = said.code or _word(error.code), said.kind or _word(error.type)
    said = said._replace(code=code, kind=kind, message=said.message or error.message)
    where = " in a reply with status 200" if response.extensions.get(IN_REPLY_EXTENSION) else ""
    key = f" {asked.key_source}" if status in (401, 403) and asked.key_source else ""
    words = f"the endpoint answered {status}{key}{where}: {without_key(asked.key, said.message)}"
    if (target := _redirect_of(response)) and 300 <= status < 400:
        return Rejected(f"{words}. It redirects to {target}; name that address as base_url")
    if asked.url and (moved := _moved_to(response, asked.url)):
        words += f". It was redirected to {moved}; name that address as base_url"
    return kind_of_error(status, said, words + _advice(status, said, asked), response.headers)


def error_in_reply(said: Said, asked: Asked, what: str) -> HandlerError:
    """Return the error that a reply with status 200 holds."""
    words = f"{what}: {without_key(asked.key, said.message) or 'it does not say why'}"
    status = _status_in(said)
    return kind_of_error(status, said, words + _advice(status, said, asked), {})


def kind_of_error(status: int, said: Said, message: str, headers: Mapping[str, str]) -> HandlerError:
    """Return an error of the kind that a status and the fields of a body mean."""
    # SGLang and older vLLM say it only in prose: give the handler a ``window`` there.
    is_long_400 = status == 400 and said.param in _TOO_LONG_PARAMS
    if said.code == _TOO_LONG_CODE or said.kind == _TOO_LONG_TYPE or status == 413 or is_long_400:
        return ContextTooLong(message)
    if {said.code, said.kind} & _NO_ACCESS_CODES or status in _NO_ACCESS:
        return NoAccess(message)
    if status in (408, 409, 429) or status >= 500:
        wait = retry_after(headers)
        wait = said.retry_after if wait is None else wait
        return Unavailable(message, retry_after=wait, reason=_REASONS.get(status))
    return Rejected(message)


def _status_in(said: Said) -> int:
    for name in (said.code, said.kind):
        # vLLM and OpenRouter put the status into ``code``.
        if name.isascii() and name.isdigit() and len(name) == 3 and name[0] in "45":
            return int(name)
        if name in _STATUS_OF:
            return _STATUS_OF[name]
    return 500


def _advice(status: int, said: Said, asked: Asked) -> str:
    if not asked.url:
        return ""
    is_on_model = "model" in {said.param, said.code} | set(said.message.lower().replace("`", " ").split())
    is_lost = status in (404, 405) or not said.has_form or "endpoint" in said.message.lower()
    has_version = _VERSION_IN_PATH.search(urlsplit(asked.url).path)
    if is_lost and not has_version and not is_on_model and said.code != "model_not_found":
        return f". base_url has no /v1: try {asked.url.rstrip('/')}/v1"
    if status == 404 and not said.has_form:
        return ". Nothing answers at this path: check base_url"
    return ""


# --- the body of an error -------------------------------------------------------------------------


def read_error(body: Any, depth: int = 0) -> Said:
    """Return what the body of an error says, in any of the usual forms."""
    if isinstance(body, str):
        return Said(_plain(body))
    if isinstance(body, list):
        # Gemini's endpoint sends a list; FastAPI's lists say what is wrong with the request.
        each_said = [
            read_error(each, depth + 1) for each in cast("list[Any]", body)[:_MAX_ITEMS] if depth < 4
        ]
        if not each_said:
            return Said()
        return each_said[0]._replace(
            message="; ".join(filter(None, (each.message for each in each_said)))[:_MAX_MESSAGE]
        )
    if not isinstance(body, dict) or depth >= 4:
        return Said()
    inner = body.get("error") or body.get("errors")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # JSON of any shape
    if inner:
        said = read_error(inner, depth + 1)
        own = _fields(body)
        return said._replace(
            message=said.message or own.message,
            code=said.code or own.code,
            kind=said.kind or own.kind,
            param=said.param or own.param,
            has_form=said.has_form or isinstance(inner, dict),
        )
    return _fields(body)


def _fields(body: Any) -> Said:
    message = ""
    for name in ("message", "detail", "msg", "error_description", "title"):
        found = field(body, name)
        if found and not message:
            message = _plain(found) if isinstance(found, str) else read_error(found, 2).message
    metadata = field(body, "metadata")
    # What the provider behind a gateway says.
    raw = field(metadata, "raw")
    if isinstance(raw, str) and raw and raw not in message:
        message = f"{message}: {_plain(raw)}" if message else _plain(raw)
    code, kind, param = (_word(field(body, name)) for name in ("code", "type", "param"))
    wait = _seconds(field(body, "retry_after"))
    wait = _seconds(field(metadata, "retry_after")) if wait is None else wait
    has_form = bool(field(body, "message")) and bool(code or kind or param)
    return Said(message[:_MAX_MESSAGE], code, kind, param, wait, has_form)


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value[:100]
    return str(value) if type(value) is int and 0 <= value < 10**6 else ""


def _seconds(value: Any) -> float | None:
    if type(value) not in (int, float) or not math.isfinite(value):
        return None
    return float(min(max(0.0, value), 86_400.0))


def _plain(text: str) -> str:
    if text.lstrip()[:1] in "{[":
        try:
            inner = read_error(json.loads(text[: 16 * _MAX_MESSAGE]), 2).message
        except (ValueError, RecursionError):
            inner = ""
        if inner:
            return inner
    if re.search(r"<(?:!doctype|html|head|body|title|h1|p|center)\b", text[:_MAX_PAGE_READ], re.IGNORECASE):
        words = " ".join(html.unescape(_TAG.sub(" ", text[:_MAX_PAGE_READ])).split())
        return f"a page: {words[:_MAX_PAGE]}"
    return text[:_MAX_MESSAGE].strip()


def without_key(key: str, words: object) -> str:
    """Return an endpoint's words, cut, and without the key."""
    text = str(words)
    return (text.replace(key, "***") if len(key) >= _SHORTEST_KEY else text)[:_MAX_MESSAGE]


# --- connections ----------------------------------------------------------------------------------


def _connection_error(error: APIConnectionError, timed_out: bool, asked: Asked) -> Unavailable:
    library, cause = http_library(), error.__cause__
    message = f"the connection to the endpoint {'timed out' if timed_out else 'failed'}"
    not_made = (library.ConnectError, library.ConnectTimeout, library.ProxyError, library.UnsupportedProtocol)
    # Otherwise it broke off later, and the endpoint may have read the request.
    if cause is None or not isinstance(cause, not_made):
        if timed_out and asked.timeout:
            message += f" after {asked.timeout:g} s without a byte. Raise `timeout` for a slow model"
        elif why := without_key(asked.key, system_words(cause) if cause else ""):
            message += f": {why}"
        return Unavailable(message, reason="timeout" if timed_out else None)
    url, why = error.request.url, system_words(cause)
    # Without a scheme there is no host, and no login either.
    where = url.netloc.decode() or str(url).partition("?")[0]
    if isinstance(cause, library.UnsupportedProtocol):
        where = asked.url or where
        why = f"{why.rstrip('.')}. Write base_url as http://{where}"
    return Unreachable(f"{message}: {where}: {why or type(cause).__name__}{_proxy_words(str(url))}")


def _proxy_words(url: str) -> str:
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    name = re.sub(r"//[^/]*@", "//", proxy).partition("?")[0]
    variable = f"{parts.scheme if parts.scheme in proxies else 'all'}_proxy".upper()
    return (
        f". The request goes through the proxy {name} ({variable}): start that, unset the variable, or add"
        f" {parts.hostname} to NO_PROXY"
    )


def client_error(error: Exception) -> Rejected:
    """Return why no HTTP client can be made: mostly, a variable names a file that is not there."""
    hints: list[str] = []
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            state = "names" if os.path.exists(path) else "names a missing file:"
            hints.append(f"{name} {state} {path}")
    hint = f" ({'; '.join(hints)}. Correct it, or unset it)" if hints else ""
    return Rejected(f"no HTTP client can be made: {error}{hint}")


def system_words(error: BaseException) -> str:
    """Return why a connection failed, in the system's words."""
    # The HTTP libraries say "All connection attempts failed" for what the system said.
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno is not None:
            words = inner.strerror or str(inner)
            # asyncio's words have the address again, and not the reason.
            return os.strerror(inner.errno) if words.startswith("Connect call failed") else words
        inner = inner.__cause__ or inner.__context__
    return str(error)


def _redirect_of(response: Any) -> str:
    return re.sub(r"//[^/]*@", "//", str(response.headers.get("location", ""))).partition("?")[0][:200]


def _moved_to(response: Any, url: str) -> str:
    # At 301 and 302 the library asks again with GET, which a chat's address refuses.
    last = str(response.request.url).partition("?")[0]
    is_own = last.rstrip("/") == f"{url.rstrip('/')}/chat/completions"
    return "" if is_own or (response.request.method == "POST" and last.startswith(url)) else last[:200]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an endpoint asks to wait."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


_CHECK_URL = "Check base_url: it often ends in /v1"


def reply_error(reply: Any, asked: Asked) -> HandlerError:
    """Return why a reply with status 200 holds no completion."""
    said = read_error(_as_json(reply))
    if isinstance(reply, str):
        if reply[:1000].lstrip().startswith("<"):
            # It may also be the page of a proxy that is busy, so the kind is as for any other text.
            error = error_in_reply(said, asked, "the endpoint sent a web page, no OpenAI-compatible reply")
            return type(error)(f"{error}. {_CHECK_URL}")
        return error_in_reply(said, asked, "the endpoint sent no JSON")
    if said.message or said.code:
        return error_in_reply(said, asked, "the endpoint reports an error in a reply with status 200")
    nothing = items(field(reply, "choices")) == [] and field(reply, "choices") is not None
    what = "without a choice" if nothing else "without the fields of a completion"
    return Unavailable(f"the endpoint sent a reply {what}")


def _as_json(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_as_json(each) for each in cast("list[Any]", reply)[:_MAX_ITEMS]]
    if not hasattr(reply, "model_extra"):
        return reply
    names = ("error", "errors", "message", "detail", "code", "type", "msg")
    return {name: found for name in names if (found := field(reply, name)) is not None}
