"""A user's own file of questions: what is read, what is told of it, and what answers are worth."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supdist.handlers import ScriptedHandler
from supdist.tasks.base import Document, TaskDataError
from supdist.tasks.choices import read_choice
from supdist.tasks.jsonl import Jsonl
from supdist.tasks.judge import verdict_reply

pytestmark = pytest.mark.anyio

FULL = {"context": "The deck is of oak.", "query": "Of what is the deck?", "answers": ["oak", "oak wood"]}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8"
    )
    return path


def test_a_line_is_an_example(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/report.md").write_text("\ufeffThe déck\r\nis of oak.", "utf-8")
    (tmp_path / "docs/table.json").write_text('{"rows": [1, 2]}')
    path = write(
        tmp_path,
        FULL,
        "",
        {
            "context_file": "docs/report.md",
            "query": "?",
            "answer": "oak",
            "id": "oak.1",
            "document": "d",
            "kind": "k",
        },
        {"context_file": "docs/table.json", "query": "?", "answer": 3},
        {"context": ["a", {"b": 1}], "query": "?", "answers": [1.5, "x"]},
        {"context": "The deck is of oak.", "query": "?", "answer": "\ud83d\ude00"},
    )
    task = Jsonl(path=path)
    examples = task.examples()
    assert [each.id for each in examples] == ["line-0001", "oak.1", "line-0004", "line-0005", "line-0006"]
    assert [each.references for each in examples] == [
        ("oak", "oak wood"),
        ("oak",),
        ("3",),
        ("1.5", "x"),
        ("😀",),
    ]
    assert [task.context(each) for each in examples] == [
        "The deck is of oak.",
        "The déck\r\nis of oak.",
        {"rows": [1, 2]},
        ["a", {"b": 1}],
        "The deck is of oak.",
    ]
    assert [each.document for each in examples][1:3] == ["d", "docs/table.json"]
    assert examples[0].document == examples[4].document, "questions about one context stay together"
    assert examples[1].kind == "k"
    assert pickle.loads(pickle.dumps(task)).context(examples[0]) == "The deck is of oak."
    assert json.loads(json.dumps([dict(each.data) for each in examples]))


WRONG: list[tuple[Any, str]] = [
    ("{", "not JSON: .* at character 2"),
    ("[1]", "valid dictionary"),
    ({**FULL, "query": " "}, '"query" is empty'),
    ({"query": "?", "answer": "x"}, 'give either "context" or "context_file"'),
    ({**FULL, "context_file": "x.md"}, 'give either "context" or "context_file"'),
    ({"query": "?", "context": ""}, 'give either "answer"'),
    ({**FULL, "answer": "oak"}, 'give either "answer"'),
    ({**FULL, "answers": []}, "an answer is empty"),
    ({**FULL, "answers": [""]}, "an answer is empty"),
    ({**FULL, "answrs": "oak"}, '"answrs": unknown; known are query'),
    ({**FULL, "id": "../x"}, "cannot name a folder"),
    ({**FULL, "id": ".hidden"}, "cannot name a folder"),
    ({"context_file": "no.md", "query": "?", "answer": "x"}, "cannot read .*no.md"),
    ({"context_file": "questions.jsonl", "query": "?", "answer": "x"}, "is the file of questions itself"),
    ({"context_file": "bad.json", "query": "?", "answer": "x"}, "bad.json is not JSON"),
    ({"context_file": "three.json", "query": "?", "answer": "x"}, "holds a int"),
    ({"context": 3, "query": "?", "answer": "x"}, '"context"'),
    ("[" * 100_000, "nested too deeply|recursion"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_line_is_told_by_its_number(tmp_path: Path, line: Any, message: str) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "three.json").write_text("3")
    path = write(tmp_path, FULL, "", line)
    with pytest.raises(TaskDataError, match=rf"questions.jsonl cannot be used:\n  line 3: .*({message})"):
        Jsonl(path=path).examples()


def test_many_wrong_lines_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match=r"line 10: (?s:.*)and 5 more lines"):
        Jsonl(path=write(tmp_path, *["x"] * 15)).examples()


def test_files_without_questions_and_ids_that_are_there_twice(tmp_path: Path) -> None:
    with pytest.raises(TaskDataError, match="no question"):
        Jsonl(path=write(tmp_path)).examples()
    with pytest.raises(TaskDataError, match="cannot read"):
        Jsonl(path=tmp_path / "no.jsonl").examples()
    with pytest.raises(TaskDataError, match="'x' is there twice"):
        Jsonl(path=write(tmp_path, {**FULL, "id": "x"}, {**FULL, "id": "x"})).examples()


def test_what_changes_under_a_run_is_an_error_and_no_other_context(tmp_path: Path) -> None:
    document = tmp_path / "a.txt"
    document.write_text("one")
    path = write(tmp_path, FULL, {"context_file": "a.txt", "query": "?", "answer": "x"})
    task = Jsonl(path=path)
    inline, in_file = task.examples()
    before = task.data_hash()
    document.write_text("two")
    with pytest.raises(TaskDataError, match=r"a\.txt has changed"):
        task.context(in_file)
    assert task.data_hash() != before
    write(tmp_path, {**FULL, "context": "Other."})
    with pytest.raises(TaskDataError, match="has changed"):
        task.context(inline)


def test_the_hash_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, other = write(tmp_path, FULL), write(tmp_path / "other", FULL)
    assert Jsonl(path=one).data_hash() == Jsonl(path=other).data_hash()
    assert Jsonl(path=one).data_hash() != Jsonl(path=one, metric="exact").data_hash()


@pytest.mark.parametrize(
    ("metric", "answer", "value", "correct"),
    [
        ("exact", "The Oak!", 1, True),
        ("exact", "of oak", 0, False),
        ("contains", "It is of oak.", 1, True),
        ("contains", "soaked", 0, False),
        ("f1", "oak wood", 1, True),
        ("f1", "is oak", 2 / 3, True),
        ("f1", "it is made of oak", 1 / 3, False),
        ("f1", None, 0, False),
        ("judge", "oak wood", 1, None),
    ],
)
async def test_scores_by_hand(
    tmp_path: Path, metric: Any, answer: str | None, value: float, correct: bool | None
) -> None:
    task = Jsonl(path=write(tmp_path, FULL), metric=metric)
    score = await task.score(task.examples()[0], answer)
    assert (score.value, score.correct) == (pytest.approx(value), correct)
    assert set(score.metrics) == {"exact", "f1", "contains"}


async def test_the_judge_is_asked_just_where_it_decides(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    judge = ScriptedHandler(lambda messages: verdict_reply(messages, correct=True))
    by_f1, judged = Jsonl(path=path), Jsonl(path=path, metric="judge")
    assert (by_f1.wants_judge, judged.wants_judge) == (False, True)
    example = by_f1.examples()[0]
    assert (await by_f1.score(example, "timber", judge.chat)).value == 0
    assert judge.calls == []
    score = await judged.score(example, "timber", judge.chat)
    assert (score.value, score.correct, score.metrics["judge"], score.metrics["f1"]) == (1, True, 1, 0)
    none = await judged.score(example, None, judge.chat)
    assert (none.value, none.correct, len(judge.calls)) == (0, False, 1)


@given(st.lists(st.text().filter(str.strip), min_size=1, max_size=5), st.text())
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, answers: list[str], context: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = write(folder, {"context": context, "query": "?", "answers": answers}, FULL)
    task = Jsonl(path=path)
    first, second = task.examples()
    assert task.context(first) == context
    assert task.context(second) == "The deck is of oak."
    assert first.references == tuple(answers)
    assert len(task.data_hash()) == 64


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"), ("a", "A"), ("(A)", "A"), ("A.", "A"), ("**A**", "A"), ("[B]", "B"), ("`d`", "D"),
        ("\\boxed{C}", "C"), ("$\\boxed{\\text{C}}$", "C"), ("A) kitchen", "A"), ("a. kitchen", "A"),
        ("(A) kitchen", "A"), ("**B**: hall", "B"), ("The answer is A", "A"),
        ("The correct answer is (C).", "C"),
        ("answer: b", "B"), ("Answer: **D**", "D"), ("The answer is B. No, the answer is C.", "C"),
        ("The best option is B", "B"), ("The final answer would be option (d)", "D"), ("I choose B", "B"),
        ("B because A is wrong", "B"), ("The answer is A, since B is wrong.", "A"), ("kitchen, so A", "A"),
        ("The answer is (A).\n\nB is wrong.", "A"), ("(A) A kitchen", "A"), ("Answer: A\nNot C, which", "A"),
        ("A kitchen", None), ("the answer is a kitchen", None), ("I think so", None),
        ("Mary is in the hall", None),
        ("A or B", None), ("A, B", None), ("(A) and (C)", None), ("A. B. C.", None),
        ("The answer is A or B", None),
        ("", None), ("U.S.A", None), ("x" * 1_000_000, None), ("answer " * 100_000, None),
        ("(" * 1_000_000, None),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_the_letter_of_an_answer_is_read(answer: str, letter: str | None) -> None:
    assert read_choice(answer) == letter


@pytest.mark.parametrize(
    ("reference", "answer", "metric", "value"),
    [
        ("A", "A", "f1", 1), ("A", "A", "contains", 1), ("A", "A", "exact", 1), ("A", "A", "choice", 1),
        ("A", "the", "exact", 0), ("A", "B", "exact", 0), ("A", "It is a hall", "contains", 0),
        ("A", "", "f1", 0),
        ("B", "A, B", "exact", 0), ("B", "A B", "f1", 0), ("B", "(B) the hall", "exact", 1),
        ("B", "b", "choice", 1),
        ("(B)", "The answer is B.", "choice", 1), ("B. the hall", "B", "choice", 1),
        ("B", "the hall", "choice", 0),
        ("the hall", "A hall.", "choice", 1), ("the", "The", "exact", 1), ("the", "a", "exact", 0),
        ("the", "", "f1", 0), ("x", "the x", "f1", 1), ("a", "A", "f1", 1), ("C", "the C language", "f1", 1),
        ("C", "C, by D. Ritchie", "contains", 1), ("C", "C, by D. Ritchie", "exact", 0),
        ("x-ray", "an x-ray", "exact", 1), ("vitamin C", "Vitamin C.", "choice", 1), ("?", "", "contains", 0),
    ],
)  # fmt: skip
async def test_the_letter_a_is_no_article(
    tmp_path: Path, reference: str, answer: str, metric: Any, value: float
) -> None:
    task = Jsonl(path=write(tmp_path, {"query": "?", "context": "c", "answer": reference}), metric=metric)
    (example,) = task.examples()
    score = await task.score(example, answer)
    assert (score.value, score.correct) == (value, value == 1)
    assert set(score.metrics) == {"exact", "f1", "contains"} | ({"choice"} if metric == "choice" else set())


def test_a_document_is_given_to_the_caller_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>oak</p>")
    (tmp_path / "old.txt").write_bytes("Brücke".encode("cp1252"))
    (tmp_path / "windows.md").write_text("Brücke", "utf-16")
    names = ("page.html", "old.txt", "windows.md")
    path = write(tmp_path, *({"context_file": name, "query": "?", "answer": "x"} for name in names))
    task = Jsonl(path=path)
    assert [task.context(each) for each in task.examples()] == [
        Document("page.html", b"<p>oak</p>"), Document("old.txt", "Brücke".encode("cp1252")), "Brücke",
    ]  # fmt: skip
    raw = Jsonl(path=path, raw_html=True)
    assert raw.context(raw.examples()[0]) == Document("page.html", b"<p>oak</p>", raw_html=True)
    assert raw.data_hash() != task.data_hash()
