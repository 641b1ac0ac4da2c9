"""What the direct strategy sends, where the document is longer than the window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import WordTokenizer

from supdist.engine.api import RunLimits
from supdist.handlers import Completion, ContextTooLong, Message, ScriptedHandler
from supdist.tools.evals.direct import Direct, conversation, most_characters, without_middle

pytestmark = pytest.mark.anyio

QUERY = "Which?"


@given(st.text(max_size=300), st.integers(0, 400))
def test_the_middle_is_cut_and_counted(text: str, keep: int) -> None:
    cut = without_middle(text, keep)
    if len(text) <= keep:
        assert cut == text
        return
    head, _, rest = cut.partition("\n[... ")
    left_out, _, tail = rest.partition(" characters of the document left out ...]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) == keep
    assert 0 <= len(head) - len(tail) <= 1
    assert int(left_out) == len(text) - keep


@pytest.mark.parametrize("words", [10, 1000, 100_000])
def test_with_a_tokenizer_the_window_is_used_and_not_passed(words: int) -> None:
    handler, text = WordTokenizer([]), "word " * words
    handler.max_tokens = 100
    keep = most_characters(handler, QUERY, text, 1000)
    used = handler.count_tokens(conversation(QUERY, text, keep))
    assert used is not None
    assert used <= 900, "an answer of 100 tokens has its room"
    assert keep == len(text) or used > 850


async def test_without_one_a_text_that_was_too_long_is_sent_shorter(tmp_path: Path) -> None:
    """Nobody pays for what the endpoint refuses."""

    def refuse_long(messages: Sequence[Message]) -> Completion | ContextTooLong | str:
        return ContextTooLong("no") if len(messages[-1]["content"]) > 5000 else "short enough"

    handler = ScriptedHandler(refuse_long)
    run = await Direct(handler, 10_000, RunLimits(), None).run(QUERY, "x" * 100_000, tmp_path)
    assert (run.answer, run.steps, run.stop_reason, run.supervisor.calls) == ("short enough", 1, "final", 1)
    lengths = [len(call[-1]["content"]) for call in handler.calls]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) > 2
    assert "characters of the document left out" in handler.calls[-1][-1]["content"]


async def test_a_budget_that_is_too_small_is_a_normal_end(tmp_path: Path) -> None:
    handler = ScriptedHandler(["never"])
    run = await Direct(handler, None, RunLimits(max_tokens=10), None).run(QUERY, "x", tmp_path)
    assert (run.answer, run.stop_reason, handler.calls) == (None, "budget", [])
