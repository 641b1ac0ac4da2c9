"""The run log: what is written, what is read back, old logs, and logs that somebody changed."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from export_support import Experiment, both, shouting
from support import REPOSITORY, SMALL_CONFIG, block

from supdist.engine import HostTool, LogError, SandboxConfig, SandboxUnavailable, arun
from supdist.engine.errors import LogFormatError
from supdist.engine.result import CallTotals
from supdist.engine.runlog import reader as reader_module
from supdist.engine.runlog.events import (
    SCHEMA_VERSION,
    Cell,
    CellError,
    ContextFacts,
    Event,
    ImageFacts,
    LeftOut,
    ReplEvent,
    RunEnd,
    RunStart,
    StreamStart,
    SupervisorCall,
    SupervisorEvent,
    ToolCall,
    WorkerCall,
    WorkerEvent,
)
from supdist.engine.runlog.reader import RunLogReader
from supdist.engine.runlog.writer import CallStats, RunLogger, WorkerPrompt
from supdist.engine.sandbox.context import EncodedContext
from supdist.engine.sandbox.context_files import ContextFiles
from supdist.handlers import Completion, Rejected, ScriptedHandler, Usage
from supdist.tools.distill.export import export
from supdist.tools.distill.options import ExportOptions
from supdist.tools.distill.replay import replay
from supdist.tools.evals.analysis import analyse

OLD = Path(__file__).parent / "data" / "runlog_schema_1"
RENAMED = {"arm": "strategy"}
STREAMS = ("supervisor", "worker", "repl")


def events(log: RunLogReader) -> list[Event]:
    return [*log.supervisor(), *log.worker(), *log.repl()]


def fields(event: Event) -> dict[str, object]:
    return {name: value for name, value in msgspec.structs.asdict(event).items() if value is not None}


def lines(folder: Path, stream: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{stream}.jsonl").read_text().splitlines()]


async def logged(folder: Path, *replies: Any, **options: Any) -> None:
    options = {
        "query": "why?",
        "context": "the document",
        "sandbox": SMALL_CONFIG,
        "worker": shouting(),
        **options,
    }
    await arun(supervisor=ScriptedHandler(replies), log_dir=folder, **options)


# Writing


async def test_the_first_line_of_each_file_has_the_schema_and_the_engine(tmp_path: Path) -> None:
    await logged(tmp_path, block("FINAL(worker('x'))"))
    for stream in STREAMS:
        first = lines(tmp_path, stream)[0]
        assert (first["event"], first["schema_version"]) == ("run_start", SCHEMA_VERSION)
        assert first["engine_version"]


async def test_every_line_is_an_event_that_reads_back_with_all_its_fields(tmp_path: Path) -> None:
    def look(word: str) -> dict[str, str]:
        return {"word": word}

    tools = {"look": HostTool(look), "boom": HostTool(lambda: 1 / 0)}
    await logged(
        tmp_path, block("print(worker('x'), look('y'), budget())"), block("boom()"), block("FINAL(1)"),
        tools=tools,
    )  # fmt: skip
    log = RunLogReader(tmp_path)
    found = iter(events(log))
    for stream in STREAMS:
        for line in lines(tmp_path, stream):
            event = next(found)
            written = {name: value for name, value in line.items() if name != "event" and value is not None}
            assert fields(event).keys() - {"reasoning", "result"} == written.keys() - {"result"}
    assert next(found, None) is None
    assert log.notes() == []


async def test_calls_have_the_times_of_each_stage_in_order(tmp_path: Path) -> None:
    before = time.time()
    worker = ScriptedHandler(lambda _: Rejected("no"))
    await logged(tmp_path, block("worker_batch(['x'], return_errors=True)"), block("FINAL(2)"), worker=worker)
    log = RunLogReader(tmp_path)
    replies = [event for event in log.supervisor() if isinstance(event, SupervisorCall)]
    (call,) = [event for event in log.worker() if isinstance(event, WorkerCall)]
    for each in (*replies, call):
        moments = [each.queued_at, each.sent_at, each.first_token_at, each.done_at, each.timestamp]
        known = [moment for moment in moments if moment is not None]
        assert known == sorted(known)
        assert before - 1 < known[0] <= known[-1] < time.time() + 1
    assert all(reply.first_token_at is not None for reply in replies)
    assert (call.error, call.response, call.first_token_at, call.retries) == ("refused", None, None, None)


async def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    await logged(tmp_path, block("FINAL(worker('x'))"))
    for event in events(RunLogReader(tmp_path)):
        assert event.parent_run_id is None
        if isinstance(event, SupervisorCall | WorkerCall):
            assert (event.token_ids, event.logprobs) == (None, None)


async def test_a_sub_run_names_its_parent(tmp_path: Path) -> None:
    with RunLogger(tmp_path, "child", parent_run_id="parent") as log:
        log.end_without_result(stop_reason="cancelled")
    (end,) = RunLogReader(tmp_path).supervisor()
    assert (end.run_id, end.parent_run_id) == ("child", "parent")


def test_a_clock_that_is_set_back_does_not_reorder_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLogger(tmp_path, "r") as log:
        log.left_out({1: "first"})
        monkeypatch.setattr(time, "time", lambda: 0.0)
        log.left_out({2: "second"})
    stamps = [event.timestamp for event in RunLogReader(tmp_path).supervisor()]
    assert stamps == sorted(stamps)


async def test_a_context_is_encoded_once_for_the_sandbox_the_hash_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    encode = EncodedContext.__init__

    def counted(self: EncodedContext, value: object) -> None:
        encoded.append(value)
        encode(self, value)

    monkeypatch.setattr(EncodedContext, "__init__", counted)
    text = "é\ud800\0" * 1000
    await logged(tmp_path, block("FINAL(str(context == 'é\\ud800\\0' * 1000))"), context=text)
    start, *_, end = RunLogReader(tmp_path).supervisor()
    assert isinstance(start, RunStart)
    assert isinstance(end, RunEnd)
    assert end.answer == "True"
    assert encoded == [text]
    data = text.encode("utf-8", "surrogatepass")
    assert (tmp_path / start.context.file).read_bytes() == data
    assert (start.context.sha256, start.context.bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_container_gets_an_encoded_text_that_was_written_before(tmp_path: Path) -> None:
    text = "é" * 1000
    files = ContextFiles(str(tmp_path))
    with EncodedContext(text) as encoded:
        assert [files.put(each, str(tmp_path / name)) for each, name in ((text, "a"), (encoded, "b"))] == [
            "text", "text",
        ]  # fmt: skip
    assert (tmp_path / "b").read_bytes() == text.encode()
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino


async def test_a_reset_gets_the_same_context_again(tmp_path: Path) -> None:
    await logged(
        tmp_path, block("import os; os._exit(1)"), block("FINAL(context['a'])"), context={"a": "the text"}
    )
    *_, end = RunLogReader(tmp_path).supervisor()
    assert isinstance(end, RunEnd)
    assert end.answer == "the text"


async def test_a_run_without_a_sandbox_has_a_start_and_an_end(tmp_path: Path) -> None:
    sandbox = SandboxConfig.model_validate({"backend": "docker", "image": "no-such-image:1"})
    with pytest.raises(SandboxUnavailable):
        await logged(tmp_path, block("FINAL(1)"), sandbox=sandbox)
    start, end = RunLogReader(tmp_path).supervisor()
    assert isinstance(start, RunStart)
    assert isinstance(end, RunEnd)
    assert end.error


async def test_a_log_that_cannot_hold_the_context_ends_the_run_before_a_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = ScriptedHandler([block("FINAL(1)")])

    def full(*_: object) -> None:
        raise LogError("no room")

    monkeypatch.setattr(RunLogger, "_store", full)
    with pytest.raises(LogError, match="no room"):
        await arun(
            query="q", context="c", supervisor=supervisor, worker=None, sandbox=SMALL_CONFIG, log_dir=tmp_path
        )
    assert supervisor.calls == []


async def test_a_cancelled_run_has_a_readable_log(tmp_path: Path) -> None:
    running = asyncio.create_task(
        logged(tmp_path, block("print(1)"), block("while True: pass"), sandbox=SMALL_CONFIG)
    )
    while not (tmp_path / "repl.jsonl").exists() or '"cell"' not in (tmp_path / "repl.jsonl").read_text():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    *_, end = RunLogReader(tmp_path).supervisor()
    assert isinstance(end, RunEnd)
    assert (end.stop_reason, end.answer) == ("cancelled", None)


KILLED = """
import sys
from supdist.engine import SandboxConfig, run
from supdist.handlers import ScriptedHandler

replies = ["```repl\\nprint(worker('x'))\\n```", "```repl\\nwhile True: pass\\n```"]
run(
    query="q", context="c", supervisor=ScriptedHandler(replies), worker=ScriptedHandler(["answer"]),
    log_dir=sys.argv[1], sandbox=SandboxConfig(memory="256MiB"),
)
"""


def test_a_killed_run_leaves_a_log_with_all_that_was_paid_for(tmp_path: Path) -> None:
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while len(list(RunLogReader(tmp_path).supervisor())) < 3:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.02)
    finally:
        running.kill()
        running.wait()
    log = RunLogReader(tmp_path)
    assert [type(event) for event in log.supervisor()] == [RunStart, SupervisorCall, SupervisorCall]
    assert [event.response for event in log.worker() if isinstance(event, WorkerCall)] == ["answer"]
    assert [event.stdout for event in log.repl() if isinstance(event, Cell)] == ["answer\n"]


# Reading


def write(folder: Path, stream: str, *events: Mapping[str, object] | str) -> RunLogReader:
    folder.mkdir(exist_ok=True)
    text = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in events)
    (folder / f"{stream}.jsonl").write_text(text)
    return RunLogReader(folder, "r")


def left_out(**more: object) -> dict[str, object]:
    return {"event": "left_out", "run_id": "r", "step": 1, "timestamp": 1.0, "messages": [3], "notes": ["n"],
        **more}  # fmt: skip


def test_unknown_fields_are_ignored_and_unknown_events_counted(tmp_path: Path) -> None:
    later = {"event": "later", "run_id": "r", "anything": 1}
    log = write(tmp_path, "supervisor", left_out(new_field=1), later, later, left_out())
    assert [type(event) for event in log.supervisor()] == [LeftOut, LeftOut]
    assert log.unknown == Counter(later=2)
    assert "unknown type 'later'" in log.notes()[0]


def test_a_log_of_a_newer_schema_is_refused_and_names_the_engine(tmp_path: Path) -> None:
    start = {
        "event": "run_start",
        "run_id": "r",
        "schema_version": SCHEMA_VERSION + 1,
        "engine_version": "9.9",
    }
    log = write(tmp_path, "worker", start)
    with pytest.raises(LogFormatError, match=r"worker\.jsonl, line 1: supdist-engine 9\.9 wrote .* schema 3"):
        list(log.worker())


def test_an_engine_version_writes_nothing_to_a_terminal(tmp_path: Path) -> None:
    start = {"event": "run_start", "run_id": "r", "schema_version": 99, "engine_version": "\x1b]0;a\nb"}
    with pytest.raises(LogFormatError) as caught:
        list(write(tmp_path, "worker", start).worker())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("torn", ['{"event": "left_', "", "[1]", "{" * 100_000, "\udcff", "1" * 5000])
def test_a_torn_line_is_skipped_and_named(tmp_path: Path, torn: str) -> None:
    log = write(tmp_path, "supervisor", left_out(), torn.encode("utf-8", "replace").decode(), left_out())
    assert len(list(log.supervisor())) == 2
    assert log.skipped == 1
    assert "supervisor.jsonl, line 2" in log.notes()[0]


def test_a_last_line_without_an_end_is_skipped(tmp_path: Path) -> None:
    log = write(tmp_path, "supervisor", left_out(), left_out())
    path = tmp_path / "supervisor.jsonl"
    path.write_text(path.read_text()[:-20])
    assert len(list(log.supervisor())) == 1


def test_a_line_with_wrong_types_is_named_by_file_and_number(tmp_path: Path) -> None:
    log = write(tmp_path, "supervisor", left_out(run_id="other", notes=3), left_out(), left_out(notes=[3]))
    with pytest.raises(LogFormatError, match=r"supervisor\.jsonl, line 3: Expected `str`, got `int`"):
        list(log.supervisor())


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_LINE_BYTES", 1 << 20)
    log = write(tmp_path, "repl", "x" * (8 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(LogFormatError, match="line 1: a line is longer than 1 MiB"):
            list(log.repl())
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_flood_of_bad_lines_and_unknown_types_leaves_few_notes(tmp_path: Path) -> None:
    flood = [{"event": f"type {number}", "run_id": "r"} for number in range(1000)]
    log = write(tmp_path, "supervisor", *["torn"] * 1000, *flood)
    assert list(log.supervisor()) == []
    assert (log.skipped, log.unknown.total()) == (1000, 1000)
    assert len(log.notes()) < 50


def test_a_link_is_not_followed_and_a_missing_file_has_no_events(tmp_path: Path) -> None:
    log = write(tmp_path, "supervisor", left_out())
    os.rename(tmp_path / "supervisor.jsonl", tmp_path / "elsewhere")
    assert list(log.supervisor()) == []
    (tmp_path / "supervisor.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LogFormatError, match="link"):
        list(log.supervisor())


def test_reading_holds_one_line_at_a_time(tmp_path: Path) -> None:
    """A 100 MB log would need 100 MB; this one is 40 MB of 1 MB lines."""
    prompt = WorkerPrompt(1, 1, 0, "x" * 1_000_000)
    with RunLogger(tmp_path, "r") as writer:
        for _ in range(40):
            writer.worker("m", CallStats(usage=Usage(1, 1, 1)), prompt, Completion("y"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in RunLogReader(tmp_path).worker()) == 40
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def tables_of_the_readme() -> dict[str, set[str]]:
    """Return the names of fields in the tables, by each name in the first column."""
    text = (REPOSITORY / "engine/runlog/README.md").read_text(encoding="utf-8").partition("## Events")[2]
    found = dict[str, set[str]]()
    for left, right in re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE):
        # What stands in parentheses explains a field.
        names = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", right)))
        for name in re.findall(r"`(\w+)`", left) if left.startswith("`") else [left]:
            found.setdefault(name, set()).update(names)
    return found


def test_the_readme_has_exactly_the_events_and_fields_of_the_code() -> None:
    readme = tables_of_the_readme()
    common = {"event", *Event.__struct_fields__}
    expected = {"every": common}
    for kind in (*get_args(SupervisorEvent), *get_args(WorkerEvent), *get_args(ReplEvent)):
        fields_of_kind = set(kind.__struct_fields__) - common
        expected.setdefault(str(kind.__struct_config__.tag), set()).update(fields_of_kind)
    expected["usage"] = {each.name for each in dataclasses.fields(Usage)}
    expected["context"] = set(ContextFacts.__struct_fields__)
    expected["error of a cell"] = set(CellError.__struct_fields__)
    expected["image in `display`"] = set(ImageFacts.__struct_fields__)
    expected["totals of a model"] = {each.name for each in dataclasses.fields(CallTotals)}
    for name in ("event", "value"):
        readme.pop(name)
    assert {name: sorted(names) for name, names in readme.items()} == {
        name: sorted(names) for name, names in expected.items()
    }


# Logs that commit f99d195 wrote


def test_old_logs_are_read_without_loss() -> None:
    found: Counter[type[Event]] = Counter()
    for folder in sorted({path.parent for path in OLD.rglob("supervisor.jsonl")}):
        log = RunLogReader(folder)
        for stream, typed in (
            ("supervisor", log.supervisor()),
            ("worker", log.worker()),
            ("repl", log.repl()),
        ):
            whole = (folder / f"{stream}.jsonl").read_bytes().splitlines(keepends=True)
            expected = [json.loads(line) for line in whole if line.endswith(b"\n")]
            for line, event in zip(expected, typed, strict=True):
                found[type(event)] += 1
                assert fields(event).keys() >= {
                    RENAMED.get(name, name)
                    for name, value in line.items()
                    if value is not None and name != "event"
                }
        assert log.skipped == (3 if folder.name == "cut" else 0)
    assert found.keys() == {RunStart, StreamStart, SupervisorCall, RunEnd, WorkerCall, Cell, ToolCall}


async def test_old_logs_are_exported_and_replayed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    card = export(
        [OLD / "scripted", OLD / "eval", OLD / "eval-direct"], out, ExportOptions("sft", validation=0)
    )
    assert card.runs_taken == 7
    assert card.runs_left_out == {"cut off": 1, "direct call": 1, "failed": 1}
    assert len(both(out)) == 7
    reports = [report async for report in replay(out, sandbox=SMALL_CONFIG)]
    assert [report.skipped for report in reports if report.skipped] == [
        "its code had tools, which a log does not contain: look"
    ]
    assert {turn.verdict for report in reports for turn in report.turns} == {"equal"}
    assert sum(len(report.turns) for report in reports) == 20


async def test_the_workers_of_old_logs_are_exported(tmp_path: Path) -> None:
    card = export([OLD / "scripted"], tmp_path / "out", ExportOptions("sft", "worker", validation=0))
    assert {line["messages"][0]["content"] for line in both(tmp_path / "out")} == {"yes", "no", "fine"}
    assert sum(card.lines_left_out.values()) == 2


def test_old_results_are_analysed() -> None:
    found = analyse([OLD])
    assert [(each.strategy, each.examples, each.failed) for each in found.figures] == [
        ("builtin", 2, 0), ("direct", 1, 0), ("supervisor", 7, 1),
    ]  # fmt: skip
    assert [each.data_hash == "" for each in found.figures] == [False, False, True]


async def test_a_new_run_is_appended_to_an_old_log(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path / "task")
    folder = experiment.logs("a")
    folder.mkdir(parents=True)
    for path in (OLD / "scripted/examples/cut").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    await experiment.run("a", [block("FINAL(1)")])
    export([experiment.folder], tmp_path / "out", ExportOptions("sft", validation=0))
    (line,) = both(tmp_path / "out")
    assert line["messages"][-1]["content"] == block("FINAL(1)")
