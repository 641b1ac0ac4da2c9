"""Replies as endpoints give them: parts, thoughts apart, errors with status 200, anything beside the text."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_support import ASKED, SOON, completion, handler_of, outcome, outcome_of
from support import SMALL_CONFIG

from supdist.engine import arun
from supdist.handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    NoAccess,
    OpenAIHandler,
    Price,
    Rejected,
    ScriptedHandler,
    Unavailable,
    Usage,
)
from supdist.handlers.openai_errors import read_error
from supdist.handlers.openai_parts import token_count
from supdist.handlers.openai_replies import CompletionBuilder, parse_reply
from supdist.tools.testing.fake_openai import Endless, FakeOpenAI, Malformed, Part, Shape, Status, Stream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("bare_environment")]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
BESIDE = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier", "x")
OF_CHOICE = ("index", "finish_reason", "logprobs", "stop_reason", "usage")
OF_MESSAGE = ("role", "reasoning", "reasoning_content", "reasoning_details", "tool_calls", "refusal", "audio")


def fields(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


def from_sdk(value: dict[str, Any], kind: str) -> Any:
    """The object that the SDK makes of it."""
    from openai._models import construct_type
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    return construct_type(type_={"whole": ChatCompletion, "chunk": ChatCompletionChunk}[kind], value=value)


@given(fields(BESIDE), fields(OF_CHOICE), fields(OF_MESSAGE))
def test_any_json_beside_a_text_gives_that_text(
    beside: dict[str, Any], choice: dict[str, Any], said: dict[str, Any]
) -> None:
    reply = {**beside, "choices": [{**choice, "message": {**said, "content": "the text"}}]}
    for value in (reply, from_sdk(reply, "whole")):
        assert parse_reply(value).text == "the text"


@given(fields(BESIDE), fields(OF_CHOICE), fields(OF_MESSAGE))
def test_any_json_beside_a_streamed_text_gives_that_text(
    beside: dict[str, Any], choice: dict[str, Any], said: dict[str, Any]
) -> None:
    chunk = {**beside, "choices": [{**choice, "delta": {**said, "content": "the text"}}]}
    answer = CompletionBuilder()
    assert answer.add_chunk(from_sdk(chunk, "chunk")) == "the text"
    answer.add_chunk(from_sdk({"choices": [{"delta": {}, "finish_reason": "stop"}]}, "chunk"))
    assert answer.completion(streamed=True).text == "the text"


@given(JSON)
def test_any_json_as_a_reply_is_an_answer_or_an_error_of_ours(value: Any) -> None:
    for reply in (value, {"choices": value}, {"choices": [{"message": value}]}, {"error": value}):
        # Any other exception fails the test.
        with suppress(HandlerError):
            parse_reply(reply)
        with suppress(HandlerError):
            CompletionBuilder().add_chunk(reply)


@given(JSON)
def test_a_number_of_tokens_is_one_or_none(value: Any) -> None:
    assert token_count(value) is None or Usage(token_count(value) or 0)


@given(JSON)
def test_the_words_of_an_error_are_bounded(value: Any) -> None:
    assert len(read_error(value).message) <= 2000


# --- content in parts, thoughts apart -------------------------------------------------------------

THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "6 times 7"}]}
PARTS: list[tuple[Any, str, str]] = [
    ([THINKING, {"type": "text", "text": "42"}], "42", "6 times 7"),
    ([{"type": "text", "text": "4"}, {"type": "text", "text": "2"}], "42", ""),
    ([{"type": "reasoning", "reasoning": "hm"}, {"type": "output_text", "text": "42"}], "42", "hm"),
    ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, "42"], "42", "hm"),
    ([{"type": "redacted_thinking", "data": "x"}, {"text": "42"}], "42", ""),
    ([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "42"}], "42", ""),
    ([{"type": "text", "text": {"value": "42", "annotations": []}}], "42", ""),
    ({"type": "text", "text": "42"}, "42", ""),
    ([THINKING], "", "6 times 7"),
    ([], "", ""),
]


@pytest.mark.parametrize(
    ("content", "text", "thoughts"), PARTS, ids=[json.dumps(each)[:60] for each, *_ in PARTS]
)
async def test_content_in_parts_is_read(content: Any, text: str, thoughts: str) -> None:
    whole = completion(choices=[{"message": {"content": content}, "finish_reason": "stop"}])
    async with FakeOpenAI([whole, Stream([{"content": content}])]) as server:
        handler, pieces = handler_of(server), list[str]()
        for got in (await handler.chat(ASKED), await handler.chat_stream(ASKED, pieces.append)):
            assert (got.text, got.reasoning) == (text, thoughts)
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    "said",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"reasoning": {"content": "hm"}},
        {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}, {"type": "reasoning.encrypted"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"thinking": "hm"},
    ],
)  # fmt: skip
async def test_thoughts_in_fields_of_their_own_are_kept(said: dict[str, Any]) -> None:
    whole = completion(choices=[{"message": {"content": "42", **said}, "finish_reason": "stop"}])
    async with FakeOpenAI([whole, Stream([said, "42"])]) as server:
        handler = handler_of(server)
        for got in (await handler.chat(ASKED), await handler.chat_stream(ASKED, lambda _: None)):
            assert (got.text, got.reasoning) == ("42", "hm")


async def test_tags_in_the_content_of_an_endpoint_are_thoughts() -> None:
    text = "<think>\nhm\n</think>\n\n42"
    whole = completion(choices=[{"message": {"content": text}, "finish_reason": "stop"}])
    async with FakeOpenAI([whole, Stream(["<thi", "nk>\nhm\n</th", "ink>\n\n4", "2"])]) as server:
        handler, pieces = handler_of(server), list[str]()
        for got in (await handler.chat(ASKED), await handler.chat_stream(ASKED, pieces.append)):
            assert (got.text, got.reasoning) == ("42", "hm")
    assert "".join(pieces).strip() == "42"


async def test_refused_empty_and_cut_replies_are_told_apart() -> None:
    async def finish(said: dict[str, Any], reason: str) -> tuple[str, str]:
        got, _ = await outcome_of(completion(choices=[{"message": said, "finish_reason": reason}]))
        assert isinstance(got, Completion)
        return got.text, got.finish_reason

    assert await finish({"content": None, "refusal": "I may not"}, "stop") == ("I may not", "refusal")
    assert await finish({"content": [{"type": "refusal", "refusal": "no"}]}, "stop") == ("no", "refusal")
    assert await finish({"content": ""}, "content_filter") == ("", "refusal")
    assert await finish({"content": ""}, "stop") == ("", "stop")
    assert await finish({"content": None, "reasoning": "hm"}, "length") == ("", "length")
    assert await finish({"content": "half"}, "max_tokens") == ("half", "length")


async def test_a_supervisors_tool_call_is_paid_for_and_ends_no_run() -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    replies = [
        Stream([{"tool_calls": [call]}], finish_reason="tool_calls", usage=(9, 5)),
        Stream(["```repl\nFINAL(1)\n```"], usage=(9, 5)),
    ]
    async with FakeOpenAI(replies) as server:
        result = await arun(query="q", context="c", supervisor=handler_of(server), worker=ScriptedHandler([]))
    assert (result.answer, result.supervisor_usage) == ("1", Usage(18, 10, 2))


@pytest.mark.parametrize(
    "parts", [[{"reasoning_content": "hmm " * 500}], ["<think>", "hmm " * 500]], ids=["field", "tag"]
)
async def test_thoughts_that_take_all_tokens_end_a_run_and_cost_two_requests(parts: list[Part]) -> None:
    async with FakeOpenAI(lambda _: Stream(parts, finish_reason="length", usage=(900, 2048))) as server:
        supervisor = handler_of(server, max_tokens=2048, price=Price(10, 40))
        result = await arun(
            query="q", context="c", supervisor=supervisor, worker=ScriptedHandler([]), sandbox=SMALL_CONFIG,
            max_iterations=4,
        )  # fmt: skip
    assert (result.answer, result.stop_reason, result.iterations) == (None, "cut_off", 2)
    assert len(server.requests) == 2
    # Four turns and a best answer would cost 0.45.
    assert result.cost_usd == pytest.approx(2 * (900 * 10 + 2048 * 40) / 1e6)
    assert (
        "cut off at the token limit (max_tokens 2,048)" in server.requests[1].body["messages"][-1]["content"]
    )
    assert "Raise max_tokens of the supervisor (it is 2,048)" in (result.failure or "")


async def test_a_workers_answer_that_was_cut_and_is_empty_is_an_error() -> None:
    cut = {"role": "assistant", "content": None, "reasoning_content": "hmm"}
    code = "try: worker('x')\nexcept WorkerError as error: FINAL(error.code + ': ' + error.message)"
    async with FakeOpenAI([completion(choices=[{"message": cut, "finish_reason": "length"}])]) as server:
        supervisor = ScriptedHandler([f"```repl\n{code}\n```"])
        worker = handler_of(server, max_tokens=64)
        result = await arun(
            query="q", context="c", supervisor=supervisor, worker=worker, sandbox=SMALL_CONFIG
        )
    assert (result.answer or "").startswith("cut_off: the worker's answer was cut at max_tokens 64")
    assert dict(result.failed_calls) == {"cut_off": 1}


async def test_an_error_of_a_run_knows_the_role_of_its_model() -> None:
    async with FakeOpenAI([Status(400)]) as server:
        with pytest.raises(Rejected) as caught:
            await arun(query="q", context="c", supervisor=handler_of(server), worker=ScriptedHandler([]))
    assert caught.value.role == "supervisor"


# --- errors with status 200, and in any form ------------------------------------------------------

IN_200: list[tuple[Any, type[HandlerError], str]] = [
    ({"error": {"message": "Insufficient credits", "code": 402}}, NoAccess, "Insufficient credits"),
    ({"choices": None, "error": {"message": "slow down", "code": 429}}, Unavailable, "slow down"),
    ({"error": {"message": "bad key", "code": "401"}}, NoAccess, "bad key"),
    ({"error": {"message": "bad key", "type": "authentication_error"}}, NoAccess, "bad key"),
    ({"error": {"message": "flagged", "code": 403}}, Rejected, "flagged"),
    ({"error": {"message": "no", "type": "invalid_request_error"}}, Rejected, "no"),
    ({"error": {"message": "too long", "code": "context_length_exceeded"}}, ContextTooLong, "too long"),
    ({"error": {"message": "down", "code": 502}}, Unavailable, "down"),
    ({"error": "overloaded"}, Unavailable, "overloaded"),
    ({"detail": "busy"}, Unavailable, "busy"),
    ({"message": "busy"}, Unavailable, "busy"),
    ({"object": "error", "message": "no model", "code": 404}, NoAccess, "no model"),
    ([{"error": {"message": "quota", "code": 429}}], Unavailable, "quota"),
    (
        {"error": {"message": "it failed", "code": 400, "metadata": {"raw": '{"error": "real"}'}}},
        Rejected,
        "real",
    ),
    ({"choices": []}, Unavailable, "without a choice"),
    ({"choices": None}, Unavailable, "without the fields"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "words"), IN_200, ids=[json.dumps(body)[:50] for body, *_ in IN_200]
)
async def test_an_error_with_status_200_has_its_kind_and_words(
    body: Any, kind: type[HandlerError], words: str
) -> None:
    got, _ = await outcome_of(Shape(body))
    assert type(got) is kind
    assert words in str(got)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([Shape({"error": {"message": "the words", "code": 402}})], NoAccess),
        (["one ", Shape({"error": {"message": "the words", "code": 429}})], Unavailable),
        (["one ", Shape({"type": "error", "error": {"message": "the words"}})], Unavailable),
        (["one ", Shape({"detail": "the words"})], Unavailable),
    ],
)
async def test_an_error_in_a_stream_has_its_kind_and_words(
    parts: list[Any], kind: type[HandlerError]
) -> None:
    async with FakeOpenAI([Stream(parts)]) as server:
        with pytest.raises(kind, match="the words"):
            await handler_of(server).chat_stream(ASKED, lambda _: None)


async def test_a_busy_endpoint_that_says_so_with_status_200_is_asked_again() -> None:
    busy = Shape({"error": {"message": "slow down", "code": 429}})
    got, requests = await outcome_of(busy, completion(), max_retries=2)
    assert isinstance(got, Completion)
    assert requests == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"message": "the reason", "code": None, "type": None, "param": None}, "the reason"),
        ({"message": {"detail": "the reason"}}, "the reason"),
    ],
)
async def test_words_of_other_forms_are_found(fields: dict[str, Any], words: str) -> None:
    got, _ = await outcome_of(Status(400, SOON, fields=fields))
    assert words in str(got)


async def test_a_page_is_shown_as_its_words() -> None:
    page = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502</h1>" + b"<p>x</p>" * 9999
    got, _ = await outcome_of(Malformed(page))
    assert len(str(got)) < 600
    assert len(read_error(page.decode()).message) < 400
    assert "Bad Gateway" in read_error(page.decode()).message
    assert "<" not in read_error(page.decode()).message


# --- what a message names -------------------------------------------------------------------------


async def test_an_error_names_the_model_the_endpoint_and_the_keys_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    async with FakeOpenAI([Status(401, message="bad key"), Status(401)]) as server:
        named = str(await outcome(handler_of(server, api_key_env="MY_KEY")))
        none = str(await outcome(handler_of(server)))
    who = f"the model m at {server.base_url}"
    assert named == f"{who}: the endpoint answered 401 to the key of MY_KEY: bad key"
    assert "without a key (set OPENAI_API_KEY" in none


async def test_a_missing_v1_is_told_from_a_model_that_is_not_there() -> None:
    async with FakeOpenAI([Status(404, message="there is no m", code_name="model_not_found")]) as server:
        there = str(await outcome(handler_of(server)))
        root = server.base_url.removesuffix("/v1")
        missing = str(await outcome(OpenAIHandler("m", base_url=root, max_retries=0)))
    assert there.endswith("there is no m")
    assert missing.endswith(f"base_url has no /v1: try {root}/v1")


async def test_a_missing_scheme_is_named() -> None:
    got = await outcome(OpenAIHandler("m", base_url="localhost:8000/v1", max_retries=0))
    assert "Write base_url as http://localhost:8000/v1" in str(got)


async def test_a_timeout_says_how_long_it_waited() -> None:
    async with FakeOpenAI([Endless(pause=60)]) as server:
        got = await outcome(handler_of(server, timeout=0.2))
    assert "after 0.2 s without a byte" in str(got)


async def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:7")
    got = str(await outcome(OpenAIHandler("m", base_url="http://127.0.0.1:9/v1", max_retries=0)))
    assert "the proxy http://127.0.0.1:7 (HTTP_PROXY)" in got
    assert "secret" not in got


async def test_a_missing_certificate_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    got = str(await outcome(OpenAIHandler("m", base_url="https://127.0.0.1:9/v1", max_retries=0)))
    assert "SSL_CERT_FILE names a missing file: /nowhere.pem" in got
