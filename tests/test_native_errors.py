"""Every exception of the SDKs, and every status and shape of an error, is one of ours."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import anthropic
import httpx2
import pytest
from google.genai import errors as gemini_errors
from native_support import KEY, NATIVE, Backend, outcome

from supdist.handlers import (
    ContextTooLong,
    HandlerError,
    NoAccess,
    Rejected,
    Unavailable,
)
from supdist.handlers import anthropic as our_anthropic
from supdist.handlers import gemini as our_gemini
from supdist.tools.testing.fake_openai import Malformed, Reply, Status, Stream

pytestmark = pytest.mark.usefixtures("bare_environment")
IGNORED: list[str] = []
GEMINI_TOO_LONG = "The input token count (9) exceeds the maximum number of tokens allowed (8)."
ODD_BODIES = [
    b"[]",
    b"{}",
    b"null",
    b"3",
    b'"x"',
    b"<html>",
    b"",
    b'{"error": "x"}',
    b'{"error": []}',
    b"[" * 99_999,
]


async def error_of(backend: Backend, reply: Reply) -> HandlerError:
    async with backend.server([reply]) as server:
        got = await outcome(backend.handler_of(server))
    assert isinstance(got, HandlerError)
    return got


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reply", "kind"),
    [
        ("anthropic", Status(400, message="prompt is too long: 9 tokens > 8 maximum"), ContextTooLong),
        ("anthropic", Status(413), ContextTooLong),
        ("anthropic", Status(400, message="Your credit balance is too low to access the API."), NoAccess),
        ("anthropic", Status(400, message="the prompt is too long, I said"), Rejected),
        ("anthropic", Status(403), NoAccess),
        ("gemini", Status(403), NoAccess),
        ("gemini", Status(400, fields={"details": [{"reason": "API_KEY_INVALID"}]}), NoAccess),
        ("gemini", Status(400, message=GEMINI_TOO_LONG), ContextTooLong),
        ("gemini", Status(400, fields={"details": "none"}), Rejected),
    ],
)  # fmt: skip
async def test_an_error_has_its_type(name: str, reply: Status, kind: type[HandlerError]) -> None:
    got = await error_of(NATIVE[name], reply)
    assert type(got) is kind
    assert "m at http://127.0.0.1:" in str(got)


async def test_the_wait_that_a_provider_asks_for_reaches_the_caller() -> None:
    got = await error_of(NATIVE["anthropic"], Status(429, {"retry-after": "7"}))
    assert isinstance(got, Unavailable)
    assert (got.retry_after, got.reason) == (7, "rate_limit")
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "13.5s"}]
    got = await error_of(NATIVE["gemini"], Status(429, fields={"details": details}))
    assert isinstance(got, Unavailable)
    assert (got.retry_after, got.reason) == (13.5, "rate_limit")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status(529), Unavailable),
        (Status(429), Unavailable),
        (Status(401), NoAccess),
        (Status(400), Rejected),
        (Status(413), ContextTooLong),
    ],
)
@pytest.mark.parametrize("name", list(NATIVE))
async def test_an_error_in_a_stream_has_its_type(name: str, status: Status, kind: type[HandlerError]) -> None:
    async with NATIVE[name].server([Stream(["a", status])]) as server:
        got = await outcome(NATIVE[name].handler_of(server), on_text=IGNORED.append)
    assert isinstance(got, kind)


def _classes(module: ModuleType, base: type[BaseException]) -> list[type[BaseException]]:
    found = [each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, base)]
    return sorted(found, key=lambda each: each.__name__)


def _anthropic_error(kind: type[BaseException], status: int) -> BaseException:
    request = httpx2.Request("POST", "https://api.anthropic.com/v1/messages")
    response = httpx2.Response(status, request=request)
    given: dict[str, Any] = {
        "message": f"said {KEY}", "request": request, "response": response, "body": None,
    }  # fmt: skip
    if not issubclass(kind, anthropic.APIError):
        return kind(f"said {KEY}")
    names = [name for name in inspect.signature(kind).parameters if name in given]
    return kind(**{name: given[name] for name in names})


@pytest.mark.parametrize(
    "kind", _classes(importlib.import_module("anthropic._exceptions"), anthropic.AnthropicError)
)
def test_every_exception_of_anthropic_is_one_of_ours(kind: type[BaseException]) -> None:
    for status in (200, 400, 401, 404, 429, 500, 529, 599):
        error = _anthropic_error(kind, status)
        assert isinstance(error, Exception)
        ours = our_anthropic.translate(error, "m at x", KEY)
        assert isinstance(ours, HandlerError)
        assert "m at x" in str(ours)
        assert KEY not in str(ours)


@pytest.mark.parametrize("kind", _classes(gemini_errors, gemini_errors.APIError))
@pytest.mark.parametrize(
    "body", [{}, {"error": {}}, {"error": {"message": KEY, "code": 400}}, [], [{}], {"error": "x"}], ids=str
)
def test_every_exception_of_gemini_is_one_of_ours(kind: Any, body: Any) -> None:
    for status in (200, 302, 400, 401, 403, 404, 429, 500, 503, 599):
        try:
            error = kind(status, body, httpx2.Response(status))
        except AttributeError:
            # The SDK's own flaw, for a body of another shape: the handler takes it for a malformed reply.
            continue
        ours = our_gemini.translate(error, "m at x", KEY)
        assert isinstance(ours, HandlerError)
        assert "m at x" in str(ours)
        assert KEY not in str(ours)


@pytest.mark.parametrize("body", ODD_BODIES, ids=lambda body: repr(body[:9]))
@pytest.mark.parametrize("status", [302, 400, 429, 500])
@pytest.mark.parametrize("name", list(NATIVE))
async def test_an_error_of_any_shape_is_one_of_ours(name: str, status: int, body: bytes) -> None:
    async with NATIVE[name].server([Malformed(body, status)]) as server:
        assert isinstance(await outcome(NATIVE[name].handler_of(server)), HandlerError)
