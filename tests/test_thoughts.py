"""Thoughts are no message: what is taken out of a model's text, and what stays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.engine import arun
from supdist.handlers import (
    Completion,
    Message,
    ModelHandler,
    ScriptedHandler,
    call_chat,
    call_chat_batch,
    call_chat_stream,
)
from supdist.handlers.slices import finish
from supdist.handlers.thoughts import MessageStream, split_thoughts

pytestmark = pytest.mark.anyio

ASKED: list[Message] = [{"role": "user", "content": "q"}]
DRAFT = "I could just say\n```repl\nFINAL('a guess')\n```\nbut no"
QUOTED = "```repl\ny = '''\n</think>\n'''\n```"
CODE = "```repl\nprint(len(context))\n```"


def split(text: str, *, has_reasoning: bool = False) -> tuple[str, str]:
    found = finish(split_thoughts(text, has_reasoning=has_reasoning))
    return found.text, found.thoughts


# As the reasoning parsers of vLLM and SGLang know them.
TAGS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<ifm|think>", "</ifm|think>"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("◁think▷", "◁/think▷"),
    ("[unused16]", "[unused17]"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("to=self<|message|>", "<|eom|>"),
    ("<|content_thinking|>", "<|end_message|>"),
]


@pytest.mark.parametrize(("opening", "closing"), TAGS, ids=[opening.strip() for opening, _ in TAGS])
def test_thoughts_between_any_tags_are_no_message(opening: str, closing: str) -> None:
    assert split(f"{opening}\n{DRAFT}\n{closing}\n\n{CODE}") == (CODE, DRAFT)
    assert split(f"{opening}hm{closing}42") == ("42", "hm")
    # Cut off before they end.
    assert split(f"{opening}{DRAFT}") == ("", DRAFT)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # A chat template has put the opening tag into the prompt.
        (f"{DRAFT}\n</think>\n\n{CODE}", (CODE, DRAFT)),
        ("hm.</think>The answer is 42.", ("The answer is 42.", "hm.")),
        ("hm\n[/THINK]\n42", ("42", "hm")),
        # A draft whose fence was never closed.
        (f"```repl\nFINAL('a guess')\nno\n</think>\n{CODE}", (CODE, "```repl\nFINAL('a guess')\nno")),
        ("<think>\n\n</think>\n\n42", ("42", "")),
        ("<think>a</think>\n<think>b</think>c", ("c", "a\n\nb")),
        ("\ufeff\n <think>a</think>b", ("b", "a")),
        # Tags that the thoughts quote.
        ("<think>x.split('</think>')</think>ok", ("ok", "x.split('</think>')")),
        (f"<think>\n{QUOTED}\n</think>ok", ("ok", QUOTED)),
        ('<think>I say "yes"</think>"yes"', ('"yes"', 'I say "yes"')),
        # Code in thoughts within the message.
        (f"Let me see.\n<think>\n{DRAFT}\n</think>\n{CODE}", (f"Let me see.\n\n{CODE}", DRAFT)),
        (f"<think>a</think>One.\n<think>b</think>\n{CODE}", (f"One.\n\n{CODE}", "a\n\nb")),
        # The answer has tags of its own.
        ("<think>a</think>\n<answer>\n42\n</answer>", ("42", "a")),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
            ("42", "a"),
        ),
        ("analysisWe think.assistantfinal42", ("42", "We think.")),
    ],
)  # fmt: skip
def test_thoughts_in_other_forms_are_found(text: str, answer: tuple[str, str]) -> None:
    assert split(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "Put it between <think> and </think>, as HTML.",
        "The tag `</think>` closes what `<think>` opens.",
        "The model emits </think> to close its thoughts.",
        "```repl\nparts = answer.split('</think>')\nprint(parts[1])\n```",
        "```repl\nparts = answer.split('\\n</think>\\n')\nprint(parts[1])\n```",
        '```python\nSYSTEM = """\nfirst thoughts\n</think>\nthen the answer\n"""\n```\nThat is all.',
        "```html\n<think>\nfoo\n</think>\n```",
        "The page says:\n<think>\nhello\n</think>\nand ends.",
        "A list:\n[THINK] is a tag, and so is [/THINK].",
        "1 < 2 [and] x<y, think!",
        "analysis of the text",
        "<p>no thoughts</p>",
        "",
    ],
)
def test_a_text_about_tags_stays_as_it_is(text: str) -> None:
    assert split(text) == (text, "")


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "```", "```repl", "\n", "a ", "'", '"', "[THINK]", " "]))
)
def test_nothing_of_a_text_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    rest, thoughts = split(text)
    assert rest.count("a") + thoughts.count("a") == text.count("a")
    # The engine may split what a handler has split.
    assert split(rest, has_reasoning=bool(thoughts))[0].count("a") <= rest.count("a")


@given(st.sampled_from(TAGS), st.integers(1, 7), st.text("ab\n", max_size=20))
def test_a_stream_shows_the_message_alone(tag: tuple[str, str], size: int, words: str) -> None:
    text = f"{tag[0]}hm{tag[1]}x{words}"
    shown: list[str] = []
    stream = MessageStream(shown.append)
    for start in range(0, len(text), size):
        stream.add(text[start : start + size])
    stream.finish()
    assert "".join(shown) == f"x{words}"


@given(st.text(max_size=50), st.integers(1, 9))
def test_a_stream_without_thoughts_is_passed_on(text: str, size: int) -> None:
    shown: list[str] = []
    stream = MessageStream(shown.append)
    for start in range(0, len(text), size):
        stream.add(text[start : start + size])
    stream.finish()
    assert "".join(shown) == text or not text.strip() or split(text) != (text, "")


class Batches(ModelHandler):
    """Answers conversations in batches."""

    def chat(self, messages: Sequence[Message]) -> Completion:
        return Completion("<think>hm</think>42")

    def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> list[Completion]:
        return [self.chat(messages) for messages in message_batches]


async def test_each_way_to_call_a_handler_takes_thoughts_out() -> None:
    expected = Completion("42", reasoning="hm")
    assert await call_chat(Batches(), ASKED) == expected
    assert await call_chat_batch(Batches(), [ASKED]) == [expected]
    shown: list[str] = []
    assert await call_chat_stream(Batches(), ASKED, shown.append) == expected
    assert shown == ["42"]


async def test_code_in_thoughts_is_not_executed_and_a_worker_answers_without_them() -> None:
    supervisor = ScriptedHandler([f"<think>{DRAFT}</think>\n```repl\nFINAL(worker('x'))\n```"])
    result = await arun(
        query="q", context="c", supervisor=supervisor, worker=ScriptedHandler(["<think>a guess</think>42"])
    )
    assert (result.answer, result.iterations) == ("42", 1)
