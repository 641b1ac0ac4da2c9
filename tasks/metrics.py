"""Metrics of texts or sets, from 0 to 1: ``token_f1("the CNN model", "A CNN.")`` is 2/3."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# 1204 and 3.5 in "1,204 of 3.5"; nothing in "abc7".
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)")


# SQuAD 1.1 (Rajpurkar et al. 2016), also used by QASPER (Dasigi et al. 2021).
def normalize(text: str) -> str:
    """Remove case, ASCII punctuation, articles and extra spaces."""
    # Punctuation is removed first and splits no word, as in SQuAD: "state-of-the-art" keeps its "the".
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def harmonic(precision: float, recall: float) -> float:
    """Return the F1 of a precision and a recall."""
    # The official scorers' order of operations: the last bit can decide which annotator is best.
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 over the words of two normalised texts."""
    predicted, expected = normalize(prediction).split(), normalize(reference).split()
    common = (Counter(predicted) & Counter(expected)).total()
    # Two texts without words score 0, as in the official scorers.
    return harmonic(common / len(predicted), common / len(expected)) if common else 0.0


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if the normalised texts are equal."""
    return float(normalize(prediction) == normalize(reference))


def contains(prediction: str, reference: str) -> float:
    """Return 1 if the reference's words stand in a row in the prediction."""
    expected = normalize(reference)
    # The spaces make whole words match: "art" is not in "arts". A reference without words is never found.
    return float(bool(expected) and f" {expected} " in f" {normalize(prediction)} ")


def set_f1(prediction: AbstractSet[object], reference: AbstractSet[object]) -> float:
    """Return the F1 of two sets; 1 if both are empty."""
    if not prediction and not reference:
        return 1.0
    common = len(prediction & reference)
    return harmonic(common / len(prediction), common / len(reference)) if common else 0.0


def share_found(prediction: str, references: Collection[str]) -> float:
    """Return the share of references in the prediction (RULER, Hsieh et al. 2024).

    Raises:
        ValueError: there are no references.
    """
    if not references:
        raise ValueError("no references to look for")
    # RULER compares without case, and normalises nothing else.
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def numeric_score(prediction: float, reference: float) -> float:
    """Return 0.75 ** |prediction - reference| (OOLONG, Bertsch et al. 2025)."""
    return float(0.75 ** abs(prediction - reference))


def numbers(text: str) -> list[float]:
    """Return the numbers in a text."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def best(metric: Callable[[str, str], float], prediction: str, references: Iterable[str]) -> float:
    """Return the best score over the references."""
    return max((metric(prediction, reference) for reference in references), default=0.0)


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    # The official scorers define the mean of nothing as 0.
    return sum(values) / len(values) if values else 0.0
