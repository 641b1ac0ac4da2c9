"""Whole runs over HTTP: the openai SDK against a real local server that plays supervisor and worker."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from support import block

from supdist.engine import RunResult, SandboxConfig, arun
from supdist.handlers import OpenAIHandler, Unavailable
from supdist.tools.testing.fake_openai import Drop, FakeOpenAI, Malformed, Reply, Request, Status, Text

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]


async def ask(server: FakeOpenAI, context: Any = "the document", **options: Any) -> RunResult:
    def handler(model: str) -> OpenAIHandler:
        return OpenAIHandler(
            model, base_url=server.base_url, api_key="k", timeout=2.0, max_retries=options.pop("retries", 2)
        )

    return await arun(query="why?", context=context, supervisor=handler("big"), worker=handler("small"),
                      sandbox=SandboxConfig(), **options)  # fmt: skip


async def test_every_paper_is_answered_over_http_with_usage_from_the_server(
    papers: list[dict[str, Any]],
) -> None:
    turns = Counter[str]()

    def play(request: Request) -> Reply:
        if request.model == "small":
            return Text("part " + str(len(request.body["messages"][-1]["content"])))
        turns[request.model] += 1
        asked = sum(message["role"] == "assistant" for message in request.body["messages"])
        code = (
            (
                "parts = [context[i:i + 8000] for i in range(0, len(context), 8000)]\n"
                "found = worker_batch(parts)\nprint(found)"
            ),
            "FINAL(' | '.join(found))",
        )[asked]
        return Text(block(code))

    async with FakeOpenAI(play) as server:
        for paper in papers:
            result = await ask(server, context=paper["text"])
            sizes = [min(8000, len(paper["text"]) - start) for start in range(0, len(paper["text"]), 8000)]
            assert result.answer == " | ".join(f"part {size}" for size in sizes)
            assert result.worker_usage.calls == len(sizes)
            assert result.supervisor_usage.calls == 2
        billed = Counter(entry.model for entry in server.ledger)
    assert billed["big"] == 16
    assert turns["big"] == 16


async def test_trouble_on_the_way_is_retried_and_the_answers_keep_their_places() -> None:
    """429, 500, a broken body, a dropped connection and delays, each at the first attempt of one prompt."""
    trouble: dict[str, Reply] = {
        "p0": Status(429, headers={"retry-after": "0"}),
        "p1": Status(500, headers={"retry-after": "0"}),
        "p2": Drop(),
        "p3": Text("P3", delay=0.2),
        "p4": Text("P4", delay=0.1),
    }

    def play(request: Request) -> Reply:
        if request.model == "big":
            return Text("```repl\nFINAL(worker_batch([f'p{i}' for i in range(6)]))\n```")
        prompt = request.body["messages"][-1]["content"]
        return trouble.pop(prompt, Text(prompt.upper()))

    async with FakeOpenAI(play) as server:
        result = await ask(server)
    assert result.answer == '["P0", "P1", "P2", "P3", "P4", "P5"]'
    assert result.worker_usage.calls == 6
    assert len(server.requests) == 1 + 6 + 3, "one more attempt for each that failed"


async def test_what_fails_for_good_is_typed_in_its_slot() -> None:
    def play(request: Request) -> Reply:
        if request.model == "big":
            code = (
                "r = worker_batch(['ok', 'auth', 'long', 'broken'], return_errors=True)\n"
                "FINAL([getattr(x, 'code', x) for x in r])"
            )
            return Text(block(code))
        return {
            "ok": Text("fine"),
            "auth": Status(401),
            "long": Status(400, code_name="context_length_exceeded"),
            "broken": Malformed(b'{"choices": [{"mess'),
        }[request.body["messages"][-1]["content"]]

    async with FakeOpenAI(play) as server:
        result = await ask(server)
    assert result.answer == '["fine", "refused", "too_long", "unavailable"]'


async def test_a_supervisor_whose_endpoint_stays_down_fails_the_run() -> None:
    async with FakeOpenAI(lambda _: Status(503, headers={"retry-after": "0"})) as server:
        with pytest.raises(Unavailable, match="the endpoint answered 503"):
            await ask(server)
    assert len(server.requests) == 3
