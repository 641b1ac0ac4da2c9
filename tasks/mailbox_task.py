"""The shared part of ``oolong`` and ``pairs``."""

from __future__ import annotations

from abc import abstractmethod
from random import Random
from typing import ClassVar, NamedTuple

from pydantic import Field

from .base import Example
from .mailbox import Mailbox, explained
from .options import Length, TaskWithOptions
from .prose import GENERATOR

_PREAMBLE = (
    "Each line of the context is a message to a shop: its number, date, user and text. What a message is"
    " about has to be read from its text; each is about exactly one of these: {matters}.\n\n{question}"
)


class Question(NamedTuple):
    """A question and its right answers."""

    text: str
    references: tuple[str, ...]


class MailboxTask(TaskWithOptions):
    """A task whose documents are mailboxes."""

    kinds: ClassVar[tuple[str, ...]]

    kind: str = "all"
    length: Length = Field(
        default=32_000, description="tokens of each text, about, four characters each; 128k is understood"
    )
    n: int = Field(default=60, ge=1, le=100_000, description="number of examples")
    seed: int = Field(default=0, description="another seed gives other texts and questions")

    @abstractmethod
    def mailbox(self, document: int) -> Mailbox:
        """Return the records of a document."""

    @abstractmethod
    def question(self, kind: str, document: int, index: int) -> Question:
        """Return the question of an example."""

    def examples(self) -> list[Example]:
        """Return ``n`` examples."""
        return [self._example(index) for index in range(self.n)]

    def context(self, example: Example) -> str:
        """Return the records, one on each line."""
        document = int(example.data["document"])
        return self.mailbox(document).text(self.random(f"text:{document}"))

    def data_hash(self) -> str:
        """Hash the options and the generator's version."""
        return self.hash_of(GENERATOR, self.model_dump())

    def random(self, purpose: str) -> Random:
        """Return a generator for one purpose."""
        # One generator for each purpose: a change of one text or question changes no other.
        return Random(f"{self.name}:{self.seed}:{purpose}")  # noqa: S311 - not for secrets

    def _example(self, index: int) -> Example:
        # One example of each kind shares a document, which is generated once.
        if self.kind == "all":
            document, place = divmod(index, len(self.kinds))
            kind = self.kinds[place]
        else:
            document, kind = index, self.kind
        question = self.question(kind, document, index)
        return Example(
            id=f"{self.name}-{index:04d}",
            query=_PREAMBLE.format(matters=explained(), question=question.text),
            references=question.references,
            document=f"{self.name}-{self.seed}-{document:04d}",
            kind=kind,
            data={"document": document},
        )
