"""The built-in worker answers in slices what whole regexes and the library ``bm25s`` answer at once."""

from __future__ import annotations

import re
from typing import Any

import bm25s  # pyright: ignore[reportMissingTypeStubs]  # the library has no types
from hypothesis import given, settings
from hypothesis import strategies as st

from supdist.handlers import BuiltinWorker, Completion, Usage
from supdist.handlers.passages import PIECE

_LIBRARY: Any = bm25s
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])|\n+")
_WRAPPED = re.compile(r"(?<=\S)(?<![.!?:])\n(?=[^\W\d_])")
_QUESTION = re.compile(r"^Question:[ \t]*(.+)$", re.MULTILINE)
_TEXT = re.compile(r"^Text:[ \t]*\n?", re.MULTILINE)


def at_once(prompt: str) -> Completion:
    """The answer in one go."""
    question, text = _split(prompt)
    answer = " ".join(_best(question, text, 3))
    return Completion(answer, Usage(len(prompt.split()), len(answer.split()), 1))


def _split(prompt: str) -> tuple[str, str]:
    question, text = _QUESTION.search(prompt), _TEXT.search(prompt)
    if question and text and question.end() <= text.start() + 1:
        return question.group(1), prompt[text.end() :]
    paragraphs = [part for part in prompt.split("\n\n") if part.strip()]
    if len(paragraphs) < 2:
        return prompt, prompt
    longest = max(range(len(paragraphs)), key=lambda i: len(paragraphs[i]))
    return "\n".join(part for i, part in enumerate(paragraphs) if i != longest), paragraphs[longest]


def _best(question: str, text: str, count: int) -> list[str]:
    def join(match: re.Match[str]) -> str:
        line = match.start() - text.rfind("\n", 0, match.start()) - 1
        return " " if line >= 60 else "\n"

    unwrapped = _WRAPPED.sub(join, text)
    sentences = [part.strip() for part in _SENTENCE.split(unwrapped) if part.strip()]
    corpus: list[list[str]] = _LIBRARY.tokenize(sentences, show_progress=False, return_ids=False)
    (words,) = _LIBRARY.tokenize([question], show_progress=False, return_ids=False)
    vocabulary = {word for tokens in corpus for word in tokens}
    known = [word for word in words if word in vocabulary]
    if not known:
        return []
    index = _LIBRARY.BM25()
    index.index(corpus, show_progress=False)
    scores: list[float] = index.get_scores(known).tolist()
    best = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))[:count]
    return [sentences[i] for i in sorted(best)]


_PARTS = st.sampled_from([
    "the", "Red", "fox", "FOX", "runs", "\u03a3\u0391\u03a3", "stra\u00dfe", "\u00c9t\u00e9", "a", "7", "_x",
    "'", ". ", "! ", "? \"", ".\n", "\n", "\n\n", "\n\n\n", " ", "   ", "\t", "\u2003", "\x1c", ":", ", ",
    "(", "]", "Question: ", "Question:", "\nQuestion: fox runs", "\nText:\n", "Text:",
    "red fox runs over the green hill " * 2,
])  # fmt: skip
_MESSAGES = st.lists(_PARTS, max_size=40).map("".join)
# What stands before it, up to about the end of a piece.
_BEFORE = st.sampled_from(["x", " ", "\n", "Fox. ", "red fox\n", "a ", "\u03a3"])


@given(_MESSAGES)
@settings(max_examples=200, deadline=None)
async def test_answers_are_those_of_the_whole_text(prompt: str) -> None:
    assert await BuiltinWorker().chat([{"role": "user", "content": prompt}]) == at_once(prompt)


@given(st.sampled_from(["", "Question: red fox runs\nText:\n"]), _BEFORE, st.integers(0, 80), _MESSAGES)
@settings(max_examples=200, deadline=None)
async def test_answers_at_the_end_of_a_piece_are_those_of_the_whole_text(
    head: str, before: str, left: int, end: str
) -> None:
    prompt = head + (before * PIECE)[: PIECE - left] + end
    assert await BuiltinWorker().chat([{"role": "user", "content": prompt}]) == at_once(prompt)


async def test_long_texts_are_answered_as_whole_ones() -> None:
    line = "The red fox {} runs over hill {} and says: no! Then it sleeps. "
    text = "\n".join(line.format(i % 7, i) * (i % 3 + 1) for i in range(3000))
    for prompt in (f"Question: what does fox 5 say on hill 77\nText:\n{text}", f"Where is fox 3?\n\n{text}"):
        assert await BuiltinWorker().chat([{"role": "user", "content": prompt}]) == at_once(prompt)
