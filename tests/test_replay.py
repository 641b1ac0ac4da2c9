"""Exported conversations are executed again and show the same, and what was changed is found."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from export_support import Experiment, shouting
from support import SMALL_CONFIG, block

from supdist.engine import RunLimits, TaskError
from supdist.engine.private_files import MAX_LINE_BYTES
from supdist.engine.runlog.events import Cell, ImageFacts
from supdist.handlers import Completion, Message, Rejected, ScriptedHandler
from supdist.tools.distill.export import export
from supdist.tools.distill.exported_lines import read_lines
from supdist.tools.distill.options import ExportOptions
from supdist.tools.distill.recorded_run import NoReplay, RecordedCells, result_of
from supdist.tools.distill.replay import LineReport, replay
from supdist.tools.replay import _print_report  # pyright: ignore[reportPrivateUsage] - what it prints

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path / "logs")


async def replayed(experiment: Experiment) -> list[LineReport]:
    out = experiment.folder.parent / "out"
    if not out.exists():
        export([experiment.folder], out, ExportOptions("sft", validation=0))
    return [report async for report in replay(out)]


async def verdicts(experiment: Experiment) -> list[str]:
    """Of the only line."""
    (report,) = await replayed(experiment)
    return [turn.verdict for turn in report.turns]


def change(path: Path, alter: Callable[[Any], None], line: int = 0) -> None:
    """Change a line of a JSONL file."""
    lines = path.read_text().splitlines()
    data = json.loads(lines[line])
    alter(data)
    lines[line] = json.dumps(data)
    path.write_text("\n".join(lines) + "\n")


def numbered() -> ScriptedHandler:
    """Make a worker that never gives the same answer twice, and refuses bad prompts."""
    count = itertools.count(1)

    def answer(messages: Sequence[Message]) -> str | Rejected:
        prompt = messages[0]["content"]
        return Rejected("no") if prompt == "bad" else f"{prompt} {next(count)}"

    return ScriptedHandler(answer)


THREADS = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print(list(pool.map(worker, [f"thread {n % 7}" for n in range(7)])))
"""
ERRORS = """
print(worker_batch(["fine", "bad", "fine"], return_errors=True))
worker("bad")
"""


@pytest.mark.parametrize(
    ("replies", "options"),
    [
        ([block("x = len(context)\nprint(x)") + "\n" + block("x + 1"), "No code.", block("FINAL(x)")], {}),
        ([block("print(worker_batch(['same'] * 5)); worker('same')"), block("FINAL(worker('other'))")], {}),
        ([block(THREADS), block("FINAL(worker('end'))")], {}),
        ([block(ERRORS), block("FINAL(1)")], {}),
        ([block("1/0") + "\n" + block("2"), block("import sys\nprint('e', file=sys.stderr)\nFINAL(3)")], {}),
        ([block("import os; os._exit(3)"), block("print('x' in globals())"), block("FINAL(2)")], {}),
        ([block("print(history(0, 3)[1]['content'], budget())"), block("FINAL(len(history()))")], {}),
        ([block("while True: pass"), block("FINAL(4)")],
            {"sandbox": SMALL_CONFIG.model_copy(update={"timeout": 0.5})}),
        ([block("print('evidence')"), "It is 7."], {"max_iterations": 1}),
        ([block("y = 5"), block("FINAL(y)")], {"max_iterations": 1}),
        ([block("print('last')"), Rejected("no")], {"max_iterations": 1}),
        ([block("print(worker('a'))"), block("worker('b')"), block("FINAL(5)")],
            {"limits": RunLimits(max_worker_calls=1)}),
        ([block("import time\ntime.sleep(0.2)\nprint('z' * 9999)"), block("FINAL(6)")], {"output_limit": 50}),
        ([block("print(sorted(context['b']), query)"), block("FINAL(7)")],
            {"context": {"a": [1.5, None], "b": ["\ud800", "é"]}}),
        ([block("print(context)"), block("FINAL(7)")], {"context": [{"a", "b"} - {"b"}, (1, b"2")]}),
        ([block("print(context[::-1], query)"), block("FINAL(8)")],
            {"context": "\ud800\x00é", "query": "q\ud800?"}),
    ],
)  # fmt: skip
async def test_what_was_exported_is_what_its_code_shows(
    experiment: Experiment, replies: list[Any], options: dict[str, Any]
) -> None:
    await experiment.run("a", replies, worker=numbered(), **options)
    found = await verdicts(experiment)
    assert set(found) <= {"equal", "unknown"}
    assert found.count("equal") >= len([reply for reply in replies if isinstance(reply, str)]) - (
        isinstance(replies[-1], Rejected)
    )


async def test_output_with_escape_sequences_is_compared_as_its_engine_showed_it(
    experiment: Experiment,
) -> None:
    code = block("print('10%\\r\\x1b[32m100%\\x1b[0m')")
    await experiment.run("a", [code, block("FINAL(1)")])
    assert await verdicts(experiment) == ["equal", "equal"]
    # Earlier engines showed it as it was written.
    earlier = Experiment(experiment.folder.parent / "earlier" / "logs")
    await earlier.run("a", [code, block("FINAL(1)")])
    log = earlier.logs("a") / "supervisor.jsonl"
    raw = json.dumps("Output:\n10%\r\x1b[32m100%\x1b[0m")[1:-1]
    assert log.read_text().count("Output:\\n100%") == 1
    log.write_text(log.read_text().replace("Output:\\n100%", raw))
    assert await verdicts(earlier) == ["equal", "equal"]


async def test_answers_that_the_cache_gave_and_refusals_are_given_again(
    experiment: Experiment, tmp_path: Path
) -> None:
    refusing = ScriptedHandler(lambda _: Completion("I cannot", finish_reason="refusal"))
    code = [block("print(worker_batch(['a', 'a', 'b'], return_errors=True))"), block("FINAL(1)")]
    await experiment.run("a", code, worker=refusing)
    await experiment.run("b", code, worker=shouting(), query="again?", cache="run")
    for report in await replayed(experiment):
        assert [turn.verdict for turn in report.turns] == ["equal", "equal"]


async def test_a_run_without_a_worker_is_exported_and_replayed_without_one(experiment: Experiment) -> None:
    code = "try: worker('x')\nexcept WorkerError as error: print(error)"
    await experiment.run("a", [block(code), block("FINAL('done')")], alone=True)
    assert await verdicts(experiment) == ["equal", "equal"]


async def test_each_stretch_of_a_conversation_is_replayed_from_its_start(experiment: Experiment) -> None:
    def play(messages: Any) -> str:
        turn = sum(message["role"] == "assistant" for message in messages)
        return block(f"n = {turn}\nprint('{turn:02}' * 2000)" if turn < 9 else "FINAL([n, len(history())])")

    supervisor = ScriptedHandler(play)
    supervisor.window, supervisor.max_tokens = 20_000, 1000
    supervisor.count_tokens = lambda messages: sum(len(m["content"]) for m in messages) // 2  # type: ignore[method-assign]  # a model that counts tokens
    await experiment.run("a", supervisor, output_limit=4000)
    reports = await replayed(experiment)
    assert len(reports) > 1
    assert reports[-1].count("unknown") > 0
    assert reports[-1].turns[-1].verdict == "equal"
    assert not any(report.count("different") for report in reports)


async def test_a_run_that_its_clock_stopped_is_replayed_as_far_as_it_went(experiment: Experiment) -> None:
    replies = [block("print('before')"), block("import time\nwhile True: time.sleep(0.01)"), "best"]
    await experiment.run("a", replies, limits=RunLimits(max_seconds=1.0))
    assert await verdicts(experiment) == ["equal", "unknown"]


def _output(line: Any) -> None:
    line["messages"][3]["content"] = line["messages"][3]["content"].replace("12", "13")


def _more_output(line: Any) -> None:
    shown, turns_left = line["messages"][3]["content"].split("\n\n")
    line["messages"][3]["content"] = f"{shown}\n\nmore\n\n{turns_left}"


def _code(line: Any) -> None:
    line["messages"][2]["content"] = block("print(len(context) - 1)")


def _answer(line: Any) -> None:
    line["messages"][-1]["content"] = block("FINAL('other')")


def _longer(line: Any) -> None:
    line["messages"].append({"role": "user", "content": "and more"})


@pytest.mark.parametrize("tamper", [_output, _more_output, _code, _answer, _longer])
async def test_a_line_that_was_tampered_with_differs(
    experiment: Experiment, tamper: Callable[[Any], None]
) -> None:
    await experiment.run("a", [block("print(len(context))"), block("FINAL(worker('yes'))")])
    assert await verdicts(experiment) == ["equal", "equal"]
    change(experiment.folder.parent / "out" / "train.jsonl", tamper)
    (report,) = await replayed(experiment)
    assert report.count("different") == 1
    assert report.is_changed


async def test_lines_may_be_shuffled_or_be_gone_but_not_shortened(experiment: Experiment) -> None:
    for number in range(3):
        await experiment.run(f"{number}", [block(f"print({number})"), block("FINAL(1)")], query=f"{number}")
    await replayed(experiment)
    path = experiment.folder.parent / "out" / "train.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True)[1:])))
    for report in await replayed(experiment):
        assert [turn.verdict for turn in report.turns] == ["equal", "equal"]
        assert not report.is_changed
    change(path, lambda line: line["messages"].pop())
    assert [report.is_changed for report in await replayed(experiment)] == [True, False]


async def test_no_log_says_how_tight_the_walls_are(experiment: Experiment) -> None:
    await experiment.run("a", [block("FINAL(1)")])
    log = experiment.logs("a") / "supervisor.jsonl"
    change(log, lambda event: event["sandbox"].update(isolation="none at all"))
    assert await verdicts(experiment) == ["equal"]
    change(log, lambda event: event["sandbox"].update(timeout="none at all"))
    (report,) = await replayed(experiment)
    assert "timeout" in report.skipped


async def test_logs_that_were_tampered_with_differ(experiment: Experiment) -> None:
    await experiment.run(
        "a", [block("print(worker('yes'))"), block("print(worker('no'))"), block("FINAL(1)")]
    )
    change(experiment.logs("a") / "worker.jsonl", lambda event: event.update(response="NEIN"), 2)
    assert await verdicts(experiment) == ["equal", "different", "equal"]
    (experiment.logs("a") / "worker.jsonl").unlink()
    assert await verdicts(experiment) == ["different", "different", "equal"]


async def test_what_depends_on_chance_differs_and_is_shown(experiment: Experiment) -> None:
    await experiment.run("a", [block("import random\nprint(random.random())"), block("FINAL(1)")])
    (report,) = await replayed(experiment)
    assert [turn.verdict for turn in report.turns] == ["different", "equal"]
    assert report.turns[0].exported != report.turns[0].replayed


async def test_what_cannot_be_replayed_says_why(experiment: Experiment) -> None:
    def helper() -> int:
        return 1

    await experiment.run("a", [block("FINAL(helper())")], tools={"helper": helper})
    await experiment.run("b", [block("FINAL(context[:3])")])
    await experiment.run("c", [block("FINAL(context[:4])")])
    next(experiment.logs("b").glob("context-*")).unlink()
    change(experiment.logs("c") / "supervisor.jsonl", lambda event: event["context"].update(file="../../x"))
    reasons = [report.skipped for report in await replayed(experiment)]
    assert "helper" in reasons[0]
    assert all("document is not beside" in reason for reason in reasons[1:])


@pytest.mark.parametrize(
    "wanted", [ExportOptions("sft", "worker"), ExportOptions("sft", per="turn"), ExportOptions("preference")]
)
async def test_other_exports_are_refused(
    experiment: Experiment, tmp_path: Path, wanted: ExportOptions
) -> None:
    await experiment.run("a", [block("FINAL(worker('x'))")])
    export([experiment.folder], tmp_path / "out", wanted)
    with pytest.raises(TaskError):
        _ = [report async for report in replay(tmp_path / "out")]


@pytest.mark.slow
async def test_the_programs_export_and_replay_and_say_what_differs(
    experiment: Experiment, tmp_path: Path
) -> None:
    await experiment.run("a", [block("print(12)"), block("FINAL(1)")])
    out = tmp_path / "out"

    def call(program: str, *arguments: object) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-m", f"supdist.tools.{program}", *map(str, arguments)],
                              capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    options = ("--format", "sft", "--out", out, "--validation", 0)
    code, said, told = call("export", experiment.folder, *options)
    assert (code, said) == (0, f"{out}\n")
    assert "1 lines of 1 documents to train" in told
    code, _, told = call("export", experiment.folder, *options)
    assert code == 2
    assert "--force" in told
    code, said, _ = call("replay", out)
    assert code == 0
    assert "1 lines replayed, 0 not; turns: 2 equal, 0 different, 0 unknown" in said
    change(out / "train.jsonl", _output)
    code, said, _ = call("replay", out / "train.jsonl")
    assert code == 1
    assert "-13\n" in said
    assert "+12\n" in said
    assert call("replay", tmp_path / "logs")[0] == 2


@pytest.mark.parametrize(("sizes", "is_allowed"), [((32, 32), True), ((32, 33), False), ((-1,), False)])
def test_the_images_of_a_log_are_bounded_together(sizes: Sequence[int], is_allowed: bool) -> None:
    display: list[dict[str, str | ImageFacts]] = [
        {"image/png": ImageFacts(bytes=size << 20, sha256="0")} for size in sizes
    ]
    cell = Cell(
        run_id="r", step=1, timestamp=1.0, cell=1, code="1", outcome="ok", stdout="", stderr="",
        display=display, truncated=False, error=None, final=None, elapsed=1.0, worker_wait=0.0,
        state_lost=False, detail="",
    )  # fmt: skip
    if is_allowed:
        assert len(result_of(cell).display) == len(sizes)
        return
    with pytest.raises(NoReplay, match="images"):
        result_of(cell)
    with pytest.raises(NoReplay, match="images"):
        RecordedCells([cell]).take(block("1"), 1)


def test_a_log_forges_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    _print_report(LineReport("train.jsonl", 1, skipped="its log: x\ntrain.jsonl:2: equal" + "x" * 10_000))
    (row,) = capsys.readouterr().out.splitlines()
    assert len(row) < 1100


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    with open(file, "wb") as lines:
        lines.truncate(MAX_LINE_BYTES + 1)
    with pytest.raises(TaskError, match=r"train\.jsonl, line 1: a line is longer than 256 MiB"):
        next(read_lines(file))
