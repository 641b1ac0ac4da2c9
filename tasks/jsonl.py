"""A task from your own JSON Lines file.

A sample example: ``{"context_file": "report.md", "query": "What is the deck made of?", "answers": ["FRP"]}``
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..handlers.text_files import marked_encoding
from ..sandbox_image.paths import is_visible_below
from .base import Ask, Document, Example, Score, TaskDataError
from .choices import choice_figures
from .judge import judge_answer
from .options import TaskWithOptions, check_unique, decode, regular_file, valid_id

Metric = Literal["exact", "f1", "contains", "choice", "judge"]

_TEXT, _JSON = (".txt", ".md"), ".json"
_F1_CORRECT = 0.5
_MOST_PROBLEMS = 10
_Answer = Annotated[str, Field(coerce_numbers_to_str=True)]
_Context = str | list[Any] | dict[str, Any]


# Either "context" (a text, list or object) or "context_file" (any document), and either "answer" or
# "answers", each of which is right.
class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: str
    context: _Context | None = None
    context_file: str | None = None
    answer: _Answer | None = None
    answers: list[_Answer] | None = None
    id: str | None = None
    document: str | None = None
    kind: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> _Line:
        if not self.query.strip():
            raise ValueError('"query" is empty; ask something')
        if (self.context is None) == (self.context_file is None):
            raise ValueError('give either "context" or "context_file"')
        if (self.answer is None) == (self.answers is None):
            raise ValueError('give either "answer" (a text) or "answers" (a list of texts)')
        if not all(answer.strip() for answer in self.references()):
            raise ValueError("an answer is empty; give what counts as right")
        if self.id is not None and not valid_id(self.id):
            raise ValueError(
                f'"id" {self.id!r} cannot name a folder; use letters, digits, ".", "_" and "-", 128 at most'
            )
        return self

    def references(self) -> tuple[str, ...]:
        return tuple(self.answers or ("",)) if self.answer is None else (self.answer,)


class Jsonl(TaskWithOptions):
    """Questions of your own, from a JSON Lines file of contexts, queries and answers."""

    name: ClassVar[str] = "jsonl"

    path: Path = Field(description="the file; a line has query, context or context_file, answer or answers")
    raw_html: bool = Field(default=False, description="keep HTML of context_file as it is")
    metric: Metric = Field(default="f1", description="the main figure; it decides what is correct")

    @property
    def wants_judge(self) -> bool:
        """Whether the metric is ``judge``."""
        return self.metric == "judge"

    def examples(self) -> list[Example]:
        """Return one example for each line."""
        found, problems, hashes = list[Example](), list[str](), dict[Path, str]()
        # Contexts are only checked and hashed here: together they may not fit into memory.
        for number, offset, raw in self._lines():
            try:
                found.append(self._example(number, offset, raw, hashes))
            except TaskDataError as error:
                problems.append(f"line {number}: {error}")
        if problems:
            more = len(problems) - _MOST_PROBLEMS
            raise TaskDataError(
                "\n".join(
                    [
                        f"{self.path} cannot be used:",
                        *(f"  {problem}" for problem in problems[:_MOST_PROBLEMS]),
                    ]
                    + ([f"  and {more} more lines"] if more > 0 else [])
                )
            )
        if not found:
            raise TaskDataError(f"{self.path} holds no question; write one on each line")
        return check_unique(found, self.path)

    def context(self, example: Example) -> _Context | Document:
        """Return the context of the line, or its file's content: a text, a JSON value or a document.

        Raises:
            TaskDataError: the file has changed since ``examples``.
        """
        data = example.data
        if "context_file" in data:
            path = self._place(data["context_file"])
            raw = _bytes(path)
            _check_same(raw, data["sha256"], path)
            content = _content(path, raw)
            return Document(data["context_file"], raw, self.raw_html) if content is None else content
        try:
            with open(self.path, "rb") as file:
                file.seek(data["offset"])
                raw = file.read(data["size"])
        except OSError as error:
            raise TaskDataError(f"cannot read {self.path}: {error.strerror}") from error
        _check_same(raw, data["sha256"], self.path)
        context = _parse(raw).context
        assert context is not None
        return context

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Return the best score over the references."""
        text = answer or ""
        figures = [choice_figures(text, reference) for reference in example.references]
        names = ["exact", "f1", "contains", *(["choice"] if self.metric == "choice" else [])]
        metrics = {name: max((each[name] for each in figures), default=0.0) for name in names}
        if self.metric != "judge":
            value = metrics[self.metric]
            return Score(value, value >= (_F1_CORRECT if self.metric == "f1" else 1.0), metrics)
        # Without a verdict F1 is the figure, and nothing is correct or wrong.
        if judge is None:
            return Score(metrics["f1"], None, metrics)
        verdict = await judge_answer(judge, example.query, example.references, text)
        metrics["judge"] = float(verdict.correct)
        return Score(metrics["judge"], verdict.correct, metrics, note=verdict.reason)

    def data_hash(self) -> str:
        """Hash the questions, their contexts and the metric."""
        # Without paths: a copy of the files elsewhere is the same task.
        examples = [
            [each.id, each.query, each.references, each.document, each.kind, each.data["sha256"]]
            for each in self.examples()
        ]
        # An option that is not used changes no hash.
        return self.hash_of(self.metric, examples, *(["raw_html"] if self.raw_html else []))

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        offset = 0
        try:
            with open(regular_file(self.path), "rb") as file:
                for number, raw in enumerate(file, 1):
                    if raw.strip():
                        yield number, offset, raw
                    offset += len(raw)
        except OSError as error:
            raise TaskDataError(
                f"cannot read {self.path}: {error.strerror}; give path= a JSON Lines file"
            ) from error

    def _place(self, name: str) -> Path:
        # A stranger may have written the data set: it must not read the user's other files, through links
        # either.
        try:
            place = Path(os.path.realpath(self.path.parent / name))
        except ValueError as error:  # a null character or a lone surrogate
            raise TaskDataError(f"context_file {name!r} is not a path: {error}") from error
        folder = Path(os.path.realpath(self.path.parent))
        if not is_visible_below(place, folder):
            raise TaskDataError(
                f"context_file {name!r} is {str(place)!r}, outside {folder} or hidden;"
                f" put {self.path.name} and its documents into one folder"
            )
        if place == Path(os.path.realpath(self.path)):
            raise TaskDataError(f"context_file {name!r} is the file of questions itself, with its answers")
        return self.path.parent / name

    def _example(self, number: int, offset: int, raw: bytes, hashes: dict[Path, str]) -> Example:
        line = _parse(raw)
        if line.context_file is None:
            sha256 = hashlib.sha256(raw).hexdigest()
            data: dict[str, Any] = {"offset": offset, "size": len(raw), "sha256": sha256}
            context = json.dumps(line.context, sort_keys=True).encode()
            document = f"context-{hashlib.sha256(context).hexdigest()[:12]}"
        else:
            path = self._place(line.context_file)
            if path not in hashes:
                hashes[path] = _checked_hash(path)
            data = {"context_file": line.context_file, "sha256": hashes[path]}
            document = line.context_file
        return Example(
            id=line.id or f"line-{number:04d}",
            query=line.query,
            references=line.references(),
            document=line.document or document,
            kind=line.kind,
            data=data,
        )


def _parse(raw: bytes) -> _Line:
    text = decode(raw, "the line").strip()
    try:
        return _Line.model_validate(json.loads(text))
    except RecursionError:
        raise TaskDataError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise TaskDataError(
            f"not JSON: {error.msg} at character {error.pos + 1}; write one object on each line"
        ) from None
    except ValidationError as error:
        raise TaskDataError(
            "; ".join(_problem(each["loc"], each["msg"]) for each in error.errors())
        ) from None


def _problem(where: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if message == "Extra inputs are not permitted":
        message = f"unknown; known are {', '.join(_Line.model_fields)}"
    return f'"{where[0]}": {message}' if where else message


def _checked_hash(path: Path) -> str:
    raw = _bytes(path)
    _content(path, raw)
    return hashlib.sha256(raw).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return regular_file(path).read_bytes()
    except OSError as error:
        raise TaskDataError(
            f"cannot read {path}: {error.strerror}; context_file is relative to the JSON Lines file"
        ) from error


def _content(path: Path, raw: bytes) -> _Context | None:
    # None: the engine reads it, as any context.
    suffix = path.suffix.lower()
    if suffix not in (*_TEXT, _JSON):
        return None
    encoding, mark = marked_encoding(raw)
    try:
        text = raw[mark:].decode(encoding)
    except UnicodeDecodeError:
        return None
    if suffix in _TEXT:
        return text
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, (str, list, dict)):
        raise TaskDataError(
            f"{path} holds a {type(value).__name__}; a context is a text, a list or an object"
        )
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON: any depth of lists and objects


def _check_same(raw: bytes, sha256: str, path: Path) -> None:
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise TaskDataError(f"{path} has changed since its questions were read; start again")
