"""Experiments in this process: what is recorded, what goes on, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from eval_support import asked_twice, config, play, rows
from eval_support import settings as settings_of
from lookup_task import Lookup
from support import block

from supdist.engine import LogError, TaskError
from supdist.handlers import NoAccess, Unavailable, Unreachable
from supdist.tasks.base import Ask, Example, Score, TaskDataError
from supdist.tasks.registry import create
from supdist.tools.evals.config import ExperimentConfig, Manifest
from supdist.tools.evals.executors import _spent  # pyright: ignore[reportPrivateUsage] - of a failed attempt
from supdist.tools.evals.folder import COLUMNS, open_folder, read_manifest, results_csv
from supdist.tools.evals.records import (
    CONFIG,
    EXAMPLES,
    RECORDS,
    TABLE,
    Failure,
    Record,
    Tokens,
    read_records,
)
from supdist.tools.evals.report import Summary
from supdist.tools.evals.runner import run_experiment
from supdist.tools.testing.fake_openai import FakeOpenAI, Reply, Request, Status, Text

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine", "bare_environment")]

SMALL: dict[str, Any] = {"n": 4, "limits": {"max_iterations": 3}}


async def run(server: FakeOpenAI, folder: Path, task: Lookup | None = None, **changes: Any) -> Summary:
    how = {name: changes.pop(name) for name in ("resume", "retry_failed", "observer") if name in changes}
    settings = config(server, **{**SMALL, **changes})
    return await run_experiment(settings, folder, task=task or Lookup(), **how)


async def test_every_example_is_recorded_with_what_it_took(tmp_path: Path) -> None:
    async with FakeOpenAI(play) as server:
        summary = await run(server, tmp_path, Lookup(judged=True))
    records = read_records(tmp_path)
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert [record.example for record in records] == [each.id for each in Lookup().sample(4, 42)]
    for record in records:
        assert (record.answer, record.score, record.correct) == (record.references[0], 1.0, True)
        assert (record.steps, record.stop_reason, record.note) == (2, "final", "as asked")
        assert (record.supervisor.calls, record.worker.calls, record.judge.calls) == (2, 1, 1)
        assert (record.supervisor_model, record.worker_model, record.judge_model) == ("big", "small", "judge")
        assert record.metrics == {"exact": 1.0, "judge": 1.0}
        logs = tmp_path / EXAMPLES / record.example
        events = [json.loads(line) for line in (logs / "supervisor.jsonl").read_text().splitlines()]
        assert {event["run_id"] for event in events} == {record.run_id}
    assert (summary.examples, summary.failed, summary.judged, summary.correct) == (4, 0, 4, 4)
    billed = sum(entry.prompt_tokens + 2.5 * entry.completion_tokens for entry in server.ledger) / 1e6
    assert summary.cost_usd == pytest.approx(billed)
    manifest, is_own = read_manifest(tmp_path)
    assert isinstance(manifest, Manifest)
    assert is_own
    assert manifest.provenance.data_hash == Lookup().data_hash()
    assert manifest.provenance.sample == [record.example for record in records]


async def test_the_table_has_the_documented_columns_in_the_order_of_the_sample(tmp_path: Path) -> None:
    async with FakeOpenAI(play) as server:
        await run(server, tmp_path, concurrency=3)
    header = (tmp_path / TABLE).read_text().splitlines()[0].split(",")
    assert header == [*COLUMNS, "metric.exact"]
    assert [row["index"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("strategy", "supervisor_calls", "steps"), [("no-worker", 1, 1), ("direct", 1, 1), ("builtin", 3, 3)]
)
async def test_every_other_arm_runs(strategy: str, supervisor_calls: int, steps: int, tmp_path: Path) -> None:
    def alone(request: Request) -> Reply:
        asked = request.body["messages"][-1]["content"]
        code = (
            "import re\nitem = re.search('item-[0-9]+', query)[0]\n"
            "FINAL(re.search(item + ' is ([0-9]+)', context)[1])"
        )
        return Text(looked_up_or(asked) if strategy == "direct" else block(code))

    def looked_up_or(asked: str) -> str:
        from eval_support import looked_up

        return looked_up(asked)

    async with FakeOpenAI(alone) as server:
        summary = await run(server, tmp_path, strategy=strategy, window=4096)
    records = read_records(tmp_path)
    assert [(record.supervisor.calls, record.steps) for record in records] == [(supervisor_calls, steps)] * 4
    assert {record.strategy for record in records} == {strategy}
    assert all(record.error is None for record in records)
    if strategy != "builtin":
        assert summary.correct == 4
        assert summary.worker.calls == 0
        assert {record.worker_model for record in records} == {""}
    logs = tmp_path / EXAMPLES / records[0].example / "supervisor.jsonl"
    events = [json.loads(line)["event"] for line in logs.read_text().splitlines()]
    assert events == ["run_start", *["supervisor"] * supervisor_calls, "run_end"]


async def test_a_failed_example_is_recorded_with_what_it_cost_and_stops_nothing(tmp_path: Path) -> None:
    broken = Lookup().sample(4, 42)[1].id

    def sometimes(request: Request) -> Reply:
        messages = request.body["messages"]
        if request.model == "big" and len(messages) > 2 and f"{broken}?" in messages[1]["content"]:
            return Status(500)
        return play(request)

    async with FakeOpenAI(sometimes) as server:
        summary = await run(server, tmp_path)
        assert (summary.failed, summary.correct) == (1, 3)
        failed = read_records(tmp_path)[1]
        assert failed.error is not None
        assert (failed.error.stage, failed.error.type) == ("run", "Unavailable")
        assert (failed.supervisor.calls, failed.worker.calls, failed.steps) == (1, 1, 2)
        assert failed.answer is failed.score is failed.correct is None
        before = len(server.requests)
        assert (await run(server, tmp_path, resume=True)).failed == 1
        assert len(server.requests) == before, "what failed is not tried again unless that is asked for"


def test_a_log_that_is_no_log_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "supervisor.jsonl").write_text("[" * 5000 + "\n" + '{"event": "supervisor", "run_id": 1}\n')
    spent = _spent(tmp_path)
    assert (spent["run_id"], spent["steps"], spent["supervisor"], spent["worker"]) == (
        "",
        0,
        Tokens(),
        Tokens(),
    )


async def test_retry_failed_runs_the_failed_again_and_only_judges_what_only_was_not_judged(
    tmp_path: Path,
) -> None:
    first, second = (each.id for each in Lookup().sample(2, 42))
    trouble = {first: "big", second: "judge"}

    def sometimes(request: Request) -> Reply:
        text = repr(request.body["messages"])
        code = Lookup().code(int(second.removeprefix("item-")))
        if request.model == "big" and trouble and f"{first}?" in text:
            return Status(500)
        if request.model == "judge" and trouble and code in text:
            return Text("I cannot say")
        return play(request)

    async with FakeOpenAI(sometimes) as server:
        task = Lookup(judged=True)
        summary = await run(server, tmp_path, task, n=2, cache="off")
        errors = [record.error for record in read_records(tmp_path) if record.error]
        assert [(error.stage, error.type) for error in errors] == [
            ("run", "Unavailable"),
            ("score", "JudgeError"),
        ]
        assert summary.failed == 2
        trouble.clear()
        asked = len(server.requests)
        summary = await run(server, tmp_path, task, n=2, cache="off", resume=True, retry_failed=True)
        assert (summary.failed, summary.correct) == (0, 2)
        models = sorted(request.model for request in server.requests[asked:])
        assert models == ["big", "big", "judge", "judge", "small"]
    assert len((tmp_path / RECORDS).read_text().splitlines()) == 4
    assert (tmp_path / "interrupted" / f"{first}.1" / "supervisor.jsonl").exists()


async def test_a_wrong_key_stops_all_and_what_ended_stays(tmp_path: Path) -> None:
    keys = iter(["good"] * 4)

    def revoked(request: Request) -> Reply:
        if request.model == "big" and next(keys, None) is None:
            return Status(401, message="no such key")
        return play(request)

    async with FakeOpenAI(revoked) as server:
        with pytest.raises(NoAccess, match="no such key"):
            await run(server, tmp_path, concurrency=1)
        assert len(read_records(tmp_path)) == len(rows(tmp_path)) == 2
    async with FakeOpenAI(play, port=int(server.base_url.split(":")[2].split("/")[0])) as again:
        summary = await run(again, tmp_path, concurrency=1, resume=True)
    assert (summary.examples, summary.correct) == (4, 4)
    assert len(again.requests) == 2 * 3


def with_judge(reply: Reply) -> Callable[[Request], Reply]:
    """Return a play in which the judge gets one reply, always."""
    return lambda request: reply if request.model == "judge" else play(request)


async def test_a_wrong_key_of_the_judge_keeps_the_answer_that_was_paid_for(tmp_path: Path) -> None:
    async with FakeOpenAI(with_judge(Status(401))) as server:
        with pytest.raises(NoAccess):
            await run(server, tmp_path, Lookup(judged=True), concurrency=1)
    (record,) = read_records(tmp_path)
    assert record.error is not None
    assert (record.error.stage, record.answer) == ("score", record.references[0])


@pytest.mark.parametrize("role", ["supervisor", "worker", "judge"])
async def test_a_model_without_a_connection_stops_the_experiment(tmp_path: Path, role: str) -> None:
    async with FakeOpenAI(play) as server:
        model = {**settings_of(server)[role], "base_url": "http://127.0.0.1:9/v1"}
        with pytest.raises(Unreachable, match="Connection refused"):
            await run(server, tmp_path, Lookup(judged=True), concurrency=1, **{role: model})
    records = read_records(tmp_path)
    # An answer that was paid for is kept, to be judged later.
    assert [record.answer for record in records] == [each.references[0] for each in records]
    assert len(records) == (role == "judge")


async def test_a_worker_that_fails_for_good_gives_no_score_to_a_guess(tmp_path: Path) -> None:
    """The code catches the error and guesses."""
    guess = Text("```repl\ntry: worker('x')\nexcept Exception: FINAL('a guess')\n```")
    trouble = {"small": Status(503)}
    async with FakeOpenAI(lambda request: trouble.get(request.model, guess)) as server:
        summary = await run(server, tmp_path, Lookup(judged=False), concurrency=1)
        assert (summary.failed, summary.score) == (summary.examples, None)
        trouble["small"] = Status(401)
        with pytest.raises(NoAccess, match="answered none of 1 call:"):
            await run(server, tmp_path / "again", Lookup(judged=False), concurrency=1)


async def test_a_judge_that_never_answers_stops_the_experiment_after_three_calls(tmp_path: Path) -> None:
    async with FakeOpenAI(with_judge(Status(503))) as server:
        with pytest.raises(Unavailable):
            await run(server, tmp_path, Lookup(judged=True), concurrency=1)
    assert len(read_records(tmp_path)) == 3


async def test_figures_that_need_no_judge_are_kept_when_it_fails(tmp_path: Path) -> None:
    async with FakeOpenAI(with_judge(Status(401))) as server:
        with pytest.raises(NoAccess):
            await run(server, tmp_path, Lookup(judged=True), concurrency=1)
    (record,) = read_records(tmp_path)
    assert (record.metrics, record.score) == ({"exact": 1.0}, None)


class BrokenJudging(Lookup):
    """Its code fails at the judge's reply, and with no judge it does not."""

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        if judge is None:
            return Score(0.5, None, {"f1": 0.5})
        await judge([{"role": "user", "content": "x"}])
        raise RuntimeError("the reply has another form")

    @property
    def judge_decides(self) -> bool:
        return False


async def test_whatever_goes_wrong_with_a_judge_loses_no_other_figure(tmp_path: Path) -> None:
    async with FakeOpenAI(with_judge(Status(400))) as server:
        await run(server, tmp_path / "a", BrokenJudging(judged=True), n=2, concurrency=1)
    async with FakeOpenAI(with_judge(Text("well"))) as server:
        await run(server, tmp_path / "b", BrokenJudging(judged=True), n=2, concurrency=1)
    for folder, error in (("a", "Rejected"), ("b", "RuntimeError")):
        for each in read_records(tmp_path / folder):
            assert (each.error is not None and each.error.type, each.score) == (error, 0.5)
            assert each.metrics == {"f1": 0.5}


async def test_fewer_examples_than_asked_for_are_told(tmp_path: Path) -> None:
    notes: list[str] = []

    class Watcher:
        def note(self, text: str) -> None:
            notes.append(text)

        def begin(self, total: int, ended: Sequence[Record]) -> None: ...

        def ended(self, record: Record) -> None: ...

    needle = create("needle", {"n": 2, "length": "1k"})
    for n, said in (
        (200, ["the task lookup has only 2 examples, not 200: all of them are run; for more, add -T n=200"]),
        (2, []),
        (-1, []),
    ):
        notes.clear()
        async with FakeOpenAI(play) as server:
            settings = config(server, **{**SMALL, "n": n})
            summary = await run_experiment(settings, tmp_path / str(n), task=needle, observer=Watcher())
        assert (notes, summary.examples) == (said, 2)


async def test_cancelled_it_leaves_what_ended_and_goes_on_without_paying_twice(tmp_path: Path) -> None:
    class Watcher:
        def note(self, text: str) -> None: ...

        def begin(self, total: int, ended: Sequence[Record]) -> None: ...

        def ended(self, record: Record) -> None:
            if record.index == 1:
                running.cancel()

    async with FakeOpenAI(play) as server:
        work = run(server, tmp_path, concurrency=1, observer=Watcher())
        running = asyncio.ensure_future(work)
        with pytest.raises(asyncio.CancelledError):
            await running
        ended = len(read_records(tmp_path))
        assert ended == 2
        summary = await run(server, tmp_path, concurrency=2, resume=True)
        assert (summary.examples, summary.correct) == (4, 4)
        assert asked_twice(server) <= 1


async def test_half_a_line_is_cut_away_and_its_example_is_run_again_for_nothing(tmp_path: Path) -> None:
    async with FakeOpenAI(play) as server:
        await run(server, tmp_path)
        whole, asked = rows(tmp_path), len(server.requests)
        path = tmp_path / RECORDS
        path.write_bytes(path.read_bytes()[:-10])
        await run(server, tmp_path, resume=True)
        assert rows(tmp_path) == whole
        assert len(server.requests) == asked
    assert len(read_records(tmp_path)) == len(path.read_text().splitlines()) == 4


async def test_other_settings_and_other_data_are_refused_by_name(tmp_path: Path) -> None:
    async with FakeOpenAI(play) as server:
        await run(server, tmp_path)
        with pytest.raises(TaskError, match="--resume"):
            await run(server, tmp_path)
        with pytest.raises(TaskError, match="seed: 42 before, 43 now"):
            await run(server, tmp_path, resume=True, seed=43)
        with pytest.raises(TaskDataError, match="other data"):
            await run(server, tmp_path, Lookup(salt="x"), resume=True)
        asked = len(server.requests)
        assert (await run(server, tmp_path, resume=True, concurrency=9)).correct == 4
        assert len(server.requests) == asked


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    async with FakeOpenAI(play) as server:
        with open_folder(tmp_path / "here"), pytest.raises(TaskError, match="another process"):
            await run(server, tmp_path / "here")
    assert not (tmp_path / "here").exists(), "nothing was begun"


async def test_what_cannot_be_written_stops_before_anything_is_paid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with FakeOpenAI(play) as server:
        with pytest.raises(LogError, match="Choose another folder"):
            await run(server, tmp_path / "file")
        assert server.requests == []


async def test_an_arm_that_cannot_be_had_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pair = {"supervisor": {"handler": "builtin"}, "worker": {"handler": "builtin"}}
    settings = ExperimentConfig.model_validate({**pair, "strategy": "no-worker", "task": "lookup"})
    with pytest.raises(TaskError, match="no-worker"):
        await run_experiment(settings, tmp_path / "a", task=Lookup())
    async with FakeOpenAI(play) as server:
        with pytest.raises(TaskError, match="--window"):
            await run(server, tmp_path / "b", strategy="direct")
        assert server.requests == []
    assert list(tmp_path.iterdir()) == []


class Odd(Lookup):
    """Ids that are none, and scores that are none."""

    def sample(self, n: int, seed: int) -> list[Example]:
        return [Example(id=self.salt, query="What is the code of item-1?")] * n

    async def score(self, example: Example, answer: str | None, judge: Ask | None = None) -> Score:
        return Score(float("nan"), None, {})


@pytest.mark.parametrize(
    ("salt", "n", "words"), [("../x", 1, "is no id"), ("a", 2, "two examples"), ("a", 0, "no example")]
)
async def test_ids_that_cannot_name_folders_are_refused(
    salt: str, n: int, words: str, tmp_path: Path
) -> None:
    async with FakeOpenAI(play) as server:
        with pytest.raises(TaskDataError, match=words):
            await run(server, tmp_path / "x", Odd(salt=salt), n=n)
        assert server.requests == []


async def test_a_score_that_is_none_is_the_scorers_failure(tmp_path: Path) -> None:
    async with FakeOpenAI(play) as server:
        summary = await run(server, tmp_path, Odd(salt="a"), n=1)
    (record,) = read_records(tmp_path)
    assert summary.failed == 1
    assert record.error is not None
    assert (record.error.stage, record.error.type) == ("score", "ValueError")


def test_the_table_holds_any_text() -> None:
    record = Record(
        index=0,
        example="a",
        strategy="direct",
        query='a,b\r\n"c"',
        references=["x\ny"],
        answer="\x00;=1",
        score=None,
        correct=None,
        steps=0,
        stop_reason=None,
        context_chars=0,
        seconds=1 / 3,
    )
    assert '"a,b\r\n""c"""' in results_csv([record])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", " =1", "\r\n@x", "'=1"])
def test_no_cell_of_the_table_is_a_formula(text: str) -> None:
    record = Record(
        index=0,
        example="a",
        document=text,
        strategy="direct",
        query=text,
        references=[text],
        answer=text,
        note=text,
        score=None,
        correct=None,
        steps=0,
        stop_reason=None,
        context_chars=0,
        seconds=1 / 3,
        error=Failure(stage="run", type="x", message=text),
    )
    (cells,) = csv.DictReader(io.StringIO(results_csv([record]), newline=""))
    for column in ("document", "query", "answer", "note", "error_message"):
        assert cells[column] == f"'{text}"
    assert cells["seconds"] == "0.333"
    assert json.loads(cells["references"]) == [text]


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    settings = ExperimentConfig.model_validate(
        {
            "task": "t",
            "task_options": {"length": [1, 2]},
            "sandbox": {"memory": "512MiB"},
            "judge": "none",
            "limits": {"max_cost_usd": 1},
        }
    )
    assert (
        ExperimentConfig.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings
    )


@pytest.mark.parametrize(
    "model",
    [
        {"extra_headers": {"X-Api-Key": "abc"}},
        {"base_url": "http://u:p@host/v1"},
        {"base_url": "http://h/v1?token=1"},
    ],
)
def test_a_key_among_the_settings_is_refused(model: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="api_key_env"):
        ExperimentConfig.model_validate({"supervisor": {"handler": "openai", "model": "m", **model}})


async def test_no_key_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-indeed")
    async with FakeOpenAI(play) as server:
        await run(server, tmp_path)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-very-secret" in content for content in written)
    assert CONFIG in {path.name for path in tmp_path.iterdir()}
