"""How answers are compared: pure functions of texts and sets, each from 0 to 1.

A sample example: ``token_f1("the CNN model", "A CNN.")`` is 2/3: one common word of the two and the one that are left
once articles and punctuation are gone.

Rules: the normalisation of SQuAD 1.1's evaluation, which QASPER's takes over (Rajpurkar et al. 2016; Dasigi et al.
2021); RULER's share of references found (Hsieh et al. 2024); OOLONG's partial credit for numbers (Bertsch et al. 2025).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation, then without articles, words apart by one space.

    Punctuation vanishes and does not split: "state-of-the-art" is one word, in which no article is left to drop.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def harmonic(precision: float, recall: float) -> float:
    """The F1 of a precision and a recall; 0 where both are.

    In just this order of operations: annotators that tie in theory then differ in the last bit where they do in
    the official scorers, and the same one of them is the best.
    """
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def token_f1(prediction: str, reference: str) -> float:
    """F1 over the words of two normalised texts, each word as often as it occurs; 0 where none is common.

    Two texts without a word left ("the" and "") score 0, as in the official scorers.
    """
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    common = (Counter(predicted) & Counter(expected)).total()
    return harmonic(common / len(predicted), common / len(expected)) if common else 0.0


def exact_match(prediction: str, reference: str) -> float:
    """1 where the normalised texts are equal, else 0."""
    return float(normalize(prediction) == normalize(reference))


def contains(prediction: str, reference: str) -> float:
    """1 where the reference's normalised words stand in the prediction, in a row; a reference without words is nowhere."""
    expected = normalize(reference)
    return float(bool(expected) and f" {expected} " in f" {normalize(prediction)} ")


def set_f1(prediction: AbstractSet[object], reference: AbstractSet[object]) -> float:
    """F1 of two sets; 1 where both are empty."""
    if not prediction and not reference:
        return 1.0
    common = len(prediction & reference)
    return harmonic(common / len(prediction), common / len(reference)) if common else 0.0


def share_found(prediction: str, references: Collection[str]) -> float:
    """RULER's score: the share of the references that the prediction holds, whatever the case.

    Raises:
        ValueError: there are no references.
    """
    if not references:
        raise ValueError("no references to look for")
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def numeric_score(prediction: float, reference: float) -> float:
    """OOLONG's partial credit, 0.75 to the power of the error: 1 where exact, 0.75 where one off."""
    return float(0.75 ** abs(prediction - reference))


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order: "1,204 of 3.5" holds 1204 and 3.5; digits within a word are none."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def best(metric: Callable[[str, str], float], prediction: str, references: Iterable[str]) -> float:
    """The best score over references; 0 without any."""
    return max((metric(prediction, reference) for reference in references), default=0.0)


def mean(values: Sequence[float]) -> float:
    """Their mean; 0 of none, as the official scorers have it."""
    return sum(values) / len(values) if values else 0.0
