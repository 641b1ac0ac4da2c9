"""What is Anthropic's or Gemini's own: thoughts, caching, safety, errors, keys, turns."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from native_support import ASKED, BACKENDS, KEY, NATIVE, Backend, outcome

from supdist.engine import TaskError, arun
from supdist.engine.model_specs import model_named
from supdist.engine.native_specs import AnthropicSpec, GeminiSpec
from supdist.handlers import (
    AnthropicHandler,
    Completion,
    GeminiHandler,
    Message,
    NoAccess,
    OnlyToolCall,
    Usage,
)
from supdist.handlers.conversations import BEGIN, GO_ON, alternate
from supdist.tools.testing.fake_anthropic import FakeAnthropic
from supdist.tools.testing.fake_gemini import FakeGemini, blocked
from supdist.tools.testing.fake_openai import FakeOpenAI, Shape, Stream, Text

pytestmark = pytest.mark.usefixtures("bare_environment")
IGNORED: list[str] = []
LONG = "A rule. " * 1000
ADAPTIVE = {"type": "adaptive", "display": "summarized"}


async def request_of(
    backend: Backend, messages: list[Message] | None = None, **options: Any
) -> dict[str, Any]:
    async with backend.server([Text("x")]) as server:
        assert isinstance(await outcome(backend.handler_of(server, **options), messages or ASKED), Completion)
    return server.requests[0].body


# --- turns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "roles", ["".join(each) for n in range(5) for each in itertools.product("sua", repeat=n)]
)
def test_turns_alternate_from_user_to_user_and_lose_no_text(roles: str) -> None:
    names: Any = {"s": "system", "u": "user", "a": "assistant"}
    messages: list[Message] = [
        {"role": names[role], "content": f"text-{place}"} for place, role in enumerate(roles)
    ]
    talk = alternate(messages)
    got = [turn["role"] for turn in talk.turns]
    assert got == [("user", "assistant")[place % 2] for place in range(len(got))]
    assert got[-1] == "user"
    whole = "\n\n".join([talk.system, *(turn["content"] for turn in talk.turns)])
    places = [whole.index(message["content"]) for message in messages]
    assert places == sorted(places)


def test_blank_messages_are_left_out() -> None:
    messages: list[Message] = [
        {"role": "system", "content": ""},
        {"role": "assistant", "content": "I began."},
        {"role": "user", "content": " \n"},
        {"role": "assistant", "content": "And went on."},
    ]
    talk = alternate(messages)
    assert talk.system == ""
    assert [turn["content"] for turn in talk.turns] == [BEGIN, "I began.\n\nAnd went on.", GO_ON]


async def test_the_system_text_has_its_own_field() -> None:
    body = await request_of(NATIVE["anthropic"])
    assert body["system"] == [{"type": "text", "text": "be brief"}]
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "what is it"}]}]
    assert body["max_tokens"] == 4096
    body = await request_of(NATIVE["gemini"])
    assert body["systemInstruction"]["parts"] == [{"text": "be brief"}]
    assert body["contents"] == [{"role": "user", "parts": [{"text": "what is it"}]}]


# --- thinking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"thinking": 2048}, {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 6144}),
        ({"thinking": "adaptive"}, {"thinking": ADAPTIVE, "max_tokens": 16_000}),
        ({"thinking": "off"}, {"thinking": {"type": "disabled"}, "max_tokens": 4096}),
        ({"effort": "high", "temperature": 0.5}, {"output_config": {"effort": "high"}, "temperature": 0.5}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
    ],
)  # fmt: skip
async def test_anthropic_thinks_as_it_is_told(options: dict[str, Any], fields: dict[str, Any]) -> None:
    body = await request_of(NATIVE["anthropic"], **options)
    assert fields.items() <= body.items()
    assert ("thinking" in body) == ("thinking" in options)


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"thinking": 512}, {"thinkingBudget": 512, "includeThoughts": True}),
        ({"thinking": "adaptive"}, {"thinkingBudget": -1, "includeThoughts": True}),
        ({"thinking": "off"}, {"thinkingBudget": 0, "includeThoughts": False}),
        ({"effort": "low"}, {"thinkingLevel": "LOW", "includeThoughts": True}),
    ],
)
async def test_gemini_thinks_as_it_is_told(options: dict[str, Any], config: dict[str, Any]) -> None:
    body = await request_of(NATIVE["gemini"], max_tokens=9, temperature=0, **options)
    sent = body["generationConfig"]
    assert (sent["temperature"], sent["maxOutputTokens"]) == (0, 9)
    # The API takes names in both forms, and versions of the SDK differ.
    names = {name.replace("_", "").lower(): value for name, value in sent["thinkingConfig"].items()}
    assert names == {name.lower(): value for name, value in config.items()}


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1024"):
        AnthropicHandler("m", thinking=100)
    with pytest.raises(ValueError, match="must be above"):
        AnthropicHandler("m", thinking=4000, max_tokens=4000)
    with pytest.raises(ValueError, match="takes one of them"):
        GeminiHandler("m", thinking=100, effort="low")


# --- usage and caching ----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_cached_tokens_and_thoughts_are_counted(stream: bool) -> None:
    sink: list[str] | None = [] if stream else None
    on_text = None if sink is None else sink.append
    async with FakeAnthropic([Text("x", usage=(10, 20))]) as server:
        server.cached = (300, 4000)
        got = await outcome(NATIVE["anthropic"].handler_of(server), on_text=on_text)
    assert isinstance(got, Completion)
    # Anthropic counts cached tokens beside the others.
    assert got.usage == Usage(4310, 20, 1, cache_read_tokens=4000, cache_write_tokens=300)
    async with FakeGemini([Text("x", usage=(5000, 20))]) as server:
        server.cached, server.thought = 4000, 30
        got = await outcome(NATIVE["gemini"].handler_of(server), on_text=on_text)
    assert isinstance(got, Completion)
    # Gemini counts cached tokens within the prompt's, and thoughts beside the answer's.
    expected = Usage(5000, 50, 1, cache_read_tokens=4000, cache_write_tokens=0, reasoning_tokens=30)
    assert got.usage == expected


@pytest.mark.parametrize("flaw", [None, -1, "12", 12.5, [], {}], ids=repr)
async def test_a_flaw_of_a_count_costs_no_answer(flaw: object) -> None:
    message: dict[str, Any] = {"type": "message", "role": "assistant", "model": "m", "id": "1"}
    message |= {"stop_reason": "end_turn", "content": [{"type": "text", "text": "paid"}]}
    for usage in ({"input_tokens": flaw, "output_tokens": 3}, flaw):
        async with FakeAnthropic([Shape(message | {"usage": usage})]) as server:
            got = await outcome(NATIVE["anthropic"].handler_of(server))
        assert isinstance(got, Completion)
        assert got.text == "paid"


async def test_openai_counts_cached_tokens_and_thoughts_within_the_others() -> None:
    usage: dict[str, Any] = {"prompt_tokens": 100, "completion_tokens": 50}
    usage["prompt_tokens_details"] = {"cached_tokens": 64}
    usage["completion_tokens_details"] = {"reasoning_tokens": 40}
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    async with FakeOpenAI([Shape({"choices": [choice], "usage": usage})]) as server:
        got = await outcome(BACKENDS["openai"].handler_of(server))
    assert isinstance(got, Completion)
    assert got.usage == Usage(100, 50, 1, cache_read_tokens=64, reasoning_tokens=40)


def _marks(body: dict[str, Any]) -> list[str]:
    blocks = [("system", body.get("system", []))]
    blocks += [(f"turn {place}", turn["content"]) for place, turn in enumerate(body["messages"])]
    return [name for name, each in blocks if any("cache_control" in block for block in each)]


async def test_the_start_of_a_long_conversation_is_cached() -> None:
    backend = NATIVE["anthropic"]
    system: Message = {"role": "system", "content": LONG}
    first: list[Message] = [system, {"role": "user", "content": "q"}]
    later: list[Message] = [*first, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    assert _marks(await request_of(backend, first)) == ["system"]
    assert _marks(await request_of(backend, later)) == ["system", "turn 2"]
    # A worker's single long question would pay for writing what nobody reads.
    assert _marks(await request_of(backend, [{"role": "user", "content": LONG * 20}])) == []
    assert _marks(await request_of(backend, ASKED)) == []
    assert _marks(await request_of(backend, later, prompt_cache=False)) == []


# --- refusals and tool calls ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_blocked_prompt_is_a_refusal(stream: bool) -> None:
    sink: list[str] | None = [] if stream else None
    reply = Stream([Shape(blocked())]) if stream else Shape(blocked("PROHIBITED_CONTENT"))
    async with FakeGemini([reply]) as server:
        got = await outcome(
            NATIVE["gemini"].handler_of(server), on_text=None if sink is None else sink.append
        )
    assert isinstance(got, Completion)
    assert got.text == ""
    assert got.finish_reason == "refusal"


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"])
async def test_a_blocked_answer_is_a_refusal(reason: str) -> None:
    async with FakeGemini([Text("", reason)]) as server:
        got = await outcome(NATIVE["gemini"].handler_of(server))
    assert isinstance(got, Completion)
    assert got.finish_reason == "refusal"


async def test_a_tool_call_alone_is_told_apart() -> None:
    call: dict[str, Any] = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    async with FakeAnthropic([Stream([call], "tool_use")]) as server:
        got = await outcome(NATIVE["anthropic"].handler_of(server), on_text=IGNORED.append)
    assert isinstance(got, OnlyToolCall)
    assert got.completion.finish_reason == "tool_call"
    async with FakeGemini([Stream([{"functionCall": {"name": "f"}}])]) as server:
        got = await outcome(NATIVE["gemini"].handler_of(server), on_text=IGNORED.append)
    assert isinstance(got, OnlyToolCall)
    assert got.completion.finish_reason == "tool_call"


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"])
async def test_a_call_that_gemini_could_not_make_is_a_tool_call(reason: str) -> None:
    async with FakeGemini(
        [Text("", reason), Stream([{"executableCode": {"code": "1", "language": "PYTHON"}}])]
    ) as server:
        handler = NATIVE["gemini"].handler_of(server)
        assert isinstance(await outcome(handler), OnlyToolCall)
        assert isinstance(await outcome(handler, on_text=IGNORED.append), OnlyToolCall)


@pytest.mark.parametrize("kind", ["server_tool_use", "mcp_tool_use"])
async def test_tools_of_anthropics_servers_are_tools(kind: str) -> None:
    call: dict[str, Any] = {"type": kind, "id": "1", "name": "f", "input": {}}
    async with FakeAnthropic([Stream([call], "pause_turn")]) as server:
        got = await outcome(NATIVE["anthropic"].handler_of(server), on_text=IGNORED.append)
    assert isinstance(got, OnlyToolCall)


# --- keys -----------------------------------------------------------------------------------------


async def test_a_missing_key_is_named() -> None:
    for handler, names in (
        (AnthropicHandler("m"), "ANTHROPIC_API_KEY"),
        (GeminiHandler("m"), "GEMINI_API_KEY or GOOGLE_API_KEY"),
    ):
        got = await outcome(handler)
        assert isinstance(got, NoAccess)
        assert f"set {names}" in str(got)


async def test_variables_of_the_sdk_move_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeAnthropic([Text("x")]) as other, FakeGemini([Text("x")]) as others:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", other.base_url)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", others.base_url)
        monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "Authorization: Bearer of-another\nX-Extra: secret")
        monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "of-another")
        monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
        monkeypatch.setenv("GOOGLE_API_KEY", "of-another")
        async with FakeAnthropic([Text("x")]) as server:
            assert isinstance(await outcome(NATIVE["anthropic"].handler_of(server)), Completion)
        headers = json.dumps(dict(server.requests[0].headers))
        assert "of-another" not in headers
        assert "secret" not in headers.replace(KEY, "")
        async with FakeGemini([Text("x")]) as server:
            assert isinstance(await outcome(NATIVE["gemini"].handler_of(server)), Completion)
        assert server.requests[0].headers["x-goog-api-key"] == KEY
    assert not other.requests
    assert not others.requests


@pytest.mark.parametrize("name", list(NATIVE))
async def test_a_key_with_a_line_end_is_stripped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    async with NATIVE[name].server([Text("x")]) as server:
        handler = NATIVE[name].handler("m", base_url=server.base_url, api_key_env="MY_KEY")
        assert isinstance(await outcome(handler), Completion)
    assert KEY in server.requests[0].headers.values() or server.requests[0].key == KEY


# --- task files and short names -------------------------------------------------------------------


def test_short_names_stand_for_the_handlers() -> None:
    assert model_named("anthropic/claude-x", {}) == AnthropicSpec(handler="anthropic", model="claude-x")
    assert model_named("gemini/g-1", {}) == GeminiSpec(handler="gemini", model="g-1")
    handler = model_named("anthropic/claude-x", {}).build("worker", Path(), 8)
    assert (handler.model, handler.base_url) == ("claude-x", "https://api.anthropic.com")


def test_a_wrong_option_of_a_task_file_is_a_task_error() -> None:
    spec = AnthropicSpec(handler="anthropic", model="m", thinking=1)
    with pytest.raises(TaskError, match="worker: thinking: a budget has at least 1024"):
        spec.build("worker", Path(), 8)


@pytest.mark.parametrize("name", list(NATIVE))
async def test_a_run_uses_them(name: str) -> None:
    backend = NATIVE[name]
    async with backend.server(
        [Text("```repl\nFINAL(worker('w'))\n```"), Text("found", usage=(1000, 10))]
    ) as server:
        result = await arun(
            query="q", context="c", supervisor=backend.handler_of(server), worker=backend.handler_of(server)
        )
    assert result.answer == "found"
    assert (result.worker_usage.input_tokens, result.worker_usage.cache_read_tokens) == (1000, 0)
