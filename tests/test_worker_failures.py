"""A worker that gives no answer ends its run, whatever the supervisor's code makes of the errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from broker_support import Place, serving
from support import SMALL_CONFIG, block, read_events

from supdist.engine import RunResult, arun
from supdist.engine.service import RemoteHandler
from supdist.handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    NoAccess,
    OnlyToolCall,
    OpenAIHandler,
    Rejected,
    ScriptedHandler,
    Unavailable,
    Unreachable,
    Usage,
)
from supdist.tools.testing.fake_openai import FakeOpenAI, Status

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]

HIDING = """
try:
    found = worker_batch([f'part {n}' for n in range(400)])
except BaseException:
    found = 'a guess'
"""


async def ask(worker: ModelHandler, *replies: str, **options: Any) -> tuple[RunResult, ScriptedHandler]:
    supervisor = ScriptedHandler(replies)
    result = await arun(
        query="q", context="c", supervisor=supervisor, worker=worker, sandbox=SMALL_CONFIG, **options
    )
    return result, supervisor


@pytest.mark.parametrize(
    ("status", "words"), [(401, "key"), (402, "key"), (404, "key"), (None, "Connection refused")]
)
async def test_a_worker_that_is_dead_for_good_ends_the_run_after_the_first_calls(
    status: int | None, words: str, tmp_path: Path
) -> None:
    async with FakeOpenAI(lambda _: Status(status or 500)) as server:
        url = server.base_url if status else "http://127.0.0.1:9/v1"
        worker = OpenAIHandler("small", base_url=url, api_key="k", max_retries=1)
        result, supervisor = await ask(worker, block(HIDING), block("FINAL(found)"), log_dir=tmp_path)
        requests = len(server.requests)
    assert (result.answer, result.stop_reason, result.iterations) == (None, "worker_failed", 1)
    assert result.worker_calls == 400
    assert dict(result.failed_calls) == {"unreachable" if status is None else "no_access": 400}
    assert result.failure is not None
    assert "the worker small answered none of 400 calls: the " in result.failure
    assert words in result.failure
    assert requests <= 64, "the rest of the batch is not sent"
    assert len(supervisor.calls) == 1, "no guess is asked for"
    end = read_events(tmp_path, "supervisor")[-1]
    assert (end["event"], end["stop_reason"], end["failure"]) == ("run_end", "worker_failed", result.failure)
    assert end["failed_calls"] == dict(result.failed_calls)


@pytest.mark.parametrize("code", ["FINAL('found')\n" + HIDING, HIDING + "FINAL('found')"])
async def test_an_answer_of_the_block_that_met_the_dead_worker_is_kept(code: str) -> None:
    result, _ = await ask(ScriptedHandler([NoAccess("no credit")] * 400), block(code) + "\n" + block("1 / 0"))
    assert (result.answer, result.stop_reason) == ("found", "worker_failed")
    assert result.failure is not None
    assert "no credit. Check its key" in result.failure


async def test_code_that_never_gives_up_is_stopped() -> None:
    code = "while True:\n    try: worker('x')\n    except Exception: pass"
    result, _ = await ask(ScriptedHandler(lambda _: NoAccess("no such model")), block(code))
    assert (result.answer, result.stop_reason) == (None, "worker_failed")
    assert result.elapsed < 15


@pytest.mark.parametrize(
    ("error", "turns"),
    [
        (Unavailable("503"), 3),
        (Unavailable("429", reason="rate_limit"), 3),
        (RuntimeError("a bug of the handler"), 3),
        (NoAccess("401"), 1),
        (Unreachable("refused"), 1),
        # Another prompt may be accepted, so the supervisor goes on to its end.
        (Rejected("400"), 5),
    ],
)
async def test_what_may_pass_is_tried_in_three_calls(error: Exception, turns: int) -> None:
    class Failing(ModelHandler):
        async def chat(self, messages: Sequence[Message]) -> Completion:
            raise error

    hiding = block("try: worker('x')\nexcept Exception as e: print(e)")
    result, supervisor = await ask(Failing(), *[hiding] * 4, block("FINAL('a guess')"))
    assert (result.stop_reason, len(supervisor.calls)) == ("worker_failed", turns)
    assert result.answer == ("a guess" if turns == 5 else None)


async def test_a_single_failed_call_without_an_answer_makes_any_end_a_failure() -> None:
    """Else the code catches it, guesses, and the run looks answered."""
    hiding = block("try: worker('x')\nexcept Exception: FINAL('a guess')")
    result, _ = await ask(ScriptedHandler([Unavailable("503")]), hiding)
    assert (result.answer, result.stop_reason) == ("a guess", "worker_failed")
    result, _ = await ask(
        ScriptedHandler([Unavailable("503")]), block("worker('x')"), "a best answer", max_iterations=1
    )
    assert (result.answer, result.stop_reason) == ("a best answer", "worker_failed")


async def test_a_worker_that_answered_once_is_not_dead_and_what_failed_is_counted() -> None:
    errors: list[HandlerError] = [
        NoAccess("a"), Unavailable("b", reason="rate_limit"), Unavailable("c", reason="timeout"),
        Unavailable("d"), Rejected("e"), Unreachable("f"), ContextTooLong("g"),
    ]  # fmt: skip
    replies = ["yes", *errors, Completion("no", finish_reason="refusal")]
    code = "r = worker_batch([str(n) for n in range(9)], return_errors=True)\nFINAL(r[0])"
    worker = ScriptedHandler(replies)
    worker.max_concurrency = 1
    result, _ = await ask(worker, block(code))
    assert (result.answer, result.stop_reason, result.failure) == ("yes", "final", None)
    kinds = [
        "no_access",
        "rate_limit",
        "timeout",
        "unavailable",
        "rejected",
        "unreachable",
        "too_long",
        "refusal",
    ]
    assert dict(result.failed_calls) == dict.fromkeys(kinds, 1)
    assert result.worker_calls == 9


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (Completion(" ", Usage(9, 64, 1), "length", "hm"), "cut_off", "cut at max_tokens 64"),
        (Completion("", Usage(9, 3, 1), "tool_call"), "refused", "called a tool"),
        (OnlyToolCall(Completion("", Usage(9, 3, 1), "tool_call")), "refused", "called a tool"),
    ],
)
async def test_a_reply_without_text_is_an_error_that_says_why(
    reply: Completion | HandlerError, code: str, words: str
) -> None:
    worker = ScriptedHandler([reply])
    worker.max_tokens = 64
    guess = "try: worker('x')\nexcept WorkerError as e: FINAL(f'{e.code}: {e.message}')"
    result, _ = await ask(worker, block(guess))
    assert (result.stop_reason, result.worker_usage.calls) == ("final", 1)
    assert result.answer is not None
    assert result.answer.startswith(code)
    assert words in result.answer
    assert dict(result.failed_calls) == {"cut_off" if code == "cut_off" else "refusal": 1}


async def test_a_cut_answer_with_text_is_an_answer() -> None:
    result, _ = await ask(
        ScriptedHandler([Completion("half", finish_reason="length")]), block("FINAL(worker('x'))")
    )
    assert result.answer == "half"


async def test_prompts_that_are_too_long_or_over_budget_are_not_the_workers_fault() -> None:
    result, _ = await ask(
        ScriptedHandler([ContextTooLong("x")]), block("try: worker('x')\nexcept Exception: FINAL('read it')")
    )
    assert (result.answer, result.stop_reason, result.failure) == ("read it", "final", None)


async def test_a_broker_service_passes_the_death_of_its_model_on(tmp_path: Path) -> None:
    place = Place(f"ipc://{tmp_path}/broker", None)
    async with serving(place, ScriptedHandler(lambda _: NoAccess("wrong key"))) as service:
        result, _ = await ask(RemoteHandler("worker", service.address), block(HIDING))
    assert result.stop_reason == "worker_failed"
    assert set(result.failed_calls) == {"no_access"}
