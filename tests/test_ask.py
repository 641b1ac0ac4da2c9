"""``supdist-engine ask FILE... QUESTION`` as a user types it, and as a new user mistypes it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from process_support import COMMAND, clean_environment, terminal_output
from support import REPOSITORY

from supdist.tools.testing.fake_openai import FakeOpenAI
from supdist.tools.testing.replies import Text

REPORT = (REPOSITORY / "tasks/examples/quickstart/report.md").read_text(encoding="utf-8")
QUESTION = "How long must the new deck last?"


def ask(*words: str, cwd: Path, text: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "ask", *words],
        check=False, cwd=cwd, input=text, capture_output=True, text=True, timeout=60,
        env=clean_environment(**environ),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.md").write_text(REPORT, encoding="utf-8")
    return tmp_path


def test_a_question_about_a_file(folder: Path) -> None:
    done = ask("report.md", QUESTION, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "sixty years" in done.stdout
    assert "is not a language model" in done.stderr
    assert "answered in 3 turns" in done.stderr


def test_stdin_is_a_document(folder: Path) -> None:
    done = ask("-", QUESTION, "--json", cwd=folder, text=REPORT)
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert "sixty years" in result["answer"]


def test_a_task_comes_from_stdin(folder: Path) -> None:
    task = {"query": QUESTION, "context_file": "report.md"}
    toml = f'query = "{QUESTION}"\ncontext_file = "report.md"\n'
    for text in (json.dumps(task), toml):
        done = subprocess.run(
            [*COMMAND, "run", "-"], check=True, cwd=folder, input=text, capture_output=True, text=True,
            timeout=60, env=clean_environment(),
        )  # fmt: skip
        assert "sixty years" in done.stdout


@pytest.mark.parametrize("trusted", [False, True])
def test_a_task_from_stdin_that_names_tools_says_what_to_do(folder: Path, trusted: bool) -> None:
    (folder / "my_tools.py").write_text("def record(key: str) -> str:\n    return key.upper()\n")
    supervisor = {"handler": "scripted", "replies": ["```repl\nFINAL(record('ada'))\n```"]}
    tools = {"record": "my_tools:record"}
    task = {"query": "q", "context": "c", "supervisor": supervisor, "worker": "builtin", "tools": tools}
    (folder / "task.json").write_text(json.dumps(task))
    environment = clean_environment(XDG_CONFIG_HOME=str(folder / "config"))

    def command(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words], check=False, cwd=folder, input=text, capture_output=True, text=True,
            timeout=60, env=environment,
        )  # fmt: skip

    if trusted:
        assert command("trust", ".").returncode == 0
    done = command("run", "-", text=json.dumps(task))
    assert done.returncode == 2
    assert "stdin: tools runs code in the engine" in done.stderr
    assert "supdist-engine run task.json" in done.stderr
    if trusted:
        assert command("run", "task.json").stdout == "ADA\n"


async def test_one_typed_model_answers_and_a_limit_is_exit_3(folder: Path) -> None:
    async with FakeOpenAI([Text("```repl\nprint(1)\n```"), Text("the best")]) as server:
        done = await anyio.run_process(
            [*COMMAND, "ask", "report.md", "q", "--supervisor", "lmstudio/m", "--max-iterations", "1"],
            check=False, cwd=folder, env=clean_environment(LMSTUDIO_BASE_URL=server.base_url),
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, b"the best\n")
    # The others ask for the model's window.
    assert [request.model for request in server.requests if request.model] == ["m", "m"]


async def test_a_name_at_the_configured_endpoint(folder: Path) -> None:
    async with FakeOpenAI([Text("```repl\nFINAL(worker('w'))\n```"), Text("found")]) as server:
        done = await anyio.run_process(
            [*COMMAND, "ask", "report.md", "q", "--supervisor-model", "big", "--worker-model", "small"],
            check=False, cwd=folder, env=clean_environment(BASE_URL=server.base_url),
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"found\n"), done.stderr
    assert [request.model for request in server.requests] == ["big", "small"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], 'name a file and ask a question: supdist-engine ask paper.md "What was found?"'),
        (["report.md"], "is missing; it comes last: supdist-engine ask report.md 'What was found?'"),
        (["report.md", "-"], "the question is missing; it comes last"),
        (["What is it?", "report.md"],
            "the question comes last: supdist-engine ask report.md 'What is it?'"),
        (["report.md", "What", "is", "it?"],
            "What: no such file. If the question begins there, quote it: supdist-engine ask report.md"),
        (["What", "is", "it?"], "quote it: supdist-engine ask FILE 'What is it?'"),
        (["A question"], "no file is named: supdist-engine ask FILE... 'A question'; or - instead of FILE"),
        (["paper.pdf"], "paper.pdf: no such file"),
        (["nope.md", "A question"], "nope.md: no such file\n"),
        (["report.md", "nope.md", "A question"], "nope.md: no such file\n"),
        (["https://example.com/paper.pdf", "q"], "a web page is not read; save it to a file first"),
        (["-", "q"], "cannot read the document from stdin: it is empty"),
        (["report.md", ""], "the question is empty"),
        (["empty.txt", "q"], "empty.txt has no text"),
        (["empty.txt", "./blank.md", "q"], "empty.txt, ./blank.md have no text"),
        (["report.md", "q", "--cache", "offf"], "--cache offf: did you mean off?"),
        (["report.md", "q", "--cache", "nodir/x.sqlite"], "the folder nodir does not exist"),
        (["report.md", "q", "--supervisor", "olama/m"], "did you mean ollama/m?"),
        (["report.md", "q", "--worker", "a", "--worker-model", "b"], "give one of them"),
        (["report.md", "q", "--runtime", "runsc"], "--runtime is for containers; add --backend docker"),
        (["report.md", "q", "--log-bytes", "lots"], 'text such as "512MiB", not \'lots\''),
        (["report.md", "q", "--curve-keys", "keys"], "name it with --broker"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_that_says_what_to_type(folder: Path, words: list[str], message: str) -> None:
    (folder / "empty.txt").touch()
    (folder / "blank.md").write_text(" \n")
    done = ask(*words, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_missing_key_names_its_variable(folder: Path) -> None:
    done = ask("report.md", "q", "--supervisor", "openrouter/m", cwd=folder)
    assert done.returncode == 5
    assert "OPENROUTER_API_KEY" in done.stderr


def test_a_missing_question_is_asked_for_on_a_terminal(folder: Path) -> None:
    controller, terminal = os.openpty()
    os.write(controller, f"{QUESTION}\n".encode())
    with subprocess.Popen(
        [*COMMAND, "ask", "report.md"], cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal,
        env=clean_environment(),
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b"".join(terminal_output(controller)).decode()
    os.close(controller)
    assert process.returncode == 0
    assert "Question: " in shown
    assert "sixty years" in shown


def test_sizes_have_units_everywhere(folder: Path) -> None:
    done = ask("report.md", QUESTION, "--log-bytes", "2KiB", "--log-dir", "logs", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (folder / "logs/supervisor.jsonl").read_text().splitlines()]
    assert [each["log_bytes"] for each in events if each["event"] == "log_full"] == [2 << 10]
    task: dict[str, Any] = {"query": QUESTION, "context_file": "report.md", "limits": {"log_bytes": "20KiB"}}
    (folder / "task.json").write_text(json.dumps(task))
    done = subprocess.run(
        [*COMMAND, "run", "task.json"],
        check=False, cwd=folder, capture_output=True, text=True, timeout=60, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (["--supervisor", "openai/gpt-4.1", "--worker", "builtin", "--max-cost-usd", "0.5"],
            ["supervisor: gpt-4.1 @ api.openai.com", "  key: OPENAI_API_KEY (set)",
             "  price: $2 in, $8 out for a million tokens", "cost: at most $0.5000"]),
        (["--supervisor", "openrouter/qwen/none-such"],
            ["  key: OPENROUTER_API_KEY (missing)", "  price: unknown",
             "cost: no bound is known: give --max-cost-usd"]),
        (["--supervisor", "builtin", "--worker", "builtin"],
            ["worker: builtin (no language model)", "cost: nothing"]),
    ],
)  # fmt: skip
def test_a_dry_run_sends_nothing_and_shows_no_key(folder: Path, flags: list[str], lines: list[str]) -> None:
    done = ask("report.md", "q", "--dry-run", *flags, cwd=folder, OPENAI_API_KEY="sk-secret")
    assert done.returncode == 0, done.stderr
    for line in [*lines, "Nothing was sent."]:
        assert line in done.stdout.splitlines()
    assert "context: about " in done.stdout
    assert "sk-secret" not in done.stdout + done.stderr


def test_a_dry_run_refuses_what_the_run_would_refuse(folder: Path) -> None:
    flags = ["--supervisor", "openrouter/qwen/none-such", "--max-cost-usd", "0.5"]
    done = ask("report.md", "q", "--dry-run", *flags, cwd=folder, OPENROUTER_API_KEY="sk-secret")
    assert (done.returncode, done.stdout) == (2, "")
    assert "max_cost_usd: the price of qwen/none-such is unknown; give it as `price`" in done.stderr


def write_task(folder: Path, **changes: Any) -> None:
    task: dict[str, Any] = {"query": QUESTION, "context_file": "report.md", **changes}
    (folder / "task.json").write_text(json.dumps(task))


def run(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "run", "task.json", *flags],
        check=False, cwd=folder, capture_output=True, text=True, timeout=60,
        env=clean_environment(**environment),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "flags", "line"),
    [
        ("http://localhost:99/v1", [], "  key: none"),
        ("https://gpu.example/v1", ["--trust-endpoint"], "  key: OPENAI_API_KEY (set)"),
    ],
)
def test_a_dry_run_names_the_key_that_the_run_would_send(
    folder: Path, url: str, flags: list[str], line: str
) -> None:
    write_task(folder, supervisor={"handler": "openai", "model": "m", "base_url": url}, worker="builtin")
    done = run(folder, "--dry-run", *flags, OPENAI_API_KEY="sk-secret")
    assert done.returncode == 0, done.stderr
    assert line in done.stdout.splitlines()


def test_a_flags_path_needs_no_permission_of_the_task_file(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "packages").mkdir(parents=True)
    (elsewhere / "prompts").mkdir()
    inside = folder / "inside"
    inside.mkdir()
    write_task(
        inside, context="c", context_file=None, prompts_dir="../none", supervisor="builtin", worker="builtin"
    )
    flags = ["--packages", str(elsewhere / "packages"), "--prompts-dir", str(elsewhere / "prompts")]
    done = run(inside, *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
@pytest.mark.parametrize("word", ["closed", "closed/*.md", "closed/a.md"])
def test_a_closed_folder_is_named_with_the_cause(folder: Path, word: str) -> None:
    (folder / "closed").mkdir(mode=0)
    done = ask(word, "q", cwd=folder)
    assert done.returncode == 2
    assert "closed" in done.stderr
    assert "Permission denied" in done.stderr
