"""The interface of a task: examples, their contexts, and a score for an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from ..handlers import Completion, Message

# Sends messages to the judge; raises HandlerError. The caller of ``Task.score`` provides it.
Ask = Callable[[Sequence[Message]], Awaitable[Completion]]


# The message names the file and line, and what to do.
class TaskDataError(Exception):
    """The data or an option is wrong."""


# The judge was asked twice. The answer is not at fault, so it gets no score.
class JudgeError(Exception):
    """The judge gave no readable verdict."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question about a document."""

    # A sample example: Example(id="needle-0003", query="What is the special magic number for tall-otter?",
    # references=("7215043",)).

    # Unique in its task, the same on every machine; letters, digits, ".", "_" and "-". It names a folder of
    # the run log.
    id: str
    query: str
    # Right answers for people to read; a scorer may know more.
    references: tuple[str, ...] = ()
    # The document's name. A split never separates examples of one document.
    document: str = ""
    # The class in reports, such as "extractive".
    kind: str = ""
    # What else the task needs, as plain JSON.
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Document:
    """The bytes of a file whose text is the context. The caller of ``Task.context`` converts it."""

    # What messages call it.
    name: str
    data: bytes
    # Keep HTML as it is.
    raw_html: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """The score of an answer; all figures are from 0 to 1."""

    # The main figure.
    value: float
    # None if only a judge can decide and none was asked.
    correct: bool | None
    # All figures by name, the main one too: {"f1": 0.5, "judge": 1.0}.
    metrics: Mapping[str, float]
    # The class of the score, if it differs from the example's.
    kind: str = ""
    # One line for people, such as the judge's reason.
    note: str = ""


class Task(ABC):
    """A task: a frozen pydantic model or dataclass of its options."""

    # A subclass can be pickled, for other processes. Its constructor reads no data.
    name: ClassVar[str]

    @property
    def wants_judge(self) -> bool:
        """Whether ``score`` uses a judge with these options."""
        return False

    @property
    def judge_decides(self) -> bool:
        """Whether the verdict is the main figure. If not, the score holds without one."""
        return True

    @abstractmethod
    def examples(self) -> Sequence[Example]:
        """Return all examples, in the same order everywhere.

        Raises:
            TaskDataError: the data is missing or wrong.
        """

    @abstractmethod
    def context(self, example: Example) -> str | list[Any] | dict[str, Any] | Document:
        """Return the document of an example, equal at every call."""

    @abstractmethod
    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Score an answer; None scores 0.

        Raises:
            HandlerError: the call of ``judge`` failed.
            JudgeError: the judge gave no verdict.
        """

    @abstractmethod
    def data_hash(self) -> str:
        """Return a SHA-256 of all that decides examples, contexts and references."""

    def sample(self, n: int, seed: int) -> list[Example]:
        """Return ``n`` examples drawn with the seed; all, in order, if n is -1."""
        examples = list(self.examples())
        if n < 0:
            return examples
        # The whole list is shuffled, so that a larger n starts with the same examples.
        Random(seed).shuffle(examples)  # noqa: S311 - not for secrets
        return examples[:n]
