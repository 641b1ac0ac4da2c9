"""Reads QASPER's files: the official JSON, and the hub's rows and columns.

A sample example: ``{"1912.01214": {"title": "...", "abstract": "...", "full_text": [...], "qas": [...]}}``
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

from pydantic import BaseModel, BeforeValidator, ValidationError

from .base import TaskDataError
from .options import read_text


class Reference(NamedTuple):
    """One annotator's answer; the evidence is paragraphs."""

    text: str
    kind: str
    evidence: tuple[str, ...] = ()


def _rows(value: object) -> object:
    # The hub has a list of objects as an object of lists: {"a": [1, 2]} is [{"a": 1}, {"a": 2}].
    if not isinstance(value, dict):
        return value
    if not all(isinstance(column, list) for column in cast("dict[str, object]", value).values()):
        return cast("object", value)
    lists = cast("dict[str, list[object]]", value)
    if len({len(column) for column in lists.values()}) > 1:
        raise ValueError(f"the columns {', '.join(lists)} differ in length")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


Rows = BeforeValidator(_rows)
Texts = Annotated[list[str], BeforeValidator(lambda value: [] if value is None else value)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class _Answer(BaseModel):
    unanswerable: bool | None = None
    extractive_spans: Texts = []
    free_form_answer: Text = ""
    yes_no: bool | None = None
    evidence: Texts = []

    def reference(self) -> Reference | None:
        """Return the reference, if the annotation has an answer."""
        # The official evaluator's order of checks.
        if self.unanswerable:
            return Reference("Unanswerable", "none")
        evidence = tuple(self.evidence)
        if self.extractive_spans:
            return Reference(", ".join(self.extractive_spans), "extractive", evidence)
        if self.free_form_answer:
            return Reference(self.free_form_answer, "abstractive", evidence)
        if self.yes_no is None:
            return None
        return Reference("Yes" if self.yes_no else "No", "boolean", evidence)


class _Annotation(BaseModel):
    answer: _Answer


class _Section(BaseModel):
    section_name: str | None = None
    paragraphs: Texts = []


class Question(BaseModel):
    """A question of a paper."""

    question: str
    question_id: str
    answers: Annotated[list[_Annotation], Rows]

    def references(self) -> tuple[Reference, ...]:
        """Return one reference for each annotator.

        Raises:
            TaskDataError: there is none, or an annotation has no answer.
        """
        found = [annotation.answer.reference() for annotation in self.answers]
        if not found or None in found:
            missing = "an annotation without" if found else "no"
            raise TaskDataError(
                f"question {self.question_id!r} has {missing} answer; remove it from the file"
            )
        return tuple(reference for reference in found if reference)


class Paper(BaseModel):
    """A paper with its questions, as in the official files."""

    id: str
    title: Text = ""
    abstract: Text = ""
    full_text: Annotated[list[_Section], Rows] = []
    qas: Annotated[list[Question], Rows]

    def text(self) -> str:
        """Return title, abstract and sections as one text."""
        # Paragraphs stay unchanged: evidence quotes them word by word.
        parts = [f"# {self.title}"] if self.title else []
        if self.abstract:
            parts += ["## Abstract", self.abstract]
        for section in self.full_text:
            parts += [f"## {section.section_name}"] if section.section_name else []
            parts += [paragraph for paragraph in section.paragraphs if paragraph]
        return "\n\n".join(parts)


def read_papers(path: Path) -> dict[str, Paper]:
    """Return the papers of an official file or of the hub's rows, by id.

    Raises:
        TaskDataError: it is unreadable or has another format.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise TaskDataError(f"cannot read {path}: {error.strerror}; give path= the file of QASPER") from error
    return _read(path, stat.st_mtime_ns, stat.st_size)


# Contexts are requested one by one. The time and size in the key make a changed file be read again.
@lru_cache(maxsize=2)
def _read(path: Path, _modified: int, _size: int) -> dict[str, Paper]:
    text = read_text(path)
    try:
        data: object = (
            [json.loads(line) for line in text.split("\n") if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except ValueError as error:
        raise TaskDataError(f"{path} is not JSON: {error}; name a file of rows .jsonl") from error
    return _papers_of(data, path)


def _papers_of(data: object, source: object) -> dict[str, Paper]:
    if isinstance(data, dict) and all(
        isinstance(value, dict) for value in cast("dict[str, object]", data).values()
    ):
        data = [{**paper, "id": key} for key, paper in cast("dict[str, dict[str, object]]", data).items()]
    try:
        rows = _rows(cast("object", data))
    except ValueError as error:
        raise TaskDataError(f"{source}: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise TaskDataError(
            f"{source}: neither papers by id, nor rows or columns of papers, as QASPER's files have them"
        )
    papers = [_paper(row, number, source) for number, row in enumerate(cast("list[object]", rows), 1)]
    by_id = {paper.id: paper for paper in papers}
    if len(by_id) < len(papers):
        raise TaskDataError(
            f"{source}: {len(papers) - len(by_id)} papers have the id of another; keep one of each"
        )
    return by_id


def _paper(row: object, number: int, source: object) -> Paper:
    try:
        return Paper.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise TaskDataError(
            f"{source}: paper {number} is not as QASPER has it: {where}: {problem['msg']}"
        ) from None


def file_of_split(folder: Path, split: str) -> Path:
    """Return the folder's JSON file with the split in its name.

    Raises:
        TaskDataError: there is not exactly one.
    """
    # The official files call validation "dev".
    words = {"validation": ("validation", "dev")}.get(split, (split,))
    found = [path for path in sorted(folder.glob("*.json*")) if any(word in path.name for word in words)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise TaskDataError(
            f"{folder} needs one JSON file with {split!r} in its name, and has {names}; name the file itself"
        )
    return found[0]


ON_THE_HUB = "allenai/qasper"


@lru_cache(maxsize=2)
def papers_of_hub(dataset: str, revision: str, split: str) -> dict[str, Paper]:
    """Return the papers of the hub, or of a folder, by id.

    Raises:
        TaskDataError: ``datasets`` is not installed, or cannot load them.
    """
    try:
        import datasets  # pyright: ignore[reportMissingTypeStubs]  # the library has no types
    except ImportError as error:
        raise TaskDataError(
            "QASPER comes from the Hugging Face hub: pip install 'supdist-engine[datasets]', or give path= a"
            " file of it"
        ) from error
    load = cast("Any", datasets).load_dataset
    local = Path(dataset).exists()
    if local and dataset == ON_THE_HUB:
        raise TaskDataError(
            f"the working directory has a folder {dataset}, which datasets would read in place of the hub:"
            f" rename it, or name it with dataset=./{dataset}"
        )
    try:
        rows = list(load(dataset, split=split) if local else load(dataset, split=split, revision=revision))
    # The hub's client raises errors of three HTTP libraries besides its own.
    except Exception as error:
        raise TaskDataError(
            f"cannot load {dataset} ({split}): {error}; download a file of QASPER and set path=FILE"
        ) from error
    return _papers_of(rows, dataset)
