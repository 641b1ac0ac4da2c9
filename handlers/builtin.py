"""A supervisor and a worker without a language model, for machines without a key or a GPU.

Both are deterministic: a fixed map-reduce strategy, and BM25 over sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .base import Completion, Message, ModelHandler, Price, Usage

NOTICE = "No model is configured: `builtin` answers by word statistics and is not a language model."

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])|\n+")
_WRAPPED = re.compile(r"(?<=\S)(?<![.!?:])\n(?=[^\W\d_])")
_WRAP_COLUMN = 60
_QUESTION = re.compile(r"^Question:[ \t]*(.+)$", re.MULTILINE)
_TEXT = re.compile(r"^Text:[ \t]*\n?", re.MULTILINE)

_LOOK = """\
I look at the document before I decide how to read it.

```repl
text = context if isinstance(context, str) else "\\n".join(
    item if isinstance(item, str) else repr(item)
    for item in (context.items() if isinstance(context, dict) else context)
)
print(type(context).__name__, len(text), "characters")
print(text[:300])
```
"""

_READ = """\
I cut it into chunks that fit the worker, at the ends of lines, and ask about all of them at once.

```repl
CHUNK = {chunk}
chunks, start = [], 0
while start < len(text):
    end = min(len(text), start + CHUNK)
    if end < len(text):
        cut = max(text.rfind("\\n", start, end), text.rfind(". ", start, end))
        end = cut + 1 if cut > start + CHUNK // 2 else end
    chunks.append(text[start:end])
    start = end
prompt = "Copy the sentences of the text that best answer the question.\\nQuestion: {{}}\\nText:\\n{{}}"
question = " ".join(query.split())
found = worker_batch([prompt.format(question, chunk) for chunk in chunks], return_errors=True)
passages = [reply for reply in found if isinstance(reply, str) and reply.strip()]
print(len(chunks), "chunks,", len(passages), "with an answer")
```
"""

_AGGREGATE = """\
I ask once more, over what was found alone, and answer with the best of it.

```repl
evidence = "\\n".join(passages) if passages else text[:CHUNK]
answer = worker(prompt.format(question, evidence[: 2 * CHUNK]))
FINAL(answer if answer.strip() else "Unanswerable")
```
"""


class BuiltinSupervisor(ModelHandler):
    """Map and reduce in three turns."""

    price = Price(0, 0)

    def __init__(self, *, worker_ctx_k: int = 8) -> None:
        self.model = "builtin-supervisor"
        # Half the worker's window, at a careful three characters a token.
        self._steps = (_LOOK, _READ.format(chunk=worker_ctx_k * 1000 * 3 // 2), _AGGREGATE)

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Return the next step."""
        # One assistant message for each step so far.
        turn = sum(message["role"] == "assistant" for message in messages)
        text = self._steps[min(turn, len(self._steps) - 1)]
        return Completion(text, _usage(messages, text))


class BuiltinWorker(ModelHandler):
    """Return the sentences that match a question best, in text order.

    A prompt has a line ``Question: …`` and a line ``Text:`` before the text. Otherwise its longest paragraph
    is the text.
    """

    price = Price(0, 0)

    def __init__(self, *, sentences: int = 3) -> None:
        self.model = "builtin-worker"
        self._sentences = sentences

    def chat(self, messages: Sequence[Message]) -> Completion:
        """Extract the sentences."""
        question, text = split_prompt(messages[-1]["content"])
        answer = " ".join(best_sentences(question, text, self._sentences))
        return Completion(answer, _usage(messages, answer))


def split_prompt(prompt: str) -> tuple[str, str]:
    """Return the question and the text of a prompt."""
    question, text = _QUESTION.search(prompt), _TEXT.search(prompt)
    if question and text and question.end() <= text.start() + 1:
        return question.group(1), prompt[text.end() :]
    paragraphs = [part for part in prompt.split("\n\n") if part.strip()]
    if len(paragraphs) < 2:
        return prompt, prompt
    longest = max(range(len(paragraphs)), key=lambda i: len(paragraphs[i]))
    rest = "\n".join(part for i, part in enumerate(paragraphs) if i != longest)
    return rest, paragraphs[longest]


def best_sentences(question: str, text: str, count: int) -> list[str]:
    """Return the ``count`` best sentences for a question, in text order.

    Ranks by BM25 (Robertson and others, 1994; Lucene's variant).
    """
    import bm25s  # pyright: ignore[reportMissingTypeStubs]  # the library has no types

    library: Any = bm25s
    sentences = [part.strip() for part in _SENTENCE.split(_unwrap(text)) if part.strip()]
    corpus: list[list[str]] = library.tokenize(sentences, show_progress=False, return_ids=False)
    (words,) = library.tokenize([question], show_progress=False, return_ids=False)
    vocabulary = {word for tokens in corpus for word in tokens}
    # Words that no sentence has cannot score.
    known = [word for word in words if word in vocabulary]
    if not known:
        return []
    index = library.BM25()
    index.index(corpus, show_progress=False)
    scores: list[float] = index.get_scores(known).tolist()
    # A score of 0: the sentence has no word of the question.
    best = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))[:count]
    return [sentences[i] for i in sorted(best)]


# A line that ends near the column where text is wrapped continues in the next one.
def _unwrap(text: str) -> str:

    def join(match: re.Match[str]) -> str:
        line = match.start() - text.rfind("\n", 0, match.start()) - 1
        return " " if line >= _WRAP_COLUMN else "\n"

    return _WRAPPED.sub(join, text)


def _usage(messages: Sequence[Message], answer: str) -> Usage:
    return Usage(sum(len(message["content"].split()) for message in messages), len(answer.split()), 1)
