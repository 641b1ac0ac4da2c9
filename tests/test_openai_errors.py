"""What an endpoint may answer in place of a completion, and what the SDK may raise: each an error of ours."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import openai
import pytest
from openai_support import SOON, completion, handler_of, outcome, outcome_of

from supdist.handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    NoAccess,
    OpenAIHandler,
    Rejected,
    Unavailable,
    Unreachable,
    Usage,
)
from supdist.handlers.openai_errors import retry_after, translate
from supdist.tools.testing.fake_openai import (
    Drop,
    FakeOpenAI,
    Malformed,
    Shape,
    Status,
    Text,
)

pytestmark = pytest.mark.usefixtures("bare_environment")


# --- errors of the endpoint -----------------------------------------------------------------------


async def test_retry_after_is_obeyed() -> None:
    wait = 0.6  # longer than the SDK's own first wait
    async with FakeOpenAI([Status(429, {"Retry-After": str(wait)}), Text("x")]) as server:
        assert isinstance(await outcome(handler_of(server, max_retries=2)), Completion)
    first, second = server.requests
    assert second.arrived - first.arrived >= wait


@pytest.mark.parametrize("code", [408, 409, 429, 500, 503])
async def test_what_may_pass_is_tried_until_retries_are_used_up(code: int) -> None:
    got, requests = await outcome_of(*[Status(code, SOON)] * 9, max_retries=2)
    assert isinstance(got, Unavailable)
    assert requests == 3


async def test_retry_after_reaches_the_caller() -> None:
    got, _ = await outcome_of(Status(503, {"Retry-After": "7.5"}))
    assert isinstance(got, Unavailable)
    assert got.retry_after == 7.5
    got, _ = await outcome_of(Status(503, {"retry-after-ms": "1500", "Retry-After": "9"}))
    assert isinstance(got, Unavailable)
    assert got.retry_after == 1.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, None),
        ({"retry-after-ms": "x", "retry-after": "3"}, 3.0),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_at_a_date() -> None:
    seconds = retry_after({"retry-after": format_datetime(datetime.now(UTC) + timedelta(hours=1))})
    assert seconds is not None
    assert 3590 < seconds <= 3600


@pytest.mark.parametrize("code", [400, 401, 403, 404, 418, 422])
async def test_what_will_not_pass_is_asked_once(code: int) -> None:
    got, requests = await outcome_of(Status(code, SOON, message="the reason"), Text("x"), max_retries=2)
    assert isinstance(got, Rejected)
    assert requests == 1
    assert "the reason" in str(got)


@pytest.mark.parametrize("code", [400, 413])
async def test_context_length_is_told_apart(code: int) -> None:
    got, requests = await outcome_of(Status(code, SOON, "context_length_exceeded"), max_retries=2)
    assert isinstance(got, ContextTooLong)
    assert requests == 1


@pytest.mark.parametrize(
    "reply",
    [
        Status(400, fields={"type": "exceed_context_size_error", "code": 400, "n_ctx": 4096}),
        Status(400, fields={"type": "BadRequestError", "code": 400, "param": "input_tokens"}),
        Status(400, fields={"type": "BadRequestError", "code": 400, "param": "input_text"}),
        Status(413),
    ],
    ids=["llama.cpp", "vLLM, tokens", "vLLM, characters", "HTTP"],
)
async def test_other_servers_fields_for_context_length_are_known(reply: Status) -> None:
    got, _ = await outcome_of(reply)
    assert isinstance(got, ContextTooLong)


async def test_prose_decides_nothing() -> None:
    got, _ = await outcome_of(Status(400, message="This model's maximum context length is 8192 tokens."))
    assert isinstance(got, Rejected)
    got, _ = await outcome_of(Status(400, fields={"param": ["input_tokens"], "type": {}, "code": []}))
    assert isinstance(got, Rejected)


async def test_endpoints_words_are_cut() -> None:
    got, _ = await outcome_of(Status(400, message="x" * 10**6))
    assert len(str(got)) < 3000


async def test_spent_quota_is_no_rate_limit() -> None:
    got, requests = await outcome_of(Status(429, SOON, "insufficient_quota"), max_retries=2)
    assert isinstance(got, Rejected)
    assert requests == 1


# --- replies that are none ------------------------------------------------------------------------


NO_JSON = {
    "empty": b"",
    "html": b"<html>busy</html>",
    "cut": b'{"choices": [',
    "no utf-8": b"\xff\xfe\x00",
    "long number": b"9" * 9999,
    "deep": b"[" * 99_999,
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
async def test_body_that_is_no_json_is_unavailable(body: bytes) -> None:
    got, _ = await outcome_of(Malformed(body))
    assert isinstance(got, Unavailable)


def message(**fields: Any) -> Shape:
    return completion(choices=[{"index": 0, "message": fields, "finish_reason": "stop"}])


WRONG_WHOLE: list[Any] = [None, 1, "text", [], [1], {}, {"error": {"message": "busy"}}]
WRONG_CHOICES: list[Any] = [
    None,
    [],
    {},
    "x",
    1,
    [None],
    [1],
    [[]],
    [{}],
    [{"message": None}],
    [{"message": ["x"]}],
]
WRONG_CONTENT: list[Any] = [1, [1, None], {"a": 1}, True, 1.5, [[[[[["deep"]]]]]]]
WRONG = [
    *(Shape(value) for value in WRONG_WHOLE),
    *(completion(choices=value) for value in WRONG_CHOICES),
    *(message(content=value) for value in WRONG_CONTENT),
]


async def test_json_of_another_shape_is_unavailable() -> None:
    async with FakeOpenAI(WRONG) as server, handler_of(server) as handler:
        got = [(json.dumps(reply.json_value), await outcome(handler)) for reply in WRONG]
    assert [case for case in got if not isinstance(case[1], Unavailable)] == []


STRANGE_USAGE: list[tuple[Any, Usage]] = [
    (None, Usage(0, 0, 1)),
    ({}, Usage(0, 0, 1)),
    ({"completion_tokens": 4}, Usage(0, 4, 1)),
    ({"prompt_tokens": 12.0, "completion_tokens": "4"}, Usage(12, 4, 1)),
    ({"prompt_tokens": -1, "completion_tokens": None}, Usage(0, 0, 1)),
    ({"prompt_tokens": [1], "completion_tokens": {"a": 1}}, Usage(0, 0, 1)),
    ({"prompt_tokens": True, "completion_tokens": 10**30}, Usage(0, 0, 1)),
    ({"prompt_tokens": "1e3", "completion_tokens": 0.5}, Usage(0, 0, 1)),
    ({"input_tokens": 3, "output_tokens": 4}, Usage(3, 4, 1)),
    ({"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": "x"}, Usage(3, 4, 1)),
    ("x", Usage(0, 0, 1)),
    (5, Usage(0, 0, 1)),
    ([1], Usage(0, 0, 1)),
]


async def test_a_strange_usage_costs_no_answer() -> None:
    replies = [completion(usage=usage) for usage, _ in STRANGE_USAGE]
    async with FakeOpenAI(replies) as server, handler_of(server) as handler:
        for usage, counted in STRANGE_USAGE:
            got = await outcome(handler)
            assert isinstance(got, Completion), usage
            assert (got.text, got.usage) == ("hi", counted), usage


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Shape({"choices": [{"message": {"content": "hi"}}]}), Completion("hi", Usage(0, 0, 1), "other")),
        (
            completion(choices=[{"message": {"content": "hi"}, "finish_reason": ["stop"]}]),
            Completion("hi", Usage(3, 4, 1), "other"),
        ),
        (message(content=None), Completion("", Usage(3, 4, 1))),
        (message(), Completion("", Usage(3, 4, 1))),
        (message(content="hi", refusal=["x"]), Completion("hi", Usage(3, 4, 1))),
        (message(content="hi", unknown={"a": 1}), Completion("hi", Usage(3, 4, 1))),
    ],
)
async def test_what_is_missing_or_strange_beside_the_text_is_forgiven(
    reply: Shape, answer: Completion
) -> None:
    assert await outcome_of(reply) == (answer, 1)


# --- the translation of the SDK's exceptions ------------------------------------------------------


_CLASS = re.compile(r"^class (\w+)\(([^)]*)\)", re.MULTILINE)


def sdk_exceptions() -> list[type[openai.OpenAIError]]:
    """Return every exception class in the SDK's sources, also in modules that are imported late."""
    root = Path(openai.__file__).parent
    bases = [
        (root / path, name, set(re.findall(r"\w+", parents)))
        for path in sorted(root.rglob("*.py"))
        for name, parents in _CLASS.findall(path.read_text(encoding="utf-8"))
    ]
    found: dict[str, Path] = {}
    known = {"OpenAIError"}
    while new := {name: path for path, name, parents in bases if parents & known and name not in found}:
        found |= new
        known |= set(new)
    classes = {openai.OpenAIError}
    for name, path in found.items():
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        classes.add(getattr(import_module(module), name))
    return sorted(classes, key=lambda kind: kind.__name__)


STATUS: dict[type[openai.OpenAIError], tuple[int, type[HandlerError]]] = {
    openai.BadRequestError: (400, Rejected),
    openai.AuthenticationError: (401, NoAccess),
    openai.PermissionDeniedError: (403, Rejected),
    openai.NotFoundError: (404, NoAccess),
    openai.ConflictError: (409, Unavailable),
    openai.UnprocessableEntityError: (422, Rejected),
    openai.RateLimitError: (429, Unavailable),
    openai.InternalServerError: (500, Unavailable),
    openai.APIStatusError: (418, Rejected),
}
OTHER: dict[type[openai.OpenAIError], type[HandlerError]] = {
    openai.APIConnectionError: Unavailable,
    openai.APITimeoutError: Unavailable,
    openai.APIResponseValidationError: Unavailable,
    openai.APIError: Unavailable,
}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/v1", "the connection to the endpoint failed: 127.0.0.1:9: Connection refused"),
        ("http://a..b/v1", "the connection to the endpoint failed: a..b: "),
        ("localhost:8000/v1", "protocol"),
    ],
)
async def test_an_endpoint_without_a_connection_is_named_with_the_cause(url: str, words: str) -> None:
    handler = OpenAIHandler("m", base_url=url, api_key="k", max_retries=1, timeout=5.0)
    got = await outcome(handler)
    assert type(got) is Unreachable
    assert words in str(got)


async def test_a_connection_that_breaks_off_later_was_made() -> None:
    got, _ = await outcome_of(Drop())
    assert type(got) is Unavailable


@pytest.mark.parametrize(
    ("status", "reason"), [(429, "rate_limit"), (408, "timeout"), (504, "timeout"), (503, None)]
)
async def test_what_may_pass_says_its_reason(status: int, reason: str | None) -> None:
    got, _ = await outcome_of(Status(status))
    assert isinstance(got, Unavailable)
    assert got.reason == reason


@pytest.fixture(scope="module")
async def responses(anyio_backend: str) -> dict[int, Any]:
    """Real responses with an error status, by status."""
    found: dict[int, Any] = {}
    async with (
        FakeOpenAI([Status(code) for code, _ in STATUS.values()]) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        for _ in STATUS:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="m", messages=[])
            found[caught.value.status_code] = caught.value.response
    return found


@pytest.mark.parametrize("kind", sdk_exceptions(), ids=lambda kind: kind.__name__)
async def test_every_exception_of_the_sdk_is_translated(
    kind: type[openai.OpenAIError], responses: dict[int, Any]
) -> None:
    """By enumeration: a class that a new SDK adds is met here first."""
    code, expected = next(
        (STATUS[base] for base in kind.__mro__ if base in STATUS), (418, OTHER.get(kind, Rejected))
    )
    if issubclass(kind, openai.APIError):
        response = responses[code]
        known: dict[str, Any] = {
            "message": "why",
            "response": response,
            "request": response.request,
            "body": {},
        }
        error = kind(**{name: known[name] for name in inspect.signature(kind).parameters})
    else:
        error = kind.__new__(kind, "why")  # as much of it as is read
    assert type(translate(error)) is expected
    if isinstance(error, openai.APIStatusError):
        for name, ours in (("context_length_exceeded", ContextTooLong), ("insufficient_quota", NoAccess)):
            error.code = name
            assert type(translate(error)) is ours


def test_enumeration_finds_what_the_sdk_exports() -> None:
    exported = [item for item in vars(openai).values() if issubclass(type(item), type)]
    errors = {item for item in exported if issubclass(item, openai.OpenAIError)}
    assert {*STATUS, *OTHER} | errors <= set(sdk_exceptions())
