"""QASPER: its files in all their forms, its scorer, and what the task makes of them."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import REPOSITORY

from supdist.handlers import ScriptedHandler
from supdist.tasks.base import TaskDataError
from supdist.tasks.judge import verdict_reply
from supdist.tasks.metrics import token_f1
from supdist.tasks.qasper import (
    KINDS,
    Prediction,
    Qasper,
    best_answer,
    evaluate,
    evidence_f1,
    main,
    score_predictions,
)
from supdist.tasks.qasper_files import Reference, read_papers

pytestmark = pytest.mark.anyio


def answer(**given: Any) -> dict[str, Any]:
    empty: Any = dict.fromkeys(["unanswerable", "extractive_spans", "yes_no", "free_form_answer", "evidence"])
    return {"answer": {**empty, "highlighted_evidence": [], **given}, "annotation_id": "a", "worker_id": "w"}


def question(name: str, *answers: dict[str, Any], text: str = "What is it?") -> dict[str, Any]:
    return {"question": text, "question_id": name, "answers": list(answers)}


def paper(number: int, *qas: dict[str, Any]) -> dict[str, Any]:
    sections = [
        {"section_name": "Introduction", "paragraphs": [f"Paper {number} begins.", ""]},
        {"section_name": None, "paragraphs": ["A section without a name."]},
    ]
    return {
        "title": f"Title {number}",
        "abstract": f"Abstract {number}.",
        "full_text": sections,
        "qas": list(qas),
    }


SPANS = answer(extractive_spans=["English", "German"], evidence=["P1", "FLOAT SELECTED: Table 1"])
FREE = answer(free_form_answer="English and German", evidence=["P1", "P2"])
YES, NO, NONE = answer(yes_no=True), answer(yes_no=False, evidence=["P1"]), answer(unanswerable=True)
OFFICIAL = {
    "p0": paper(0, question("q0", SPANS, FREE), question("q1", YES, NO, NO)),
    "p1": paper(1, question("q2", NONE, FREE)),
    "p2": paper(2, question("q3", NO)),
}


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def hub_rows() -> list[dict[str, Any]]:
    """The same as the hub has it: what is a list of objects there is an object of lists."""
    return [
        {
            "id": key,
            **paper,
            "full_text": columns(paper["full_text"]),
            "qas": columns([{**qa, "answers": columns(qa["answers"])} for qa in paper["qas"]]),
        }
        for key, paper in OFFICIAL.items()
    ]


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write(tmp_path / "qasper-test-v0.3.json", OFFICIAL)


def test_all_forms_of_the_file_are_the_same_papers(tmp_path: Path, official: Path) -> None:
    rows = hub_rows()
    forms = [
        write(tmp_path / "rows.json", rows),
        write(tmp_path / "columns.json", columns(rows)),
        write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)) + "\n"),
    ]
    assert [read_papers(form) for form in forms] == [read_papers(official)] * 3
    assert len({Qasper(path=form).data_hash() for form in (official, *forms)}) == 1
    assert (
        len(
            {
                json.dumps([vars_of(each) for each in Qasper(path=form).examples()])
                for form in (official, *forms)
            }
        )
        == 1
    )


def vars_of(example: Any) -> list[Any]:
    return [example.id, example.query, example.references, example.document, example.kind, dict(example.data)]


def test_the_hub_is_read_through_datasets(tmp_path: Path, official: Path) -> None:
    """A folder of Parquet, as the hub's: the library reads both by the same call."""
    code = f"""
import json, sys
from pathlib import Path
import datasets
from supdist.tasks.qasper import Qasper
rows = json.loads(Path("rows.json").read_text())
Path("hub").mkdir()
datasets.Dataset.from_list(rows).to_parquet("hub/test.parquet")
loaded = Qasper(dataset="hub", split="test")
print(loaded.data_hash() == Qasper(path=Path({str(official)!r})).data_hash(), len(loaded.examples()))
"""
    write(tmp_path / "rows.json", hub_rows())
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "True 4\n", done.stderr


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskDataError, match=r"supdist-engine\[datasets\]"):
        Qasper(dataset="no-such/dataset").examples()


def test_importing_the_task_imports_no_heavy_library() -> None:
    code = (
        "import sys, supdist.tasks.qasper; print(sorted({'datasets', 'pandas', 'pyarrow', 'openai'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"


WRONG: list[tuple[Any, str]] = [
    ("{", "is not JSON"),
    ("[]", "neither papers by id"),
    ("3", "neither papers by id"),
    ({"p": {"qas": [{"question": "?"}]}}, "paper 1 is not as QASPER has it: qas.0.question_id"),
    ({"id": ["a"], "qas": []}, "differ in length"),
    ([{"id": "p", "qas": []}] * 2, "the id of another"),
    ({"p": paper(0, question("q", answer()))}, "'q' has an annotation without answer"),
    ({"p": paper(0, question("q"))}, "'q' has no answer"),
    ({"p": paper(0, question("../q", YES))}, "cannot name a folder"),
    ({"p": paper(0, question("q", YES), question("q", YES))}, "'q' is there twice"),
    (
        {"p": paper(0, {**question("q"), "answers": {"answer": [1, 2], "worker_id": [1]}})},
        "differ in length",
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_what_is_no_qasper_is_told(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(TaskDataError, match=message):
        Qasper(path=write(tmp_path / "a.json", content)).examples()


def test_a_folder_needs_one_file_of_the_split(tmp_path: Path, official: Path) -> None:
    write(tmp_path / "qasper-dev-v0.3.json", {"d": paper(9, question("q9", YES))})
    assert [each.id for each in Qasper(path=tmp_path, split="validation").examples()] == ["q9"]
    assert len(Qasper(path=tmp_path, split="test").examples()) == 4
    with pytest.raises(TaskDataError, match="with 'train' in its name, and has none"):
        Qasper(path=tmp_path, split="train").examples()
    with pytest.raises(TaskDataError, match="cannot read"):
        Qasper(path=tmp_path / "no.json").examples()


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"p": paper(0, question("q", YES))})
    before = Qasper(path=path).data_hash()
    write(path, {"p": paper(0, question("longer", YES))})
    assert Qasper(path=path).data_hash() != before
    (example,) = Qasper(path=path).examples()
    write(path, {"another": paper(0, question("q", YES))})
    with pytest.raises(TaskDataError, match="no paper 'p' any more"):
        Qasper(path=path).context(example)


def test_an_example_is_a_question_of_its_papers_majority(official: Path) -> None:
    q0, q1, q2, q3 = Qasper(path=official, hint=False).examples()
    assert (q0.id, q0.document, q0.query) == ("q0", "p0", "What is it?")
    assert [each.kind for each in (q0, q1, q2, q3)] == ["extractive", "boolean", "none", "boolean"]
    assert q0.references == ("English, German", "English and German")
    assert q1.references == ("Yes", "No")
    hinted = Qasper(path=official).examples()[0]
    assert hinted.query.startswith("What is it?\n\n")
    assert "Unanswerable" in hinted.query
    assert pickle.loads(pickle.dumps(q0)) == q0


def test_the_context_is_the_papers_text_word_by_word(official: Path) -> None:
    task = Qasper(path=official)
    assert task.context(task.examples()[0]) == (
        "# Title 0\n\n## Abstract\n\nAbstract 0.\n\n## Introduction\n\nPaper 0 begins.\n\n"
        "A section without a name."
    )


def test_distractors_are_other_papers_the_same_ones_every_time(official: Path) -> None:
    task = Qasper(path=official, distractors=2)
    examples = task.examples()
    contexts = [task.context(each) for each in examples]
    assert contexts == [pickle.loads(pickle.dumps(task)).context(each) for each in examples]
    assert all(context.count(f"# Title {number}\n") == 1 for context in contexts for number in range(3))
    assert len(set(contexts)) > 1, "in an order that the example decides"
    assert 'paper "Title 1"' in examples[2].query
    one = Qasper(path=official, distractors=1)
    assert all(one.context(each).count("# Title ") == 2 for each in one.examples())
    assert all(f"# Title {each.document[1:]}\n" in one.context(each) for each in one.examples())
    with pytest.raises(TaskDataError, match="use at most 2"):
        Qasper(path=official, distractors=3).examples()


@pytest.mark.parametrize(
    ("reply", "index", "f1", "kind"),
    [
        ("English, German", 0, 1, "extractive"),
        ("english and german.", 0, 1, "abstractive"),
        ("French", 0, 0, "extractive"),  # all tie at 0: the first annotator
        ("", 1, 0, "boolean"),
        ("No.", 1, 1, "boolean"),
        ("unanswerable", 2, 1, "none"),
        ("German", 2, 0.5, "abstractive"),
    ],
)
async def test_scores_without_a_judge(official: Path, reply: str, index: int, f1: float, kind: str) -> None:
    task = Qasper(path=official)
    score = await task.score(task.examples()[index], reply)
    assert (score.value, score.correct, score.metrics, score.kind) == (
        pytest.approx(f1),
        None,
        {"answer_f1": score.value},
        kind,
    )


async def test_the_judge_decides_what_is_correct_and_f1_stays_the_figure(official: Path) -> None:
    task = Qasper(path=official)
    example = task.examples()[0]
    judge = ScriptedHandler(lambda messages: "They agree. " + verdict_reply(messages, correct=True))
    score = await task.score(example, "Deutsch", judge.chat)
    assert (score.value, score.correct, score.note) == (0, True, "They agree.")
    assert score.metrics == {"answer_f1": 0, "judge": 1}
    prompt = judge.calls[0][-1]["content"]
    assert "What is it?" in prompt
    assert "as briefly" not in prompt, "the judge sees the question as it was asked"


async def test_an_answer_that_never_came_is_wrong_and_not_judged(official: Path) -> None:
    task = Qasper(path=official)
    judge = ScriptedHandler([])
    score = await task.score(task.examples()[0], None, judge.chat)
    assert (score.value, score.correct, score.kind) == (0, False, "")
    assert score.metrics == {"answer_f1": 0, "judge": 0}
    assert task.wants_judge


@pytest.mark.parametrize(
    ("predicted", "gold", "f1"),
    [
        ([], [], 1),
        (["P1"], [], 0),
        ([], ["P1"], 0),
        (["P1"], ["P1", "P2"], 2 / 3),
        (["P1", "P1"], ["P1"], 2 / 3),  # the second counts in the length, and is not found again
        (["p1"], ["P1"], 0),
    ],
)
def test_evidence_f1_by_hand(predicted: list[str], gold: list[str], f1: float) -> None:
    assert evidence_f1(predicted, gold) == pytest.approx(f1, abs=1e-12)


def test_a_file_of_predictions_by_hand(
    tmp_path: Path, official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, Any]] = [
        {"question_id": "q0", "predicted_answer": "the English", "predicted_evidence": ["P1"]},
        {"question_id": "q1", "predicted_answer": None, "predicted_evidence": None},
        {"question_id": "q2", "predicted_answer": "German", "predicted_evidence": []},
        {"question_id": "q2", "predicted_answer": "Unanswerable", "predicted_evidence": []},
        {"question_id": "q9", "predicted_answer": "x", "predicted_evidence": []},
    ]
    predictions = write(tmp_path / "predictions.jsonl", "\n\n".join(map(json.dumps, lines)))
    expected = {
        "Answer F1": pytest.approx((2 / 3 + 0 + 1 + 0) / 4, abs=1e-12),
        "Answer F1 by type": {"extractive": pytest.approx(2 / 3), "abstractive": 0, "boolean": 0, "none": 1},
        "Evidence F1": pytest.approx((2 / 3 + 1 + 1 + 0) / 4, abs=1e-12),
        "Missing predictions": 1,
    }
    assert score_predictions(official, predictions) == expected
    text_only = score_predictions(official, predictions, text_evidence_only=True)
    assert text_only == {**expected, "Evidence F1": pytest.approx((1 + 1 + 1 + 0) / 4)}
    assert main([str(official), str(predictions)]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_the_module_is_a_program_and_names_a_bad_line(tmp_path: Path, official: Path) -> None:
    predictions = write(tmp_path / "predictions.jsonl", '{"question_id": "q0"}\nx\n')
    done = subprocess.run(
        [sys.executable, "-m", "supdist.tasks.qasper", str(official), str(predictions)],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 2
    assert "predictions.jsonl, line 2" in done.stderr


REFERENCES = st.lists(
    st.builds(Reference, st.sampled_from(["a b c", "b", "c d", "the b", "Yes", ""]), st.sampled_from(KINDS)),
    min_size=1,
)
ANSWERS = st.lists(st.sampled_from(["b", "c", "the", "d", "yes"])).map(" ".join)


@given(ANSWERS, REFERENCES, st.randoms(use_true_random=False))
def test_the_best_annotator_decides_in_any_order(
    reply: str, references: list[Reference], order: random.Random
) -> None:
    f1, kind = best_answer(reply, references)
    scores = [token_f1(reply, each.text) for each in references]
    assert f1 == max(scores)
    assert kind == references[scores.index(f1)].kind, "of those that tie, the first"
    shuffled = list(references)
    order.shuffle(shuffled)
    assert best_answer(reply, shuffled)[0] == f1
    assert best_answer(reply, shuffled)[1] in {
        each.kind for each, score in zip(references, scores, strict=True) if score == f1
    }


@given(
    st.dictionaries(st.text("abc", min_size=1), REFERENCES),
    st.dictionaries(st.text("abc", min_size=1), ANSWERS),
)
def test_the_mean_counts_what_is_missing_and_types_do_not(
    gold: dict[str, list[Reference]], replies: dict[str, str]
) -> None:
    found = evaluate(gold, {name: Prediction(reply) for name, reply in replies.items()})
    scores = [best_answer(replies[name], references) for name, references in gold.items() if name in replies]
    assert found["Missing predictions"] == len(gold) - len(scores)
    assert found["Answer F1"] * len(gold) == pytest.approx(sum(f1 for f1, _ in scores))
    assert set(found["Answer F1 by type"]) == set(KINDS)
    for kind, value in found["Answer F1 by type"].items():
        of_kind = [f1 for f1, scored in scores if scored == kind]
        assert value == pytest.approx(sum(of_kind) / len(of_kind) if of_kind else 0)
