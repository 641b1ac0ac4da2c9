"""A supervisor and a worker without a language model, for machines without a key or a GPU.

Both are deterministic: a fixed map-reduce strategy, and BM25 over sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from anyio import to_thread

from .base import Completion, Message, ModelHandler, Price, Usage
from .passages import best_sentences, load_stopwords, split_prompt, word_count
from .slices import Steps, in_slices

NOTICE = "No model is configured: `builtin` answers by word statistics and is not a language model."

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
        return Completion(text, await in_slices(_usage(messages, text)))


class BuiltinWorker(ModelHandler):
    """Return the sentences that match a question best, in text order.

    A prompt has a line ``Question: …`` and a line ``Text:`` before the text. Otherwise its longest paragraph
    is the text.
    """

    price = Price(0, 0)

    def __init__(self, *, sentences: int = 3) -> None:
        self.model = "builtin-worker"
        self._sentences = sentences
        self._stopwords: frozenset[str] | None = None

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Extract the sentences."""
        if self._stopwords is None:
            self._stopwords = await to_thread.run_sync(load_stopwords, abandon_on_cancel=True)
        return await in_slices(self._answer(messages, self._stopwords))

    def _answer(self, messages: Sequence[Message], stopwords: frozenset[str]) -> Steps[Completion]:
        question, text = yield from split_prompt(messages[-1]["content"])
        answer = " ".join((yield from best_sentences(question, text, self._sentences, stopwords)))
        return Completion(answer, (yield from _usage(messages, answer)))


def _usage(messages: Sequence[Message], answer: str) -> Steps[Usage]:
    words = 0
    for message in messages:
        words += yield from word_count(message["content"])
    return Usage(words, (yield from word_count(answer)), 1)
