"""What a benchmark is: examples, their contexts, and a score for an answer.

A sample example::

    Example(id="needle-0003", query="What is the special magic number for tall-otter?", references=("7215043",))

The data's source and the rule of the score stand at the top of each task's own file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from ..handlers import Completion, Message

Ask = Callable[[Sequence[Message]], Awaitable[Completion]]
"""How a task asks its judge. Whoever runs the task pays, caches and logs; it raises ``HandlerError``."""


class TaskDataError(Exception):
    """The data cannot be used, or an option is wrong: the message says which file and line, and what to do."""


class JudgeError(Exception):
    """The judge gave no verdict that can be read, however often it was asked. The answer itself is not at fault."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question about a document. It does not hold the document: ``Task.context`` gives that, when it is needed.

    Attributes:
        id: unique in its task, the same on every machine; letters, digits, ``.``, ``_`` and ``-`` only, so that it
            can name a folder.
        query: the question, as the supervisor is asked it.
        references: answers that count as right, for people to read; a scorer may know more.
        document: what the question is about. Examples of one document never stand on both sides of a split.
        kind: the class by which scores are broken down, as ``extractive`` or ``multi-key``; empty where there is none.
        data: what else the task needs to build the context or to score; plain JSON.
    """

    id: str
    query: str
    references: tuple[str, ...] = ()
    document: str = ""
    kind: str = ""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Score:
    """What an answer is worth.

    Attributes:
        value: the task's main figure, from 0 to 1.
        correct: whether it counts as right in "Accuracy"; None where only a judge could tell, and none was asked.
        metrics: all figures by name, from 0 to 1 each, the main one among them: ``{"f1": 0.5, "judge": 1.0}``.
        kind: what class the answer turned out to be scored by, where that differs from ``Example.kind``.
        note: a line for people, as the judge's reason.
    """

    value: float
    correct: bool | None
    metrics: Mapping[str, float]
    kind: str = ""
    note: str = ""


class Task(ABC):
    """A benchmark. Registered under ``supdist_engine.tasks`` (entry points), or built in.

    A subclass is a frozen pydantic model or dataclass of its options; making one reads nothing. It can be pickled.
    """

    name: ClassVar[str]

    @property
    def wants_judge(self) -> bool:
        """Whether ``score`` is worth more with a judge, as these options have it."""
        return False

    @abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, in an order that is the same on every machine.

        Raises:
            TaskDataError: the data is not there, or is wrong.
        """

    @abstractmethod
    def context(self, example: Example) -> str | list[Any] | dict[str, Any]:
        """The document of an example, as the supervisor's code gets it; the same one whenever it is called."""

    @abstractmethod
    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """What an answer is worth; None is an answer that never came, and scores 0.

        Raises:
            HandlerError: by ``judge``.
            JudgeError: the judge gave no verdict.
        """

    @abstractmethod
    def data_hash(self) -> str:
        """A SHA-256, in hexadecimal, of all that decides examples, contexts and references: equal hashes, equal task."""

    def sample(self, n: int, seed: int) -> list[Example]:
        """``n`` examples drawn without repetition, the same for a seed on every machine; all, in order, where n is -1.

        A larger ``n`` begins with the same examples as a smaller one.
        """
        examples = list(self.examples())
        if n < 0:
            return examples
        Random(seed).shuffle(examples)  # noqa: S311 - a sample that anybody can draw again
        return examples[:n]
