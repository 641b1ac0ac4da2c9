"""Benchmarks that are generated: the same on every machine, solvable from the text alone, scored exactly."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from datetime import date
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.handlers import ScriptedHandler
from supdist.tasks.base import Example, Task, TaskDataError
from supdist.tasks.mailbox import _CLOSINGS, _ITEMS, _OPENINGS, _TEXTS, MATTERS  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
from supdist.tasks.needle import Needle
from supdist.tasks.oolong import Oolong
from supdist.tasks.pairs import Pairs
from supdist.tasks.prose import haystack
from supdist.tasks.registry import create

pytestmark = pytest.mark.anyio

TASKS: dict[str, Task] = {
    "needle": Needle(variant="all", length=3_000, n=10, keys=30, chains=3),
    "oolong": Oolong(length=6_000, n=12),
    "pairs": Pairs(length=4_000, n=6),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def fingerprint(task: Task) -> str:
    """Of all that a task gives out."""
    content: list[Any] = [task.data_hash()]
    for each in task.examples():
        content += [
            each.id,
            each.query,
            each.references,
            each.document,
            each.kind,
            each.data,
            task.context(each),
        ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


# Another value means another benchmark under the same name: then raise GENERATOR in tasks/prose.py.
GOLDEN = {
    "needle": "0c25647850682ba3aaeecdb545b78f71d668e0c8297fba55d4ff2ab9202e6c80",
    "oolong": "f270e207516b347ee0db95a2794471f388ab85ac2e5a771c71a780d2f293c479",
    "pairs": "4e9a7ace3b57f93d47e3de3d0d3d117865448c9ad0961d4d2bcd344f192f6e44",
}


@pytest.mark.parametrize("name", TASKS)
def test_the_bytes_are_those_of_every_machine(name: str) -> None:
    assert fingerprint(TASKS[name]) == GOLDEN[name]


def test_the_hash_seed_of_python_does_not_matter() -> None:
    code = (
        "from supdist.tasks.registry import create; from test_task_generated import *;"
        " print(*map(fingerprint, TASKS.values()))"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=__file__.rpartition("/")[0],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            timeout=120,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert done == [list(GOLDEN.values())] * 2


@every_task
def test_a_task_is_its_options(task: Task) -> None:
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert again.data_hash() == task.data_hash()
    assert fingerprint(again) == fingerprint(task)
    other = task.model_copy(update={"seed": 1})  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]  # Task is no pydantic model
    assert other.data_hash() != task.data_hash()  # pyright: ignore[reportUnknownMemberType]  # Task is no pydantic model
    assert {each.query for each in other.examples()} != {each.query for each in task.examples()}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # Task is no pydantic model
    assert not task.wants_judge


@every_task
def test_a_sample_is_the_same_everywhere_and_a_larger_one_begins_with_it(task: Task) -> None:
    assert task.sample(5, 42) == task.sample(5, 42)
    assert task.sample(5, 42) == task.sample(6, 42)[:5]
    assert task.sample(-1, 42) == list(task.examples())


@every_task
async def test_an_answer_that_never_came_scores_0_and_no_judge_is_asked(task: Task) -> None:
    judge = ScriptedHandler([])
    for example in task.examples():
        score = await task.score(example, None, judge.chat)
        assert (score.value, score.correct) == (0, False)
        right = await task.score(
            example, example.references[0] if task.name != "needle" else ", ".join(example.references)
        )
        assert (right.value, right.correct) == (1, True), example
        assert set(right.metrics.values()) == {1.0}


def _text(task: Task) -> str:
    """The text of the first example."""
    context = task.context(task.examples()[0])
    assert isinstance(context, str)
    return context


@pytest.mark.parametrize("length", [1_000, 10_000, 100_000])
def test_texts_are_as_long_as_asked_for(length: int) -> None:
    """Four characters a token: prose to the paragraph, records within a few percent."""
    needle = create("needle", {"length": length})
    characters = len(_text(needle))
    assert characters <= 4 * length < characters + 1_500
    for name in ("oolong", "pairs"):
        task = create(name, {"length": length})
        assert len(_text(task)) == pytest.approx(4 * length, rel=0.1 if length < 5_000 else 0.03)


@pytest.mark.parametrize("name", TASKS)
def test_memory_is_bounded_by_the_text(name: str) -> None:
    task = create(name, {"length": "300k", "n": 1})
    tracemalloc.start()
    try:
        text = _text(task)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(text), "its parts, what is drawn of it, and the whole"


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
async def test_ten_million_tokens_can_be_made_and_answered(name: str) -> None:
    task = create(name, {"length": "10M", "n": 1})
    (example,) = task.examples()
    text = str(task.context(example))
    assert len(text) == pytest.approx(40_000_000, rel=0.03)
    if name == "needle":
        assert (await task.score(example, solve_needle(example, text))).correct
    else:
        last = text[text.rindex("\n") + 1 :]
        assert int(last[1 : last.index(" ")]) == text.count("\n"), "each record has its number"


# --- needle


def solve_needle(example: Example, text: str) -> str:
    """Reads the text alone."""
    if example.kind == "variable-tracking":
        holds: dict[str, str] = {}
        found: list[tuple[str, str]] = re.findall(
            r"variable ([A-Z]+) is set to (?:the value of variable )?(\w+)", text
        )
        for name, source in found:
            holds[name] = holds.get(source, source)
        wanted = re.findall(r"\d{7}", example.query)[0]
        return ", ".join(name for name, value in holds.items() if value == wanted)
    keys = re.findall(r"[a-z]+-[a-z]+", example.query)
    return " ".join(number for key in keys for number in re.findall(rf"number for {key} is (\d+)", text))


@pytest.mark.parametrize(
    "variant", ["single", "multi-key", "multi-value", "multi-query", "variable-tracking"]
)
async def test_needles_can_be_found_in_the_text(variant: str) -> None:
    task = create("needle", {"variant": variant, "length": "5k", "n": 4, "keys": 50, "chains": 3})
    for example in task.examples():
        text = str(task.context(example))
        found = solve_needle(example, text)
        assert (await task.score(example, found)).value == 1.0
        assert set(re.findall(r"\d{7}|[A-Z]{5}", found)) == set(example.references), "and nothing else"
        first = example.references[0]
        if len(example.references) > 1:
            assert (await task.score(example, first.lower())).value == pytest.approx(
                1 / len(example.references)
            )
        assert text.count(first) >= 1
        assert (await task.score(example, text[: text.index("\n")])).value < 1


def test_each_variant_hides_what_it_says() -> None:
    def numbers_of(**options: Any) -> tuple[int, int]:
        task = create("needle", {"length": 5_000, **options})
        example = task.examples()[0]
        return len(re.findall(r"\d{7}", str(task.context(example)))), len(example.references)

    assert numbers_of() == (1, 1)
    assert numbers_of(variant="multi-key", keys=9) == (9, 1)
    assert numbers_of(variant="multi-value", values=5) == (5, 5)
    assert numbers_of(variant="multi-query", queries=6) == (6, 6)
    assert numbers_of(variant="variable-tracking", hops=3, chains=2) == (2, 4)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_a_needle_stands_as_deep_as_asked_for(depth: float) -> None:
    task = Needle(depth=depth, length=20_000)
    example = task.examples()[0]
    text = task.context(example)
    assert text.index("special magic number") / len(text) == pytest.approx(depth, abs=0.02)


@given(
    st.integers(0, 3_000),
    st.lists(st.tuples(st.floats(0, 1), st.from_regex(r"N\d{1,30}\.", fullmatch=True)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_haystack_holds_all_in_order_and_is_never_too_long(
    characters: int, needles: list[tuple[float, str]], random: Any
) -> None:
    if sum(len(text) + 1 for _, text in needles) > characters:
        with pytest.raises(ValueError, match="do not fit"):
            haystack(random, characters, needles)
        return
    text = haystack(random, characters, needles)
    assert len(text) <= characters
    assert re.findall(r"N\d+\.", text) == [
        needle for _, needle in sorted(needles, key=lambda needle: needle[0])
    ]
    assert not re.search(r"\d", re.sub(r"N\d+\.", "", text)), "the prose has no digits of its own"


def test_the_prose_says_little_twice() -> None:
    task = Needle(length=100_000)
    sentences = re.split(r"(?<=\.) ", task.context(task.examples()[0]).replace("\n\n", " "))
    long = [sentence for sentence in sentences if len(sentence) > 60]
    assert len(set(long)) / len(long) > 0.97


# --- records


def test_no_record_calls_its_class_by_name() -> None:
    texts = [text for texts in _TEXTS.values() for text in texts]
    said = " ".join([*texts, *_OPENINGS, *_CLOSINGS, *_ITEMS]).lower()
    assert set(_TEXTS) == set(MATTERS)
    for word in ("bill", "deliver", "login", "log in", "defect", "prais", "cancel", "enquir", "inquir"):
        assert word not in said
    assert len(set(texts)) == len(texts)
    assert all(text.count("%s") == 1 and text.count("%") == 1 for text in texts)


def read_records(text: str) -> list[tuple[int, date, int, str]]:
    """Number, date, user and class of each, as somebody who knows what the texts mean reads them."""
    records: list[tuple[int, date, int, str]] = []
    for line in text.split("\n"):
        number, day, user, message = line.split(" | ", 3)
        (matter,) = [
            matter
            for matter, texts in _TEXTS.items()
            for each in texts
            if all(part in message for part in each.split("%s"))
        ]
        records.append((int(number[1:]), date.fromisoformat(day), int(user.removeprefix("user ")), matter))
    assert [number for number, *_ in records] == list(range(len(records)))
    return records


def solve_oolong(example: Example, text: str) -> str:
    records, asked = read_records(text), example.query.rpartition("\n")[2]
    matters = Counter(matter for *_, matter in records)
    named = [matter for matter in re.findall(r"\w+", asked) if matter in MATTERS]
    if example.kind == "most-common":
        return matters.most_common(1)[0][0]
    if example.kind == "compare":
        difference = matters[named[0]] - matters[named[1]]
        return "more" if difference > 0 else "fewer" if difference < 0 else "equal"
    if example.kind == "top-user":
        return str(Counter(user for _, _, user, matter in records if matter == named[0]).most_common(1)[0][0])
    kept = [record for record in records if record[3] == named[0]]
    if example.kind == "date-range":
        start, end = map(date.fromisoformat, re.findall(r"\d{4}-\d\d-\d\d", asked))
        kept = [record for record in kept if start <= record[1] <= end]
    if example.kind == "user-count":
        kept = [record for record in kept if record[2] == int(re.findall(r"\d+", asked)[0])]
    return str(len(kept))


@pytest.mark.parametrize("length", [1_000, 20_000])
async def test_oolong_can_be_answered_from_the_text(length: int) -> None:
    task = create("oolong", {"length": length, "n": 24, "seed": 3})
    examples = list(task.examples())
    for example in examples:
        answer = solve_oolong(example, str(task.context(example)))
        assert (await task.score(example, answer)).value == 1.0, (example, answer)
    assert Counter(example.kind for example in examples) == dict.fromkeys(
        ["most-common", "count", "compare", "date-range", "user-count", "top-user"], 4
    )
    assert len({example.document for example in examples}) == 4
    assert len({example.references for example in examples}) > 8


@pytest.mark.parametrize(
    ("kind", "references", "answer", "value"),
    [
        ("count", ("12",), "12", 1),
        ("count", ("12",), "There are 12 of them.", 1),
        ("count", ("12",), "13", 0.75),
        ("count", ("12",), "10.", 0.75**2),
        ("count", ("1204",), "1,204", 1),
        ("count", ("12",), "12 of 300", 0),
        ("count", ("12",), "Of 300 messages,\n12", 1),
        ("count", ("12",), "12 and again 12", 1),
        ("count", ("12",), "a dozen", 0),
        ("count", ("0",), "", 0),
        ("most-common", ("billing",), "Billing.", 1),
        ("most-common", ("billing",), "billing, then delivery", 0),
        ("most-common", ("billing", "delivery"), "delivery", 1),
        ("most-common", ("billing",), "the money", 0),
        ("compare", ("fewer",), "Fewer", 1),
        ("compare", ("fewer",), "more or fewer", 0),
        ("top-user", ("31",), "user 31", 1),
        ("top-user", ("31", "7"), "7", 1),
        ("top-user", ("31",), "31 or 7", 0),
        ("top-user", ("31",), "131", 0),
    ],
)
async def test_oolongs_scores_by_hand(
    kind: str, references: tuple[str, ...], answer: str, value: float
) -> None:
    score = await Oolong().score(Example("x", "?", references, kind=kind), answer)
    assert (score.value, score.correct) == (pytest.approx(value), value == 1)


def solve_pairs(example: Example, text: str) -> set[tuple[int, int]]:
    records, asked = read_records(text), example.query.rpartition("\n")[2]
    named = [matter for matter in re.findall(r"\w+", asked) if matter in MATTERS]
    found = set[tuple[int, int]]()
    for one, other in combinations(records, 2):
        for first, second in ((one, other), (other, one)):
            days = (second[1] - first[1]).days
            if {
                "same-user": (first[3], second[3]) == tuple(named) and first[2] == second[2],
                "close-dates": first[3] == second[3] == named[0] and abs(days) <= 7,
                "follow-up": (first[3], second[3]) == tuple(named) and 1 <= days <= 14,
            }[example.kind]:
                found.add((one[0], other[0]))
    return found


@pytest.mark.parametrize("length", [1_000, 8_000])
async def test_pairs_can_be_found_in_the_text(length: int) -> None:
    task = create("pairs", {"length": length, "n": 18})
    for example in task.examples():
        pairs = solve_pairs(example, str(task.context(example)))
        assert 1 <= len(pairs) <= 100
        answer = "The pairs: " + "; ".join(f"({high}, {low})" for low, high in pairs)
        assert (await task.score(example, answer)).correct, example
        assert (await task.score(example, json.dumps(sorted(pairs)))).correct
        assert (await task.score(example, answer + " (0, 0)")).value == pytest.approx(
            2 * len(pairs) / (2 * len(pairs) + 1)
        )


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("(1, 2), (3, 4)", 1),
        ("(2,1) and [ #4 , #3 ]", 1),
        ("(1, 2)", 2 / 3),
        ("(1, 2), (3, 4), (1, 3), (5, 6)", 2 / 3),
        ("(1, 2), (1, 2), (2, 1)", 2 / 3),
        ("1, 2", 0),
        ("", 0),
        ("(" * 10_000 + "1" * 10_000, 0),
    ],
)
async def test_pairs_scores_by_hand(answer: str, value: float) -> None:
    score = await Pairs().score(Example("x", "?", ("(1, 2), (3, 4)",)), answer)
    assert score.value == pytest.approx(value)


def test_what_does_not_fit_is_told_before_anything_is_made() -> None:
    with pytest.raises(TaskDataError, match="2000 hidden sentences do not fit a length of 1000 tokens"):
        create("needle", {"variant": "multi-key", "keys": 2000, "length": "1k"})
