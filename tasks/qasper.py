"""QASPER: questions about research papers.

A sample example: to "Which languages are in the corpus?" each annotator gives spans of the paper, text, Yes
or No, or Unanswerable. Source: Dasigi et al. (NAACL 2021), https://allenai.org/data/qasper, CC BY 4.0.
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

# The official names of the answer types; "none" is Unanswerable.
KINDS = ("extractive", "abstractive", "boolean", "none")

_FLOAT = "FLOAT SELECTED"
_BETWEEN_PAPERS = "\n\n---\n\n"
_HINT = (
    "Answer as briefly as you can, in the paper's words where they fit; a yes-or-no question with Yes or No,"
    " and a question that the paper does not answer with Unanswerable."
)


class Prediction(NamedTuple):
    """The prediction for a question."""

    answer: str
    evidence: tuple[str, ...] = ()


class Qasper(TaskWithOptions):
    """Questions about research papers (QASPER), from its official files or the Hugging Face hub."""

    name: ClassVar[str] = "qasper"

    path: Path | None = Field(
        default=None,
        description="an official JSON file, the hub's rows as JSON or JSON Lines, or a folder with a file for"
        " each split; without it, the hub is asked",
    )
    split: str = Field(default="test", description="train, validation or test; for a folder or the hub")
    dataset: str = Field(
        default=ON_THE_HUB,
        description="name on the hub, or a folder; needs the extra datasets",
    )
    revision: str = Field(default="refs/convert/parquet", description="revision of the dataset on the hub")
    distractors: int = Field(default=0, ge=0, description="number of other papers in the context")
    seed: int = Field(default=0, description="another seed gives other distractors in another order")
    hint: bool = Field(
        default=True, description="tell the supervisor the form of an answer, after the question"
    )

    @property
    def judge_decides(self) -> bool:
        """Answer F1 is the main figure with a judge, too."""
        return False

    @property
    def wants_judge(self) -> bool:
        """Always true."""
        # Even people reach an F1 of only 60.9, so that no threshold on F1 means "correct".
        return True

    def examples(self) -> list[Example]:
        """Return one example for each question, in the order of the file."""
        papers = self._papers()
        if self.distractors >= len(papers):
            raise TaskDataError(
                f"{self._source()} has {len(papers)} papers, too few for distractors={self.distractors};"
                f" use at most {len(papers) - 1}"
            )
        examples = [self._example(paper, question) for paper in papers.values() for question in paper.qas]
        return check_unique(examples, self._source())

    def context(self, example: Example) -> str:
        """Return the paper and its distractors."""
        papers = self._papers()
        target = papers.get(example.document)
        if target is None:
            raise TaskDataError(f"{self._source()} has no paper {example.document!r} any more; start again")
        random = Random(f"{self.name}:{self.seed}:{example.id}")  # noqa: S311 - not for secrets
        shown = [
            target,
            *random.sample([paper for paper in papers.values() if paper is not target], self.distractors),
        ]
        random.shuffle(shown)
        return _BETWEEN_PAPERS.join(paper.text() for paper in shown)

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        """Return answer F1 and, with a judge, its verdict."""
        # F1 stays the main figure with a judge, so that judged and unjudged runs compare.
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
        """Hash the papers and the options that change queries or contexts."""
        # Of the parsed papers: the official file and the hub's rows give the same hash.
        papers = [paper.model_dump() for paper in self._papers().values()]
        return self.hash_of(papers, self.distractors, self.seed, self.hint)

    def _example(self, paper: Paper, question: Question) -> Example:
        if not valid_id(question.question_id):
            raise TaskDataError(
                f"{self._source()}: question_id {question.question_id!r} cannot name a folder;"
                " use letters and digits"
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
            # The type of most annotators' answers; of equal counts, most_common returns the first.
            kind=counts.most_common(1)[0][0],
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
    """Return the best annotator's token F1 and answer type."""
    # Of annotators that tie, the first, as in the official evaluator.
    scores = [(token_f1(answer, reference.text), reference.kind) for reference in references]
    return max(scores, key=lambda score: score[0])


def evidence_f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 of two lists of paragraphs; 1 if both are empty."""
    if not predicted and not gold:
        return 1.0
    # As in the official evaluator, a repeated paragraph matches once and counts twice in its list's length.
    common = len(set(predicted) & set(gold))
    return harmonic(common / len(predicted), common / len(gold)) if common else 0.0


def evaluate(gold: Mapping[str, Sequence[Reference]], predicted: Mapping[str, Prediction]) -> dict[str, Any]:
    """Return the official figures by their official names."""
    answers, evidences, by_kind = list[float](), list[float](), {kind: list[float]() for kind in KINDS}
    for question, references in gold.items():
        prediction = predicted.get(question)
        # A missing prediction scores 0 and counts for no answer type.
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
    """Return the official figures of a file of predictions.

    Args:
        gold: a file for ``read_papers``.
        predictions: JSON Lines with ``question_id``, ``predicted_answer``, ``predicted_evidence``.
        text_evidence_only: ignore gold evidence in figures and tables.

    Raises:
        TaskDataError: a file is unreadable or has another format.
    """
    papers = read_papers(gold).values()
    references = {question.question_id: question.references() for paper in papers for question in paper.qas}
    if text_evidence_only:
        references = {question: tuple(map(_without_floats, found)) for question, found in references.items()}
    # Of two lines for a question, the later counts.
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
                f"{path}, line {number}: {error.errors()[0]['msg']}; see QASPER's evaluator for the format"
            ) from None
        yield found.question_id, Prediction(found.predicted_answer, tuple(found.predicted_evidence))


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a file of predictions and print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m supdist.tasks.qasper", description=main.__doc__)
    parser.add_argument("gold", type=Path, help="a file of QASPER")
    parser.add_argument(
        "predictions", type=Path, help="JSON Lines: question_id, predicted_answer, predicted_evidence"
    )
    parser.add_argument(
        "--text-evidence-only", action="store_true", help="ignore evidence in figures and tables"
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
