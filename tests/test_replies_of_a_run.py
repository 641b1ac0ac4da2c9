"""Replies that are cut off, have no code, or repeat: what runs, and what supervisor and user are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support import SMALL_CONFIG, block

from supdist.engine import RunResult, arun
from supdist.engine.cli.lines import Lines
from supdist.engine.cli.log import log
from supdist.engine.cli.panel import Panel
from supdist.engine.errors import CodeTooLong
from supdist.engine.events import Event, SupervisorReplied, Warned
from supdist.engine.sandbox import open_sandbox
from supdist.handlers import Completion, ScriptedHandler, Usage

pytestmark = pytest.mark.anyio


def cut(text: str, reasoning: str = "") -> Completion:
    return Completion(text, Usage(10, 2048, 1), "length", reasoning)


class Limited(ScriptedHandler):
    max_tokens = 2048


async def run(*replies: str | Completion, **options: Any) -> tuple[RunResult, list[str], list[Event]]:
    """Return the result, what the supervisor was told after each reply, and the events."""
    supervisor = Limited(replies)
    events: list[Event] = []
    result = await arun(
        query="q", context="c", supervisor=supervisor, worker=None, sandbox=SMALL_CONFIG,
        on_event=events.append, **options,
    )  # fmt: skip
    return result, [call[-1]["content"] for call in supervisor.calls[1:]], events


async def test_a_block_that_was_cut_off_is_not_executed_and_whole_ones_are() -> None:
    first = cut(f"{block('print(123)')}\n```repl\nFINAL('not checked')\n# if the")
    result, told, events = await run(first, block("FINAL('checked')"))
    assert result.answer == "checked"
    assert "123" in told[0]
    assert "cut off at the token limit (max_tokens 2,048)" in told[0]
    assert "incomplete was not executed" in told[0]
    assert [event.finish_reason for event in events if isinstance(event, SupervisorReplied)] == [
        "length",
        "stop",
    ]
    [warning] = [event.text for event in events if isinstance(event, Warned)]
    assert "turn 1: a reply of the supervisor" in warning
    assert "cut off at max_tokens 2,048. Raise max_tokens" in warning
    assert result.warnings == (warning,)


async def test_a_reply_that_was_cut_off_behind_its_blocks_answers() -> None:
    assert (await run(cut(f"{block('FINAL(1)')}\nSo the ans")))[0].answer == "1"


async def test_without_max_tokens_the_tokens_are_named() -> None:
    supervisor = ScriptedHandler([cut("Let me think"), block("FINAL(1)")])
    result = await arun(query="q", context="c", supervisor=supervisor, worker=None, sandbox=SMALL_CONFIG)
    assert "2,048 tokens, the model's own limit" in supervisor.calls[1][-1]["content"]
    assert "Set max_tokens of the supervisor" in result.warnings[0]


async def test_thoughts_that_take_all_tokens_end_the_run_after_two_turns() -> None:
    result, told, _ = await run(cut("", "hmm"), cut("", "hmm"), block("FINAL('too late')"))
    assert (result.answer, result.stop_reason, result.iterations) == (None, "cut_off", 2)
    assert result.supervisor_usage.calls == 2, "a best answer would be cut off, too"
    assert "you thought for too long" in told[0]
    assert "all tokens went to thoughts" in result.warnings[0]
    assert result.failure is not None
    assert "2 replies in a row were cut off" in result.failure
    assert "Raise max_tokens of the supervisor (it is 2,048)" in result.failure


async def test_what_blocks_printed_before_is_enough_for_a_best_answer() -> None:
    result, _, _ = await run(block("print(1)"), cut(""), cut(""), "42")
    assert (result.answer, result.stop_reason) == ("42", "cut_off")


async def test_one_reply_that_was_cut_off_ends_nothing() -> None:
    result, _, _ = await run(cut(""), "hm", cut(""), block("FINAL(1)"))
    assert (result.answer, result.stop_reason) == ("1", "final")
    assert len(result.warnings) == 1, "the user is told once"


async def test_a_best_answer_that_was_cut_off_is_not_asked_for_again() -> None:
    result, told, _ = await run(block("print(1)"), cut(""), max_iterations=1)
    assert len(told) == 1
    assert result.failure == "the supervisor's best answer was empty, and cut off at max_tokens 2,048"


async def test_cut_code_of_a_best_answer_is_not_executed() -> None:
    half = cut("```repl\nFINAL('half')\n# but")
    result, told, _ = await run(block("print(1)"), half, "42", max_iterations=1)
    assert (result.answer, len(told)) == ("42", 2)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Completion(""), "was empty"),
        (Completion("", reasoning="hmm"), "only thoughts"),
        (Completion("I can't help with that.", finish_reason="refusal"), "You declined"),
        (Completion("I will look."), "held no ```repl block"),
    ],
    ids=["empty", "thoughts", "refused", "words"],
)
async def test_each_reply_without_code_gets_the_note_that_fits(reply: Completion, words: str) -> None:
    _, told, _ = await run(reply, block("FINAL(1)"))
    assert words in told[0]


async def test_the_next_reply_without_code_gets_other_words() -> None:
    _, told, _ = await run("I will look.", "I look.", "I looked.", block("FINAL(1)"))
    assert "held no ```repl block" in told[0]
    assert "(2 messages in a row)" in told[1]
    assert "(3 messages in a row)" in told[2]


async def test_the_same_reply_with_the_same_result_is_named() -> None:
    _, told, _ = await run(*[block("print(5)")] * 3, block("FINAL(1)"))
    assert "same message" not in told[0]
    assert "same message as before (2 times in a row)" in told[1]
    assert "same message as before (3 times in a row)" in told[2]
    counting = block("n = globals().get('n', 0) + 1\nprint(n)")
    _, told, _ = await run(counting, counting, block("FINAL(1)"))
    assert "same message" not in told[1], "its result is another"


async def test_a_block_over_the_frame_limit_is_an_error_that_the_supervisor_sees() -> None:
    result, told, _ = await run(block(f"x = '{'a' * 9_000_000}'"), block("FINAL('ok')"))
    assert result.answer == "ok"
    assert "CodeTooLong: code of 9,000,006 characters is too long: at most 8,388,608 bytes" in told[0]
    async with open_sandbox(SMALL_CONFIG) as sandbox:
        with pytest.raises(CodeTooLong, match="Put the data into the context"):
            await sandbox.execute("#" * 9_000_000)
        assert (await sandbox.execute("print(1)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Completion("", Usage(1, 1, 1), "stop"), "the reply was empty"),
        (Completion("", Usage(1, 1, 1), "tool_call"), "the reply was only a tool call"),
        (Completion("I call it.", Usage(1, 1, 1), "tool_call"), "the reply was a tool call and text"),
        (Completion("", Usage(1, 1, 1), "stop", "hmm, hmm"), "the reply was only thoughts"),
        (Completion("I cannot help.", Usage(1, 1, 1), "refusal"), "the model refused to answer"),
        (Completion("The answer is 1.", Usage(1, 1, 1), "stop"), "the reply had no code"),
        (cut("Let me"), "the reply was cut off before it had whole code"),
    ],
)
async def test_a_turn_without_code_says_why_on_the_screen_and_in_the_log(
    reply: Completion, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _, events = await run(reply, block("FINAL(1)"), log_dir=tmp_path)
    assert result.answer == "1"
    lines, panel = Lines(), Panel("q", Console(stderr=True, width=200))
    for screen in (lines, panel):
        for event in events:
            screen.on_event(event)
        shown = capsys.readouterr().err
        assert f"turn 1: {why}; nothing was executed" in shown
        assert shown.count("nothing was executed") == 1
    log(tmp_path, whole=False)
    printed = capsys.readouterr().out
    assert printed.count("nothing was executed") == printed.count(f"  {why}; nothing was executed") == 1
    assert ("it thought, 8 characters" in printed) is bool(reply.reasoning)


async def test_a_best_answer_in_prose_is_no_turn_without_code(capsys: pytest.CaptureFixture[str]) -> None:
    result, _, events = await run(block("print(1)"), "It is 1.", max_iterations=1)
    assert result.answer == "It is 1."
    lines = Lines()
    for event in events:
        lines.on_event(event)
    assert "nothing was executed" not in capsys.readouterr().err
