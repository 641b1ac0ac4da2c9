"""Long values of a run log: cut in the event, whole in a file, within a budget."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from export_support import Experiment, shouting
from support import SMALL_CONFIG, block

from supdist.engine import HostTool, RunResult, arun
from supdist.engine.errors import LogFormatError
from supdist.engine.events import Event as RunEvent
from supdist.engine.events import Warned
from supdist.engine.runlog.blobs import FOLDER
from supdist.engine.runlog.cuts import EVENT_BYTES, HEAD, INLINE_BYTES, TIGHT_HEAD, cut
from supdist.engine.runlog.encoding import encode_line, json_slices
from supdist.engine.runlog.events import Cell, Event, LogFull, RunEnd, SupervisorCall, ToolCall, WorkerCall
from supdist.engine.runlog.reader import RunLogReader
from supdist.engine.runlog.writer import CallStats, RunLogger, WorkerPrompt
from supdist.engine.sandbox import CellResult, Outcome, Usage
from supdist.engine.slices import utf8_slices
from supdist.handlers import Completion, Message, ModelHandler, ScriptedHandler
from supdist.handlers import Usage as Tokens
from supdist.tools.distill.export import export
from supdist.tools.distill.options import ExportOptions
from supdist.tools.distill.replay import replay

MIB = 1 << 20
# Room for outputs of several MiB.
ROOMY = SMALL_CONFIG.model_copy(update={"output": 16 * MIB, "display": 16 * MIB})


async def logged(folder: Path, *replies: Any, **options: Any) -> RunResult:
    options = {"query": "why?", "context": "the document", "sandbox": ROOMY, "worker": shouting(), **options}
    return await arun(supervisor=ScriptedHandler(replies), log_dir=folder, **options)


class Shouting(ModelHandler):
    """A worker whose answers are kept for equal calls."""

    model = "shouting"
    samples = False

    def chat(self, messages: Sequence[Message]) -> Completion:
        return Completion(messages[-1]["content"].upper(), Tokens(1, 1, 1))

    def identity(self) -> dict[str, object]:
        return {"model": self.model}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def longest_line(folder: Path) -> int:
    return max(
        len(line) for name in folder.glob("*.jsonl") for line in name.read_bytes().splitlines(keepends=True)
    )


def cells(folder: Path) -> list[Cell]:
    return [event for event in RunLogReader(folder).repl() if isinstance(event, Cell)]


def ended(folder: Path) -> RunEnd:
    *_, end = RunLogReader(folder).supervisor()
    assert isinstance(end, RunEnd)
    return end


def result(**changes: Any) -> CellResult:
    fields: dict[str, Any] = {
        "cell": 1, "outcome": Outcome.OK, "stdout": "", "stderr": "", "truncated": False, "error": None,
        "final": None, "elapsed": 0.0, "worker_wait": 0.0, "state_lost": False, "dropped": 0,
        "usage": Usage(0.0, 0, "none"), "detail": "",
    }  # fmt: skip
    return CellResult(*(fields | changes).values())


# Cutting


@pytest.mark.parametrize(
    "text", ["a" * INLINE_BYTES, "\x01" * (INLINE_BYTES // 6), "\U0001f600" * (INLINE_BYTES // 12)]
)
def test_a_text_is_cut_by_its_bytes_on_the_line(text: str) -> None:
    """The two quotes of a text count."""
    inside, over = {"response": text[:-2]}, {"response": text + text[:1]}
    assert cut(inside) == (inside, [])
    fields, (long,) = cut(over)
    assert (fields["response"], long.path, long.kind) == (text[:HEAD], ("response",), "text")


def test_all_texts_of_an_event_together_are_bounded() -> None:
    fields, found = cut({"display": [{"text/plain": "\x01" * 40_000} for _ in range(400)], "code": "x" * 10})
    assert len(encode_line(fields)) < EVENT_BYTES + 400 * 100
    assert found


@pytest.mark.parametrize(
    "value",
    [["x"] * 100_000, {"k" * 10_000: 1}, [[i] for i in range(50_000)], ["y" * INLINE_BYTES * 2] * 1000],
)
def test_a_field_of_too_many_values_is_cut_as_a_whole(value: Any) -> None:
    fields, (long,) = cut({"event": "tool", "result": value})
    assert (long.path, long.kind) == (("result",), "json")
    assert len(encode_line(fields)) < 1000
    assert json.loads(b"".join(long.slices())) == value


def test_slices_are_the_whole() -> None:
    text = ("é\ud800\U0001f600\x01" * 200_000)[:-1]
    assert b"".join(utf8_slices(text)) == text.encode("utf-8", "surrogatepass")
    assert max(map(len, utf8_slices(text))) <= MIB
    value = [text, {"k": ["a", 1, None] * 1000}]
    assert json.loads(b"".join(json_slices(value))) == value


# Writing and reading back


async def test_long_values_stand_whole_in_private_files_and_read_back(tmp_path: Path) -> None:
    def echo(text: str) -> str:
        return "short"

    code = block(
        "text = '\\x01' * (3 << 20)\nprint(text)\nprint('\\ud800' * 400_000)\n"
        "class Shown:\n    def _repr_html_(self): return '\\x02' * (1 << 20)\n"
        "echo('é' * 100_000)\nShown()"
    )
    answer = block("worker('p' * (1 << 20))\nraise ValueError('v' * 500_000)")
    await logged(
        tmp_path, code, answer, block("FINAL('\\U0001f600' * 300_000)"), tools={"echo": HostTool(echo)}
    )
    log = RunLogReader(tmp_path)
    first, second, last = (log.whole(event) for event in cells(tmp_path))
    assert first.stdout.startswith("\x01" * (3 << 20) + "\n")
    assert first.display[0]["text/html"] == "\x02" * MIB
    assert second.error is not None
    assert last.final == log.whole(ended(tmp_path)).answer == chr(0x1F600) * 300_000
    (call,) = [log.whole(event) for event in log.worker() if isinstance(event, WorkerCall)]
    (tool,) = [log.whole(event) for event in log.repl() if isinstance(event, ToolCall)]
    assert (call.prompt, call.response) == ("p" * MIB, "P" * MIB)
    assert tool.args == ["é" * 100_000]
    assert log.notes() == []
    assert longest_line(tmp_path) < 2 * MIB
    for path in (tmp_path / FOLDER).iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700


async def test_an_ordinary_run_has_no_blobs(tmp_path: Path) -> None:
    await logged(tmp_path, block("print('x' * 200_000)"), block("FINAL(worker('y' * 200_000))"))
    assert not (tmp_path / FOLDER).exists()
    assert all(event.cut is None for event in RunLogReader(tmp_path).repl())


async def test_the_same_content_is_stored_once(tmp_path: Path) -> None:
    await logged(tmp_path, block("batch = worker_batch(['p' * (1 << 20)] * 8)"), block("FINAL(1)"))
    calls = [event for event in RunLogReader(tmp_path).worker() if isinstance(event, WorkerCall)]
    assert [[each.stored for each in call.cut or []] for call in calls] == [[True, True]] * 8
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


async def test_law_1_no_output_of_a_guest_fills_the_logs(tmp_path: Path) -> None:
    """15 MiB of control characters were 90 MiB of log, for each block."""
    seen: list[RunEvent] = []
    code = "\n".join(block("print('\\x01' * (15 << 20))") for _ in range(3))
    flood = block(
        "for n in range(40):\n"
        "    prompts = [chr(0x1F600) * (1 << 18) + str(n * 4 + m) for m in range(4)]\n"
        "    worker_batch(prompts, return_errors=True)\n"
        "FINAL('x')"
    )
    done = await logged(tmp_path, code, flood, log_bytes=24 * MIB, max_worker_calls=1, on_event=seen.append)
    assert (done.answer, done.log_error) == ("x", None)
    assert size_of(tmp_path) < 26 * MIB
    (full,) = [event for event in RunLogReader(tmp_path).supervisor() if isinstance(event, LogFull)]
    assert full.log_bytes == 24 * MIB
    assert [event.text for event in seen if isinstance(event, Warned)] == list(done.warnings)
    assert "log_bytes" in done.warnings[0]
    assert ended(tmp_path).warnings == list(done.warnings)


async def test_behind_the_budget_what_was_paid_stays_and_what_the_guest_wrote_is_cut(tmp_path: Path) -> None:
    reply = (
        "# "
        + "r" * 100_000
        + "\n"
        + block("for _ in range(3): print(len(worker('q' * 50_000)))\nprint('o' * 9999)")
    )
    await logged(tmp_path, reply, block("FINAL(1)"), worker=Shouting(), log_bytes=1)
    log = RunLogReader(tmp_path)
    (first, *_) = [event for event in log.supervisor() if isinstance(event, SupervisorCall)]
    assert first.response == reply
    paid, *cached = [event for event in log.worker() if isinstance(event, WorkerCall)]
    assert (len(paid.response or ""), len(paid.prompt)) == (50_000, TIGHT_HEAD)
    assert [len(event.response or "") for event in cached] == [TIGHT_HEAD, TIGHT_HEAD]
    (cell, _) = cells(tmp_path)
    (output,) = [each for each in cell.cut or [] if each.path == ["stdout"]]
    assert len(cell.stdout) == TIGHT_HEAD
    assert output.stored is False
    with pytest.raises(LogFormatError, match=r"'stdout' .* was not kept, because log_bytes was used up"):
        log.whole(cell)
    assert not (tmp_path / FOLDER).exists()


async def test_without_a_budget_everything_is_kept(tmp_path: Path) -> None:
    await logged(tmp_path, block("print('x' * (2 << 20))"), block("FINAL(1)"), log_bytes=None)
    assert len(RunLogReader(tmp_path).whole(cells(tmp_path)[0]).stdout) == (2 << 20) + 1


async def test_the_log_is_whole_when_a_run_is_cancelled_while_it_writes(tmp_path: Path) -> None:
    with RunLogger(tmp_path, "r") as log:
        writing = asyncio.create_task(log.repl("code", result(stdout="x" * (8 << 20))))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await log.drain()
    (cell,) = cells(tmp_path)
    assert len(RunLogReader(tmp_path).whole(cell).stdout) == 8 << 20


def test_without_an_event_loop_it_writes_at_once(tmp_path: Path) -> None:
    with RunLogger(tmp_path, "r") as log:
        prompt = WorkerPrompt(1, 1, 0, "x" * MIB)
        assert log.worker("m", CallStats(), prompt, Completion("y")) is None
    (call,) = [each for each in RunLogReader(tmp_path).worker() if isinstance(each, WorkerCall)]
    assert len(RunLogReader(tmp_path).whole(call).prompt) == MIB


async def test_law_7_writing_a_long_value_lets_the_event_loop_run(tmp_path: Path) -> None:
    """Between two slices the loop gets its turn; one operation on all of it took 300 ms."""
    turns = 0
    with RunLogger(tmp_path, "r") as log:
        writing = asyncio.ensure_future(log.repl("code", result(stdout="\x01" * (32 << 20))))
        while not writing.done():
            await asyncio.sleep(0)
            turns += 1
        await writing
    assert turns > 20


KILLED = """
import sys
from supdist.engine import SandboxConfig, run
from supdist.handlers import ScriptedHandler

replies = ["```repl\\nprint(chr(1) * (12 << 20))\\nprint(worker('x'))\\n```"] * 1000
run(
    query="q", context="c", supervisor=ScriptedHandler(replies), worker=ScriptedHandler(lambda _: "a"),
    log_dir=sys.argv[1], sandbox=SandboxConfig(memory="256MiB"), max_iterations=1000, log_bytes=None,
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 0.01, 0.03, 0.06])
def test_a_killed_run_has_no_event_without_its_blob(tmp_path: Path, moment: float) -> None:
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / FOLDER).exists():
            assert time.monotonic() < deadline
            assert running.poll() is None
        time.sleep(moment)
    finally:
        running.kill()
        running.wait()
    log = RunLogReader(tmp_path)
    for event in (*log.supervisor(), *log.worker(), *log.repl()):
        log.whole(event)


# Hostile logs


def hostile(folder: Path, **changes: Any) -> tuple[RunLogReader, Event]:
    data = b"whole"
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    cut_ = {"path": ["stdout"], "kind": "text", "stored": True, **found, **changes}
    cell = {
        "event": "cell", "run_id": "r", "step": 1, "timestamp": 1.0, "cell": 1, "code": "", "outcome": "ok",
        "stdout": "w", "stderr": "", "display": [], "truncated": False, "error": None, "final": None,
        "elapsed": 0.0, "worker_wait": 0.0, "state_lost": False, "detail": "", "cut": [cut_],
    }  # fmt: skip
    (folder / "repl.jsonl").write_text(json.dumps(cell) + "\n")
    (folder / FOLDER).mkdir(exist_ok=True)
    log = RunLogReader(folder)
    (event,) = log.repl()
    return log, event


def test_a_blob_is_put_back(tmp_path: Path) -> None:
    log, event = hostile(tmp_path)
    (tmp_path / FOLDER / hashlib.sha256(b"whole").hexdigest()).write_bytes(b"whole")
    assert msgspec.structs.asdict(log.whole(event))["stdout"] == "whole"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sha256": "../secret"}, "its hash or size is wrong"),
        ({"sha256": "A" * 64}, "its hash or size is wrong"),
        ({"bytes": -1}, "its hash or size is wrong"),
        ({"bytes": 1 << 40}, "more than 256 MiB"),
        ({"bytes": 4}, "cannot be read"),
        ({"bytes": 6}, "not what the log says"),
        ({"sha256": "0" * 64}, "cannot be read"),
        ({"kind": "json"}, "cannot be decoded"),
        ({"path": []}, "names no field"),
        ({"path": ["nothing"]}, "names no field"),
        ({"path": ["display", 0, "x"]}, "names no field"),
        ({"path": ["elapsed"]}, "Expected `float`"),
    ],
)
def test_a_hostile_cut_is_an_error_that_names_it(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    (tmp_path / "secret").write_text("whole")
    log, event = hostile(tmp_path, **changes)
    (tmp_path / FOLDER / hashlib.sha256(b"whole").hexdigest()).write_bytes(b"whole")
    with pytest.raises(LogFormatError, match=why):
        log.whole(event)


@pytest.mark.parametrize("linked", ["blob", "folder"])
def test_a_link_in_place_of_a_blob_is_not_followed(tmp_path: Path, linked: str) -> None:
    log, event = hostile(tmp_path)
    name = hashlib.sha256(b"whole").hexdigest()
    other = tmp_path / "other"
    other.mkdir()
    (other / name).write_bytes(b"whole")
    if linked == "blob":
        (tmp_path / FOLDER / name).symlink_to(other / name)
    else:
        (tmp_path / FOLDER).rmdir()
        (tmp_path / FOLDER).symlink_to(other)
    with pytest.raises(LogFormatError, match="link"):
        log.whole(event)


async def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / FOLDER).symlink_to(away)
    with RunLogger(logs, "r") as log, pytest.raises(Exception, match="link"):
        await log.repl("code", result(stdout="x" * MIB))
    assert list(away.iterdir()) == []


# Export and replay


async def exported_and_replayed(tmp_path: Path, **options: Any) -> tuple[Any, list[Any]]:
    code = block("print('\\x01' * (1 << 20))\nprint(worker('w' * 400_000)[:10])")
    experiment = Experiment(tmp_path / "eval")
    await experiment.run("a", [code, block("FINAL('yes')")], **options)
    card = export([experiment.folder], tmp_path / "out", ExportOptions(format="sft"))
    reports = [report async for report in replay(tmp_path / "out")] if card.splits else []
    return card, reports


async def test_a_run_with_long_values_is_exported_and_replayed(tmp_path: Path) -> None:
    _, (report,) = await exported_and_replayed(tmp_path)
    assert report.skipped == ""
    assert report.count("equal") == len(report.turns) == 2


async def test_a_replay_that_lacks_a_value_says_which(tmp_path: Path) -> None:
    _, (report,) = await exported_and_replayed(tmp_path, log_bytes=1000)
    assert "was not kept, because log_bytes was used up" in report.skipped
