"""QASPER: questions about research papers, asked by readers of the abstract, answered by others who read the whole.

A sample example: "Which languages are in the corpus?" about a paper of some 3,500 words, with one answer by each of its
annotators: the spans "English" and "German", or the words "English and German", or Yes or No, or Unanswerable.

Source: Dasigi et al., "A Dataset of Information-Seeking Questions and Answers Anchored in Research Papers" (NAACL 2021);
https://allenai.org/data/qasper, or ``allenai/qasper`` on the Hugging Face hub. CC BY 4.0.

Score: as the official evaluator has it. Answer F1 is the best token F1 over the annotators (``metrics.token_f1``), whose answers
are, in this order: Unanswerable; the extractive spans, joined by commas; the free-form answer; Yes or No. A score belongs to
the answer type of the best annotator, the first of those that tie. Evidence F1 compares paragraphs, and is for files of
predictions: ``python -m supdist.tasks.qasper GOLD PREDICTIONS``, or ``score_predictions``. A prediction that is missing
scores 0 and belongs to no type.

F1 is low even for people (60.9), as there are many ways to say the same. So "correct" is a judge's verdict, and nothing where no
judge is asked; the main figure stays answer F1 either way, so that judged and unjudged runs can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from .base import Ask, Example, Score, TaskDataError
from .judge import judge_answer
from .metrics import harmonic, mean, token_f1
from .options import TaskWithOptions, check_unique, read_text, valid_id
from .qasper_files import (
    ON_THE_HUB,
    Paper,
    Question,
    Reference,
    Text,
    Texts,
    file_of_split,
    papers_of_hub,
    read_papers,
)

KINDS = ("extractive", "abstractive", "boolean", "none")
"""The answer types, by the official names; ``none`` is Unanswerable."""

_FLOAT = "FLOAT SELECTED"
_BETWEEN_PAPERS = "\n\n---\n\n"
_HINT = (
    "Answer as briefly as you can, in the paper's words where they fit; a yes-or-no question with Yes or No, and a question"
    " that the paper does not answer with Unanswerable."
)


class Prediction(NamedTuple):
    """What is predicted for a question."""

    answer: str
    evidence: tuple[str, ...] = ()


class Qasper(TaskWithOptions):
    """Questions about research papers (QASPER), from its official files or the Hugging Face hub."""

    name: ClassVar[str] = "qasper"

    path: Path | None = Field(
        default=None,
        description="an official JSON file, the hub's rows as JSON or JSON Lines, or a folder with a file for each split;"
        " without it, the hub is asked",
    )
    split: str = Field(default="test", description="train, validation or test; of a folder or of the hub")
    dataset: str = Field(
        default=ON_THE_HUB,
        description="on the hub, or a folder that datasets reads; needs the extra datasets",
    )
    revision: str = Field(default="refs/convert/parquet", description="of the dataset on the hub")
    distractors: int = Field(
        default=0, ge=0, description="other papers of the same file around the one that is asked about"
    )
    seed: int = Field(default=0, description="other distractors in another order")
    hint: bool = Field(
        default=True, description="tell the supervisor, after the question, in what form answers are expected"
    )

    @property
    def wants_judge(self) -> bool:
        """Without a judge, nothing counts as correct or wrong."""
        return True

    def examples(self) -> list[Example]:
        """One a question, in the order of the file. Its kind is the type that most annotators' answers have, the earliest
        of those that tie; what an answer is scored by is in ``Score.kind``.
        """
        papers = self._papers()
        if self.distractors >= len(papers):
            raise TaskDataError(
                f"{len(papers)} papers are there, too few for distractors={self.distractors}; at most {len(papers) - 1} are others"
            )
        examples = [self._example(paper, question) for paper in papers.values() for question in paper.qas]
        return check_unique(examples, self._source())

    def context(self, example: Example) -> str:
        """The paper, among others where ``distractors`` says so; which and in what order, seed and example decide."""
        papers = self._papers()
        target = papers.get(example.document)
        if target is None:
            raise TaskDataError(f"{self._source()} has no paper {example.document!r} any more; start again")
        random = Random(f"{self.name}:{self.seed}:{example.id}")  # noqa: S311 - anybody can draw it again
        shown = [
            target,
            *random.sample([paper for paper in papers.values() if paper is not target], self.distractors),
        ]
        random.shuffle(shown)
        return _BETWEEN_PAPERS.join(paper.text() for paper in shown)

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Answer F1, and the judge's verdict where there is a judge; an answer that never came is not shown to it."""
        references = [Reference(text, kind) for text, kind in example.data["answers"]]
        f1, kind = best_answer(answer or "", references)
        metrics = {"answer_f1": f1}
        if judge is None:
            return Score(f1, None, metrics, kind=kind if answer is not None else "")
        texts = list(dict.fromkeys(reference.text for reference in references))
        verdict = await judge_answer(judge, example.data["question"], texts, answer or "")
        metrics["judge"] = float(verdict.correct)
        return Score(
            f1, verdict.correct, metrics, kind=kind if answer is not None else "", note=verdict.reason
        )

    def data_hash(self) -> str:
        """Of what was read, whatever its form, and of the options that decide queries and contexts."""
        papers = [paper.model_dump() for paper in self._papers().values()]
        return self.hash_of(papers, self.distractors, self.seed, self.hint)

    def _example(self, paper: Paper, question: Question) -> Example:
        if not valid_id(question.question_id):
            raise TaskDataError(
                f"{self._source()}: question_id {question.question_id!r} can name no folder; use letters and digits"
            )
        references = question.references()
        counts = Counter(reference.kind for reference in references)
        query = (
            f'About the paper "{paper.title}": {question.question}' if self.distractors else question.question
        )
        return Example(
            id=question.question_id,
            query=f"{query}\n\n{_HINT}" if self.hint else query,
            references=tuple(dict.fromkeys(reference.text for reference in references)),
            document=paper.id,
            kind=counts.most_common(1)[0][0],  # of equal counts, the first that was seen
            data={
                "question": question.question,
                "answers": [[reference.text, reference.kind] for reference in references],
            },
        )

    def _source(self) -> str:
        return str(self.path or f"{self.dataset} ({self.split})")

    def _papers(self) -> dict[str, Paper]:
        if self.path is None:
            return papers_of_hub(self.dataset, self.revision, self.split)
        return read_papers(file_of_split(self.path, self.split) if self.path.is_dir() else self.path)


def best_answer(answer: str, references: Sequence[Reference]) -> tuple[float, str]:
    """The best token F1 over annotators, and the answer type of the first annotator that has it."""
    scores = [(token_f1(answer, reference.text), reference.kind) for reference in references]
    return max(scores, key=lambda score: score[0])


def evidence_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two lists of paragraphs, 1 where both are empty. A paragraph that is listed twice is found once, and counts
    twice in its list's length, as in the official evaluator.
    """
    if not predicted and not gold:
        return 1.0
    common = len(set(predicted) & set(gold))
    return harmonic(common / len(predicted), common / len(gold)) if common else 0.0


def evaluate(gold: Mapping[str, Sequence[Reference]], predicted: Mapping[str, Prediction]) -> dict[str, Any]:
    """The official figures, by their official names; what is predicted for other questions is left out."""
    answers, evidences, by_kind = list[float](), list[float](), {kind: list[float]() for kind in KINDS}
    for question, references in gold.items():
        prediction = predicted.get(question)
        if prediction is None:
            answers.append(0.0)
            evidences.append(0.0)
            continue
        f1, kind = best_answer(prediction.answer, references)
        answers.append(f1)
        by_kind[kind].append(f1)
        evidences.append(
            max(evidence_f1(prediction.evidence, reference.evidence) for reference in references)
        )
    return {
        "Answer F1": mean(answers),
        "Answer F1 by type": {kind: mean(scores) for kind, scores in by_kind.items()},
        "Evidence F1": mean(evidences),
        "Missing predictions": sum(question not in predicted for question in gold),
    }


def score_predictions(gold: Path, predictions: Path, *, text_evidence_only: bool = False) -> dict[str, Any]:
    """The official figures of a file of predictions: JSON Lines with ``question_id``, ``predicted_answer`` and
    ``predicted_evidence``. An answer or evidence that is null is an empty one; of two lines for a question, the later counts.

    Args:
        gold: any form that ``read_papers`` reads.
        predictions: the file.
        text_evidence_only: leave evidence in figures and tables out of the gold.

    Raises:
        TaskDataError: a file cannot be read, or is something else.
    """
    papers = read_papers(gold).values()
    references = {question.question_id: question.references() for paper in papers for question in paper.qas}
    if text_evidence_only:
        references = {question: tuple(map(_without_floats, found)) for question, found in references.items()}
    return evaluate(references, dict(_predictions(predictions)))


def _without_floats(reference: Reference) -> Reference:
    return reference._replace(evidence=tuple(text for text in reference.evidence if _FLOAT not in text))


class _PredictionLine(BaseModel):
    question_id: str
    predicted_answer: Text = ""
    predicted_evidence: Texts = []


def _predictions(path: Path) -> Iterable[tuple[str, Prediction]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = _PredictionLine.model_validate_json(line)
        except ValidationError as error:
            raise TaskDataError(
                f"{path}, line {number}: {error.errors()[0]['msg']}; see QASPER's evaluator for the form"
            ) from None
        yield found.question_id, Prediction(found.predicted_answer, tuple(found.predicted_evidence))


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a file of predictions, and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m supdist.tasks.qasper", description=main.__doc__)
    parser.add_argument("gold", type=Path, help="a file of QASPER")
    parser.add_argument(
        "predictions", type=Path, help="JSON Lines: question_id, predicted_answer, predicted_evidence"
    )
    parser.add_argument(
        "--text-evidence-only", action="store_true", help="leave evidence in figures and tables out"
    )
    options = parser.parse_args(arguments)
    try:
        found = score_predictions(
            options.gold, options.predictions, text_evidence_only=options.text_evidence_only
        )
    except TaskDataError as error:
        parser.exit(2, f"{error}\n")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
