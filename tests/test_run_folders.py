"""A run of a command has a log, keeps what it paid for, and says how it goes on."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shlex
import signal
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from process_support import COMMAND, clean_environment, ended, started
from support import SMALL_CONFIG, block

from supdist.engine import LogError, RunConfig, RunResult, arun
from supdist.engine.cli.kept_runs import KEPT, RUNS, killed_runs, new_run, slug
from supdist.engine.cli.raised_limits import raised_limits
from supdist.engine.cli.run_record import NAME, RunFacts, RunRecord
from supdist.engine.cli.typed_command import resuming
from supdist.engine.events import Event, TurnStarted
from supdist.engine.private_files import PrivateFolder
from supdist.engine.runlog.contexts import SHARED
from supdist.engine.runlog.files import OptionalLogDir
from supdist.handlers import ScriptedHandler, Usage
from supdist.tools.testing.fake_openai import FakeOpenAI
from supdist.tools.testing.http1 import Request
from supdist.tools.testing.replies import Text

pytestmark = pytest.mark.anyio

QUESTION = "What was found in the caves?"
NAME_OF_QUESTION = r"\d{8}-\d{6}-what-was-found-in-the-caves"
# Equal calls of a model that samples get different answers.
CODE = block("found = [worker(f'part {n // 2}') for n in range(6)]\nFINAL(' '.join(found))")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a document, and a home of its own for the user's secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/config"))
    (tmp_path / "report.md").write_text("Nothing was found in the caves.\n")
    return tmp_path


def run_folders(home: Path) -> list[Path]:
    runs = home / RUNS
    return sorted(each for each in runs.iterdir() if each.name[0] != ".") if runs.exists() else []


def facts(path: Path) -> os.stat_result:
    return path.stat(follow_symlinks=False)


async def ask(home: Path, *arguments: str, **environ: str) -> tuple[int, str, str]:
    env = clean_environment(HOME=os.environ["HOME"], XDG_CONFIG_HOME=os.environ["XDG_CONFIG_HOME"], **environ)
    words = [*COMMAND, "ask", "report.md", QUESTION, *arguments]
    async with started(*words, cwd=home, env=env) as process:
        return await ended(process)


# The default folder


async def test_a_run_has_a_private_log_by_default(home: Path) -> None:
    code, out, err = await ask(home, "--json")
    assert (code, err) == (0, "")
    (folder,) = run_folders(home)
    assert json.loads(out)["log_dir"] == str(folder)
    assert {each.name for each in folder.iterdir()} >= {"supervisor.jsonl", "worker.jsonl", "repl.jsonl"}
    # A run that has answered needs no paid answers any more.
    assert not list(folder.glob("answers*"))
    for path in [home / "logs", *(home / "logs").rglob("*")]:
        assert stat.S_IMODE(facts(path).st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert (home / RUNS / ".gitignore").read_text().endswith("\n*\n")


async def test_no_log_writes_none(home: Path) -> None:
    code, out, _ = await ask(home, "--json", "--no-log")
    assert (code, json.loads(out)["log_dir"]) == (0, None)
    assert not (home / "logs").exists()


@pytest.mark.parametrize("arguments", [[], ["--log-dir", "logs/mine"]])
async def test_only_a_folder_that_was_named_must_be_writable(home: Path, arguments: list[str]) -> None:
    (home / "logs").write_text("a file in the way")
    code, out, err = await ask(home, *arguments)
    assert (code == 6) is bool(arguments)
    assert bool(out) is not bool(arguments)
    assert "Not a directory" in err
    assert ("this run has no log: " in err) is not bool(arguments)
    assert "ake room" not in err


async def test_a_mistake_leaves_no_folder(home: Path) -> None:
    code, _, err = await ask(home, "--no-log", "--log-dir", "x")
    assert (code, "exclude each other" in err) == (2, True)
    (home / "task.json").write_text('{"query": "  ", "context": "c"}')
    code, _, err = await run(home, None, [*COMMAND, "run", "task.json"], None)
    assert (code, "query is empty" in err) == (2, True)
    assert run_folders(home) == []


async def test_nothing_paid_is_nothing_to_go_on_with(home: Path) -> None:
    code, _, err = await ask(home, "--supervisor", "openai/gpt-4.1")
    assert (code, "to go on" in err, "the logs are in" in err) == (5, False, True)


async def test_two_that_start_at_once_have_a_folder_each(home: Path) -> None:
    answers = await asyncio.gather(ask(home, "--json"), ask(home, "--json"))
    folders = {json.loads(out)["log_dir"] for _, out, _ in answers}
    assert folders == set(map(str, run_folders(home)))
    assert len(folders) == 2
    # Both have the document, which is stored once.
    contexts = [each for folder in run_folders(home) for each in folder.glob("context-*")]
    (shared,) = (home / RUNS / SHARED).iterdir()
    assert {facts(each).st_ino for each in contexts} == {facts(shared).st_ino}


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("What was found?", "what-was-found"),
        ("这是什么?", "question"),
        ("", "question"),
        ("../../etc/passwd", "etc-passwd"),
        ("Où est Müller?\x1b[2J\n", "ou-est-muller-2j"),
        ("word " * 20, "word-word-word-word-word-word-word-word"),
        ("x" * 300, "x" * 40),
    ],
)
def test_a_folder_has_the_first_words_of_its_question(question: str, name: str) -> None:
    assert slug(question) == name


# The newest are kept


def make(question: str = QUESTION, *, killed: bool = False) -> Path:
    with new_run(question) as folder:
        record = RunRecord.lock(folder)
        record.begin(["supdist-engine", "run", "task.json"])
        (folder.path / "supervisor.jsonl").write_text("")
        if not killed:
            record.end()
        record.close()
        return Path(folder.path)


def test_the_newest_hundred_are_kept(home: Path) -> None:
    old = [home / RUNS / f"20200101-{number:06}-old" for number in range(KEPT)]
    first = make()
    for folder in old:
        first.rename(folder)
        with PrivateFolder.open(folder) as opened:
            record = RunRecord.lock(opened)
            record.begin(["x"])
            record.end()
            record.close()
        first = make()
    assert run_folders(home) == [*old[1:], first]


def test_only_what_the_engine_made_is_removed(home: Path) -> None:
    outside = home / "outside"
    outside.mkdir()
    (outside / "supervisor.jsonl").write_text("mine")
    names = [f"20200101-00000{number}-old" for number in range(7)]
    forged, linked, noted, running, blobs, inner, old = (home / RUNS / name for name in names)
    for place in (forged, noted, running, blobs, inner, old):
        made = make()
        made.rename(place)
        with PrivateFolder.open(place) as folder:
            record = RunRecord.lock(folder)
            record.begin(["x"])
            record.end()
            record.close()
    (forged / NAME).write_text('{"command": ["x"], "folder": "/"}\n' + "0" * 64 + "\nended\n")
    linked.symlink_to(outside)
    (noted / "notes.txt").write_text("mine")
    (blobs / "blobs").mkdir()
    (blobs / "blobs" / ("a" * 64)).write_text("long")
    (inner / "blobs").symlink_to(outside)
    (old / "repl.jsonl").symlink_to(outside / "supervisor.jsonl")
    goes_on = RunRecord.lock(PrivateFolder.open(running))
    for number in range(KEPT):
        (home / RUNS / f"20300101-{number:06}-new").mkdir()
    make()
    assert [each.exists() for each in (forged, linked, noted, running, blobs, inner, old)] == [
        True, True, True, True, False, True, False,
    ]  # fmt: skip
    assert (outside / "supervisor.jsonl").read_text() == "mine"
    goes_on.close()
    make()
    assert not running.exists()


def test_a_context_goes_with_its_last_log(home: Path) -> None:
    first, second = make(), make()
    shared = home / RUNS / SHARED / "context-0.txt"
    shared.write_text("document")
    for folder in (first, second):
        os.link(shared, folder / "context-0.txt")
    (first / "context-0.txt").unlink()
    make()
    assert shared.exists()
    (second / "context-0.txt").unlink()
    make()
    assert not shared.exists()


async def test_a_context_that_was_edited_is_stored_anew(home: Path) -> None:
    await ask(home)
    (shared,) = (home / RUNS / SHARED).iterdir()
    shared.write_text("Everything was found in the caves.\n"[: facts(shared).st_size])
    await ask(home)
    first, second = ((next(folder.glob("context-*"))) for folder in run_folders(home))
    assert second.read_bytes() == (home / "report.md").read_bytes()
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("is_optional", [True, False])
async def test_a_log_that_nobody_asked_for_costs_no_run(tmp_path: Path, is_optional: bool) -> None:
    place = OptionalLogDir(tmp_path) if is_optional else tmp_path
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(event: Event) -> None:
        if isinstance(event, TurnStarted):
            size = (tmp_path / "supervisor.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))

    running = arun(
        query="q", context="c", supervisor=ScriptedHandler([block("print(1)"), block("FINAL('yes')")]),
        worker=None, sandbox=SMALL_CONFIG, log_dir=place, on_event=fill,
    )  # fmt: skip
    try:
        if not is_optional:
            with pytest.raises(LogError, match="File too large"):
                await running
            return
        result = await running
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (result.answer, result.stop_reason) == ("yes", "final")
    assert "File too large" in (result.log_error or "")
    assert result.warnings == (result.log_error,), "it is said once"


# A run that does not end


class Endpoint:
    """Two models that sample, and a signal at the third call of the worker, which gets no reply."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at_third: Callable[[], None] | None = None

    def reply(self, request: Request) -> Text:
        model, prompt = request.model, request.body["messages"][-1]["content"]
        self.calls.append("supervisor" if model == "big" else prompt)
        if model == "big":
            return Text(CODE)
        if self.at_third is not None and len(self.calls) == 4:
            stop, self.at_third = self.at_third, None
            stop()
            return Text("", delay=600.0)
        return Text(f"{prompt.rsplit(maxsplit=1)[-1]}{chr(ord('a') + len(self.calls))}")


@asynccontextmanager
async def endpoint(home: Path, **task: Any) -> AsyncGenerator[Endpoint]:
    found = Endpoint()
    async with FakeOpenAI(found.reply) as server:
        model = {"handler": "openai", "base_url": server.base_url}
        models = {"supervisor": {**model, "model": "big"}, "worker": {**model, "model": "small"}}
        (home / "task.json").write_text(json.dumps({"query": QUESTION, "context": "c", **models, **task}))
        yield found


async def run(
    home: Path, found: Endpoint | None, command: list[str], number: int | None
) -> tuple[int, str, str]:
    env = clean_environment(
        OPENAI_API_KEY="k", HOME=os.environ["HOME"], XDG_CONFIG_HOME=os.environ["XDG_CONFIG_HOME"]
    )
    async with started(*command, cwd=home, env=env) as process:
        assert process.stdin is not None
        process.stdin.write(b"from stdin")
        process.stdin.close()
        if number is not None and found is not None:
            found.at_third = lambda: process.send_signal(number)
        return await ended(process)


FIRST = [*COMMAND, "run", "task.json", "--trust-endpoint"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_killed_goes_on_with_what_it_paid_for(home: Path, number: int) -> None:
    async with endpoint(home) as found:
        code, _, err = await run(home, found, FIRST, number)
        assert code == (-9 if number == signal.SIGKILL else 128 + number)
        if number == signal.SIGKILL:
            # The next command in this folder says it, once.
            code, _, err = await ask(home)
            assert (code, (await ask(home))[2].count("killed")) == (0, 0)
            assert "an earlier run was killed; its log is in logs/runs/" in err
        line = next(each for each in err.splitlines() if "to go on without paying twice: " in each)
        if number != signal.SIGKILL:
            assert line == err.splitlines()[-1]
        command = shlex.split(line.partition("twice: ")[2])
        assert command[-2] == "--resume"
        paid = len(found.calls)
        code, out, err = await run(home, found, command, None)
    assert code == 0, err
    assert found.calls[paid:] == [f"part {number}" for number in (1, 1, 2, 2)]
    answers = out.split()
    assert len(set(answers)) == 6, "each sampled call has an answer of its own"
    assert [each[0] for each in answers] == list("001122")
    # The same folder holds both attempts, and no answers that nobody needs.
    folder = Path(command[-1])
    starts = [json.loads(line) for line in (home / folder / "supervisor.jsonl").read_text().splitlines()]
    assert [each["event"] for each in starts].count("run_start") == 2
    assert not list((home / folder).glob("answers*"))


async def test_kept_answers_are_no_cache_for_other_calls_and_runs(home: Path) -> None:
    """Answers that are kept for going on are no cache: a run pays for each call, as without them."""
    async with endpoint(home) as found:
        code, out, _ = await run(home, found, FIRST, None)
        assert (code, len(found.calls), len(set(out.split()))) == (0, 7, 6)
        code, again, _ = await run(home, found, FIRST, None)
    assert (code, len(found.calls)) == (0, 14)
    assert again != out


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("run task.json", "run task.json --resume logs/x"),
        ("run t.json --resume a --log-dir=b --json", "run t.json --json --resume logs/x"),
        ("ask f 'what is $x?' --save t.json", "ask f 'what is $x?' --resume logs/x"),
        ("ask f q --log-dir --odd -- -x", "ask f q --resume logs/x -- -x"),
    ],
)
def test_the_command_to_go_on_is_the_one_that_was_typed(typed: str, again: str) -> None:
    assert resuming(shlex.split(typed), "logs/x") == again


async def test_stdin_must_be_given_again(home: Path) -> None:
    async with endpoint(home) as found:
        task = json.loads((home / "task.json").read_text())
        del task["context"]
        (home / "task.json").write_text(json.dumps({**task, "context_file": "-"}))
        command = [*COMMAND, "run", "task.json", "--trust-endpoint"]
        _, _, err = await run(home, found, command, signal.SIGINT)
        last = err.splitlines()[-1]
        assert last.startswith("supdist-engine: to go on without paying twice, with the same stdin: ")
        code, _, err = await run(home, found, shlex.split(last.partition("stdin: ")[2]), None)
    assert (code, len(found.calls)) == (0, 4 + 4)


async def test_a_limit_that_was_reached_can_be_raised(home: Path) -> None:
    async with endpoint(home) as found:
        code, _, err = await run(home, found, [*FIRST, "--max-worker-calls", "4"], None)
        assert code == 3
        # As it is printed: the limit is raised already.
        command = shlex.split(err.partition("worker's paid answers: ")[2].splitlines()[0])
        assert command[-4:-2] == ["--max-worker-calls", "8"]
        assert command.count("--max-worker-calls") == 1
        assert "without paying twice" not in err
        paid = len(found.calls)
        code, out, _ = await run(home, found, command, None)
    assert code == 0
    assert len(out.split()) == 6
    assert found.calls[paid:] == ["part 2", "part 2"]


async def test_with_a_cache_of_its_own_the_same_command_goes_on(home: Path) -> None:
    async with endpoint(home, cache="paid.sqlite", cache_sampled=True) as found:
        code, _, err = await run(home, found, FIRST, signal.SIGINT)
        assert code == 130
        assert err.splitlines()[-1].endswith("paid.sqlite; the same command uses them")
    async with endpoint(home, cache="off") as found:
        _, _, err = await run(home, found, FIRST, signal.SIGINT)
        assert "no paid answers are kept" in err.splitlines()[-1]


async def test_a_record_of_another_version_is_read_as_far_as_it_goes(home: Path) -> None:
    place = make(killed=True)
    record = RunRecord.lock(PrivateFolder.open(place))
    facts = b'{"started": "2026-01-01"}'
    mark = record._mark(facts)  # pyright: ignore[reportPrivateUsage]  # an older engine wrote less
    (place / NAME).write_bytes(facts + b"\n" + mark + b"\n")
    assert record.read() == RunFacts(is_own=True)
    record.close()
    code, _, err = await ask(home)
    assert code == 0, err


async def test_a_run_that_goes_on_cannot_be_resumed(home: Path) -> None:
    place = make()
    record = RunRecord.lock(PrivateFolder.open(place))
    code, _, err = await ask(home, "--resume", str(place))
    assert (code, "its run goes on" in err) == (2, True)
    record.close()
    code, _, err = await ask(home, "--resume", str(place))
    assert (code, "it holds no answers to go on with" in err) == (2, True)
    code, _, err = await ask(home, "--resume", str(place), "--no-log")
    assert (code, "exclude each other" in err) == (2, True)


async def test_a_named_folder_in_use_gets_a_number(home: Path) -> None:
    (home / "mine").mkdir()
    record = RunRecord.lock(PrivateFolder.open(home / "mine"))
    code, _, err = await ask(home, "--log-dir", "mine")
    record.close()
    assert (code, "another run goes on in mine" in err) == (0, True)
    assert (home / "mine-2/supervisor.jsonl").exists()


def test_a_command_of_another_user_is_not_shown(home: Path) -> None:
    """A folder from elsewhere must not suggest what to type."""
    place = make(killed=True)
    record = (place / NAME).read_text().splitlines()
    (place / NAME).write_text("\n".join([record[0].replace("task.json", "evil.json"), record[1], ""]))
    assert killed_runs() == []
    (place / NAME).write_text("\n".join([*record, ""]))
    copy = place.with_name(f"{place.name}-copy")
    place.rename(copy)
    assert killed_runs() == []
    copy.rename(place)
    assert [each.facts.command for each in killed_runs()] == [["supdist-engine", "run", "task.json"]]
    assert killed_runs() == []


# The end of a run


async def test_the_summary_says_why_it_ended_what_it_cost_and_where_to_look(home: Path) -> None:
    async with endpoint(home) as found:
        code, _, err = await run(home, found, FIRST, None)
    assert code == 0
    ended_line, supervisor, worker, log_line = err.splitlines()[-4:]
    assert ended_line.startswith("answered in 1 turn · ")
    assert supervisor.startswith("supervisor big @ 127.0.0.1:")
    assert " tokens in, " in supervisor
    assert worker.startswith("worker small @ 127.0.0.1:")
    assert ": 6 calls, " in worker
    assert ended_line.endswith("price unknown")
    command = log_line.partition("to read its log: ")[2].split()
    assert command[:2] == ["supdist-engine", "log"]
    code, out, _ = await run(home, None, [*COMMAND, *command[1:]], None)
    assert code == 0
    assert f"question: {QUESTION}" in out
    assert "found = [worker(" in out
    assert "block ok" in out
    assert "worker: 6 calls, 0 failed, 0 from the cache" in out
    assert "ended: final" in out


async def test_a_log_is_printed_without_what_could_deceive_a_terminal(home: Path) -> None:
    replies = [block("print('\\x1b[2J' + 'x' * 9999)\nprint('\\n' * 50)"), block("FINAL('\\x1b]0;title')")]
    task = {
        "query": "q", "context": "c", "worker": "builtin",
        "supervisor": {"handler": "scripted", "replies": replies},
    }  # fmt: skip
    (home / "task.json").write_text(json.dumps(task))
    await run(home, None, [*COMMAND, "run", "task.json"], None)
    code, out, _ = await run(home, None, [*COMMAND, "log"], None)
    assert (code, "\x1b" in out) == (0, False)
    assert "more lines" in out
    assert max(map(len, out.splitlines())) < 600
    _, out, _ = await run(home, None, [*COMMAND, "log", "--whole"], None)
    assert "x" * 9999 in out


async def test_what_is_no_log_is_named(home: Path) -> None:
    for words, why in ((["log"], "there is no run in logs/runs"), (["log", "."], "there is no log of a run")):
        code, _, err = await run(home, None, [*COMMAND, *words], None)
        assert (code, why in err) == (2, True)
    (home / "supervisor.jsonl").write_text(
        json.dumps({"event": "run_start", "schema_version": 99, "run_id": "r"}) + "\n"
    )
    code, _, err = await run(home, None, [*COMMAND, "log", "."], None)
    assert (code, "install a newer" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize(
    ("reason", "limits", "raised"),
    [
        ("max_iterations", {"max_iterations": 3}, {"--max-iterations": "6"}),
        ("timeout", {"max_seconds": 1.5}, {"--max-seconds": "3"}),
        ("budget", {"max_cost_usd": 0.05, "max_worker_calls": 100}, {"--max-cost-usd": "0.1"}),
        ("budget", {"max_tokens": 5000}, {"--max-tokens": "10000"}),
        ("sandbox_lost", {"max_tokens": 5000}, {}),
    ],
)
def test_the_limit_that_ended_a_run_is_raised(
    reason: Any, limits: dict[str, Any], raised: dict[str, str]
) -> None:
    used = Usage(3000, 1000, 5)
    result = RunResult(None, 1, used, Usage(), 1.0, reason, cast("Any", None), "a" * 32, cost_usd=0.04)
    assert raised_limits(result, RunConfig(**limits)) == raised


def test_a_raised_limit_replaces_that_of_the_command() -> None:
    command = ["supdist-engine", "run", "t.json", "--max-iterations=3", "--max-tokens", "5"]
    expected = "supdist-engine run t.json --max-tokens 5 --max-iterations 6 --resume logs"
    assert resuming(command, "logs", {"--max-iterations": "6"}) == expected
