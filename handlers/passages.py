"""Find the sentences of a text that match a question, in slices: a regex over a long text holds a lock."""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Iterator
from importlib import import_module

from .slices import Steps

# Characters that a regex searches at once, in 1 ms.
PIECE = 1 << 14

# Small things that are handled at once.
_MANY = 500

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])|\n+")
_INK = re.compile(r"\S")
_STARTERS = "\"'(["
_WRAPPED = re.compile(r"(?<=\S)(?<![.!?:])\n(?=[^\W\d_])")
_WRAP_COLUMN = 60
_QUESTION = re.compile(r"^Question:[ \t]*(.+)$", re.MULTILINE)
_TEXT = re.compile(r"^Text:[ \t]*\n?", re.MULTILINE)
_WORD = re.compile(r"\w+")
_WORDS = re.compile(r"\w\w+")

# BM25's constants, as ``bm25s`` has them.
_K1, _B = 1.5, 0.75

# A sentence's place, and how often it has a word.
_POSTING = struct.Struct("=qf")


def split_prompt(prompt: str) -> Steps[tuple[str, str]]:
    """Return the question and the text of a prompt."""
    question = yield from _at_line_start(_QUESTION, "Question:", prompt)
    text = yield from _at_line_start(_TEXT, "Text:", prompt)
    if question and text and question.end() <= text.start() + 1:
        return question.group(1), prompt[text.end() :]
    return (yield from _longest_paragraph(prompt))


def _at_line_start(pattern: re.Pattern[str], start: str, text: str) -> Steps[re.Match[str] | None]:
    at = 0 if text.startswith(start) else text.find("\n" + start) + 1
    number = 0
    while at or not number:
        if found := pattern.match(text, at):
            return found
        at = text.find("\n" + start, at) + 1
        number += 1
        if not number % _MANY:
            yield
    return None


def _longest_paragraph(prompt: str) -> Steps[tuple[str, str]]:
    paragraphs: list[str] = []
    longest = at = number = 0
    while at <= len(prompt):
        end = prompt.find("\n\n", at)
        end = len(prompt) if end < 0 else end
        part = prompt[at:end]
        at = end + 2
        if part and not part.isspace():
            if paragraphs and len(part) > len(paragraphs[longest]):
                longest = len(paragraphs)
            paragraphs.append(part)
        number += 1
        if not number % _MANY:
            yield
    if len(paragraphs) < 2:
        return prompt, prompt
    text = paragraphs.pop(longest)
    lines: list[str] = []
    for start in range(0, len(paragraphs), _MANY):
        lines.append("\n".join(paragraphs[start : start + _MANY]))
        yield
    yield from _free(paragraphs)
    return "\n".join(lines), text


def best_sentences(question: str, text: str, count: int, stopwords: frozenset[str]) -> Steps[list[str]]:
    """Return the ``count`` best sentences for a question, in text order.

    Ranks by BM25 (Robertson and others, 1994; Lucene's variant), as the library ``bm25s`` does.
    """
    sentences = yield from _sentences((yield from _unwrap(text)))
    words = yield from _words(question, stopwords)
    index = _Index()
    yield from index.want(words)
    for number, sentence in enumerate(sentences):
        yield from index.add((yield from _words(sentence, stopwords)))
        # A short one takes 10 us.
        if len(sentence) > 1000 or not number % 20:
            yield
    best = yield from index.best(words, count)
    found = [sentences[i] for i in sorted(best)]
    yield from _free(sentences)
    yield from _free(words)
    yield from index.free()
    return found


def word_count(text: str) -> Steps[int]:
    """Return ``len(text.split())``."""
    count = 0
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        count += len(piece.split())
        # A word that lies in both pieces was counted twice.
        if start and not text[start - 1].isspace() and not piece[0].isspace():
            count -= 1
        yield
    return count


# A line that ends near the column where text is wrapped continues in the next one.
def _unwrap(text: str) -> Steps[str]:
    pieces: list[str] = []
    last = 0
    for start in range(0, len(text), PIECE):
        # The search sees the character behind the piece.
        for found in _WRAPPED.finditer(text, start, min(len(text), start + PIECE + 1)):
            line = found.start() - text.rfind("\n", 0, found.start()) - 1
            if line >= _WRAP_COLUMN:
                pieces += (text[last : found.start()], " ")
                last = found.end()
        yield
    pieces.append(text[last:])
    return "".join(pieces)


def _sentences(text: str) -> Steps[list[str]]:
    sentences: list[str] = []
    parts: list[str] = []
    at = 0
    while at < len(text):
        end = at + PIECE
        is_cut = end < len(text)
        if is_cut and (text[end - 1].isspace() or text[end].isspace()):
            # The space is looked at as a whole. A piece begins with ink, but for the first.
            end = at + len(text[at:end].rstrip())
        # No sentence ends inside a word, so a piece may.
        first, *more = _SENTENCE.split(text[at:end])
        parts.append(first)
        for part in more:
            _add("".join(parts), sentences)
            parts = [part]
        at = end
        yield
        if is_cut and text[end].isspace():
            at = yield from _end_of_space(text, end)
            if "\n" in text[end:at] or (
                text[end - 1 : end] in (".", "!", "?") and _may_start(text[at : at + 1])
            ):
                _add("".join(parts), sentences)
                parts = []
            else:
                parts.append(text[end:at])
    _add("".join(parts), sentences)
    return sentences


def _may_start(character: str) -> bool:
    return "A" <= character <= "Z" or (character != "" and character in _STARTERS)


def _end_of_space(text: str, at: int) -> Steps[int]:
    while at < len(text):
        if found := _INK.search(text, at, at + PIECE):
            return found.start()
        at += PIECE
        yield
    return len(text)


def _add(sentence: str, sentences: list[str]) -> None:
    if sentence := sentence.strip():
        sentences.append(sentence)


def load_stopwords() -> frozenset[str]:
    """Import the libraries (0.3 s), and return the words that are no search words."""
    # Not in the event loop: it takes long.
    import_module("numpy")
    from bm25s.stopwords import STOPWORDS_EN  # pyright: ignore[reportMissingTypeStubs]  # the library has no types

    return frozenset(STOPWORDS_EN)


def _words(text: str, stopwords: frozenset[str]) -> Steps[list[str]]:
    """Return the words as ``bm25s.tokenize`` does."""
    if len(text) < PIECE:
        return [word for word in _WORDS.findall(text.lower()) if word not in stopwords]
    lower: list[str] = []
    for piece in _lower_pieces(text):
        lower.append(piece.lower())
        yield
    text = "".join(lower)
    words: list[str] = []
    at = number = 0
    while at < len(text):
        number += 1
        if not number % _MANY:
            yield
        found = _WORD.search(text, at, at + PIECE)
        if found is None:
            at += PIECE
            yield
            continue
        if found.end() == at + PIECE:
            # It may go on.
            found = _WORD.match(text, found.start())
            assert found is not None, "it began here"
        at = found.end()
        if len(word := found[0]) > 1 and word not in stopwords:
            words.append(word)
    return words


def _lower_pieces(text: str) -> Iterator[str]:
    # How a capital sigma is written small depends on the letters around it, and on nothing behind a space.
    if "\u03a3" in text:
        yield text
        return
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


class _Index:
    """How often the words of a question stand in each sentence."""

    def __init__(self) -> None:
        self._lengths = array("q")
        # For each word the sentences that have it, and how often. The collector does not walk bytes.
        self._found: dict[str, bytearray] = {}

    def want(self, words: list[str]) -> Steps[None]:
        """Count these words."""
        for number, word in enumerate(words):
            if word not in self._found:
                self._found[word] = bytearray()
            if not number % _MANY:
                yield

    def add(self, words: list[str]) -> Steps[None]:
        """Add a sentence; empty the list."""
        length = len(words)
        counts: dict[str, int] = {}
        while words:
            for word in words[-_MANY:]:
                if word in self._found:
                    counts[word] = counts.get(word, 0) + 1
            del words[-_MANY:]
            if words:
                yield
        number = 0
        while counts:
            word, count = counts.popitem()
            self._found[word] += _POSTING.pack(len(self._lengths), count)
            number += 1
            if not number % _MANY:
                yield
        self._lengths.append(length)

    def free(self) -> Steps[None]:
        """Forget all, in slices."""
        number = 0
        while self._found:
            self._found.popitem()
            number += 1
            if not number % _MANY:
                yield

    def best(self, words: list[str], count: int) -> Steps[list[int]]:
        """Return the sentences with the highest scores for the words."""
        if not any(self._found.values()):
            return []
        import numpy as np

        lengths = np.frombuffer(self._lengths, dtype=np.int64)
        mean = lengths.mean()
        scores = np.zeros(len(lengths), dtype=np.float32)
        for number, word in enumerate(words):
            # A word that no sentence has cannot score.
            if not self._found[word]:
                if not number % _MANY:
                    yield
                continue
            postings = np.frombuffer(self._found[word], dtype=[("place", "=i8"), ("count", "=f4")])
            places, often = postings["place"], postings["count"]
            rarity = math.log(1 + (len(lengths) - len(places) + 0.5) / (len(places) + 0.5))
            # The types and the order of the library: the last bit of a score may decide.
            share = often / (_K1 * ((1 - _B) + _B * lengths[places] / mean) + often)
            scores[places] += (np.float64(np.float32(rarity)) * share).astype(np.float32)
            if len(places) > 100 or not number % 20:
                yield
        best: list[tuple[float, int]] = []
        for start in range(0, len(scores), PIECE):
            part = scores[start : start + PIECE]
            order = np.argsort(-part, kind="stable")[:count]
            # A score of 0: the sentence has no word of the question.
            best += [(-float(part[i]), start + int(i)) for i in order if part[i] > 0]
            best = sorted(best)[:count]
            yield
        return [place for _, place in best]


def _free(texts: list[str]) -> Steps[None]:
    # Freed at once, a million of them take 30 ms.
    while texts:
        del texts[-_MANY:]
        yield
