"""``ask --save`` writes a task file that ``run`` takes and that does the same."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
import typer
from process_support import COMMAND, clean_environment
from support import REPOSITORY

from supdist.engine.cli.options import LIMITS, LOGS, MODELS, SANDBOX, TRUST
from supdist.engine.taskfile import read_task
from supdist.tools.commands import app
from supdist.tools.testing.fake_openai import FakeOpenAI
from supdist.tools.testing.replies import Text

REPORT = (REPOSITORY / "tasks/examples/quickstart/report.md").read_text(encoding="utf-8")
QUESTION = "How long must the new deck last?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.md").write_text(REPORT, encoding="utf-8")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("a note")
    return tmp_path


def command(*words: str, cwd: Path, text: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], check=False, cwd=cwd, input=text, capture_output=True, text=True, timeout=60,
        env=clean_environment(**environ),
    )  # fmt: skip


def saved(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_saved_file_gives_the_same_answer(folder: Path) -> None:
    words = (
        "report.md",
        "notes",
        QUESTION,
        "--memory",
        "512MiB",
        "--max-iterations",
        "7",
        "--cache",
        "c.sqlite",
    )
    asked = command("ask", *words, "--save", "task.json", cwd=folder)
    assert asked.returncode == 0, asked.stderr
    assert "saved as task.json: supdist-engine run task.json\n" in asked.stderr
    ran = command("run", "task.json", cwd=folder)
    assert (ran.returncode, ran.stdout) == (0, asked.stdout)
    task = read_task(folder / "task.json")
    assert (task.sandbox.memory, task.limits.max_iterations, task.cache) == (512 << 20, 7, "c.sqlite")
    assert saved(folder / "task.json")["context_files"] == ["report.md", "notes"]
    assert saved(folder / "task.json")["supervisor"] == "builtin"


async def test_models_keep_their_short_names_and_get_the_same_requests(folder: Path) -> None:
    flags = ("--supervisor", "ollama/big", "--worker", "vllm/small", "--save", "t.json")
    reply = Text("```repl\nFINAL(worker('w'))\n```")
    async with FakeOpenAI(lambda request: reply if request.model == "big" else Text("found")) as server:
        env = clean_environment(OLLAMA_HOST=server.base_url, VLLM_BASE_URL=server.base_url)
        for words in (("ask", "report.md", "q", *flags), ("run", "t.json")):
            done = await anyio.run_process([*COMMAND, *words], check=False, cwd=folder, env=env)
            assert (done.returncode, done.stdout) == (0, b"found\n"), done.stderr
        bodies = [request.body for request in server.requests if request.path == "/v1/chat/completions"]
    assert len(bodies) == 4
    assert bodies[:2] == bodies[2:]
    task = saved(folder / "t.json")
    assert (task["supervisor"], task["worker"]) == ("ollama/big", "vllm/small")


def test_a_model_of_the_environment_is_written_with_the_name_of_its_key(folder: Path) -> None:
    done = command(
        "ask", "report.md", "q", "--dry-run", "--save", "t.json", cwd=folder, OPENAI_API_KEY="the-secret-key"
    )
    assert done.returncode == 0, done.stderr
    assert "the-secret-key" not in (folder / "t.json").read_text()
    supervisor = saved(folder / "t.json")["supervisor"]
    assert (supervisor["model"], supervisor["api_key_env"]) == ("gpt-4.1", "OPENAI_API_KEY")


def test_an_endpoint_with_a_login_is_not_written(folder: Path) -> None:
    done = command(
        "ask", "report.md", "q", "--dry-run", "--save", "t.json", cwd=folder,
        BASE_URL="http://me:secret@gpu:8000/v1", SUPERVISOR_MODEL="a", WORKER_MODEL="b",
    )  # fmt: skip
    assert done.returncode == 2
    assert "secret" not in done.stderr
    assert not (folder / "t.json").exists()


def test_paths_begin_at_the_task_file_and_what_needs_a_permission_is_named(folder: Path) -> None:
    (folder / "tasks").mkdir()
    done = command("ask", "report.md", QUESTION, "--log-dir", "logs", "--save", "tasks/task.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    task = saved(folder / "tasks/task.json")
    assert (task["context_file"], task["log_dir"]) == ("../report.md", "../logs")
    assert "--allow-read report.md" in done.stderr
    assert "--allow-write logs" in done.stderr
    ran = command("run", "tasks/task.json", "--allow-read", "report.md", "--allow-write", "logs", cwd=folder)
    assert (ran.returncode, ran.stdout) == (0, done.stdout), ran.stderr


def test_stdin_stays_stdin(folder: Path) -> None:
    assert command("ask", "-", QUESTION, "--save", "t.json", cwd=folder, text=REPORT).returncode == 0
    ran = command("run", "t.json", cwd=folder, text=REPORT)
    assert "sixty years" in ran.stdout


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("old.json", "the file exists, and is not overwritten"),
        ("link.json", "the file exists, and is not overwritten"),
        ("none/task.json", "No such file or directory"),
        ("task.toml", "name it task.json"),
    ],
)
def test_nothing_is_overwritten_and_nothing_is_asked(folder: Path, path: str, words: str) -> None:
    (folder / "old.json").write_text("mine")
    (folder / "link.json").symlink_to("elsewhere.json")
    done = command("ask", "report.md", QUESTION, "--save", path, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--save {path}: " in done.stderr
    assert words in done.stderr
    assert (folder / "old.json").read_text() == "mine"
    assert not (folder / "elsewhere.json").exists()


def test_ask_has_the_flags_of_eval_for_models_limits_and_sandboxes() -> None:
    program: Any = typer.main.get_command(app)
    flags = {
        name: {option: each for each in program.commands[name].params for option in each.opts}
        for name in ("ask", "eval")
    }
    shared = {
        option
        for option, each in flags["eval"].items()
        if each.rich_help_panel in (MODELS, LIMITS, SANDBOX, LOGS, TRUST)
    }
    # Those of an experiment, of its judge and its strategies, and of a settings file.
    only = {
        "--judge", "--judge-model", "--window", "--out", "--resume", "--retry-failed", "--allow-read",
        "--allow-write",
    }  # fmt: skip
    assert shared - only - flags["ask"].keys() == set()
    assert only <= flags["eval"].keys()
    for option in shared - only - {"--log-dir"}:
        ours, theirs = flags["ask"][option], flags["eval"][option]
        if option != "--cache":
            assert (ours.min, ours.max, ours.multiple) == (theirs.min, theirs.max, theirs.multiple), option
        assert ours.rich_help_panel == theirs.rich_help_panel, option
    assert re.search(r"--max-cost-usd", " ".join(shared))
