"""The commands as a user types them, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from process_support import (
    COMMAND,
    clean_environment,
    descendants,
    restore_sigint,
    terminal_output,
)
from support import REPOSITORY

from supdist.sandbox_image.text import printable

QUICKSTART = REPOSITORY / "tasks/examples/quickstart/task.json"


def supdist(
    *arguments: str, cwd: Path, text: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        env=clean_environment(**environ),
        timeout=60,
    )


def scripted_task(folder: Path, replies: list[str], **changes: Any) -> str:
    task = {
        "query": "q",
        "context": "c",
        "supervisor": {"handler": "scripted", "replies": replies},
        "worker": {"handler": "builtin"},
        **changes,
    }
    (folder / "task.json").write_text(json.dumps(task))
    return "task.json"


def test_the_quickstart_answers_on_stdout_and_progresses_on_stderr(tmp_path: Path) -> None:
    done = supdist("run", str(QUICKSTART), "--log-dir", "logs", cwd=tmp_path)
    assert done.returncode == 0
    assert "fibre-reinforced polymer for the deck, because it is the only material" in done.stdout
    assert "is not a language model" in done.stderr
    assert "turn 3: block ok" in done.stderr
    assert "answered in 3 turns" in done.stderr
    assert sorted(path.suffix or path.name for path in (tmp_path / "logs").iterdir()) == [
        ".jsonl",
        ".jsonl",
        ".jsonl",
        ".run",
        ".txt",
    ]


def test_json_is_the_result_alone(tmp_path: Path) -> None:
    done = supdist("run", str(QUICKSTART), "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert done.stderr == ""
    assert (result["stop_reason"], result["iterations"], result["isolation"]["backend"]) == (
        "final",
        3,
        "process",
    )


def test_a_limit_is_exit_3_with_the_best_answer_all_the_same(tmp_path: Path) -> None:
    task = scripted_task(tmp_path, ["```repl\nprint(1)\n```", "the best"])
    done = supdist("run", task, "--max-iterations", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "the best\n")
    assert "all turns used" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.json"], "cannot read the task file"),
        (["run"], "Missing argument"),
        (["run", "task.json", "--bogus"], "No such option"),
        (["run", "task.json", "--max-iterations", "0"], "max-iterations"),
        (["run", "task.json", "--backend", "chroot"], "'chroot' is not one of 'process', 'docker'"),
        (["exec", "1", "--runtime", "runsc"], "--runtime is for containers; add --backend docker"),
        (["bogus"], "No such command"),
        (["exec", "1", "--memory", "lots"], "--memory"),
        (["exec", "1", "--memory", "1KiB"], "--memory"),
        (["exec", "1", "--context-file", "none"], "--context-file"),
    ],
)
def test_wrong_arguments_are_exit_2_and_say_what_is_wrong(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    scripted_task(tmp_path, [])
    done = supdist(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_task_lists_its_mistakes(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"query": "q", "context": "c", "limts": {}, "sandbox": {"pid": 3}}')
    done = supdist("run", "task.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "limts: unknown key; did you mean `limits`?" in done.stderr
    assert "sandbox.pid: unknown key; did you mean `pids`?" in done.stderr


def test_a_model_without_a_connection_is_exit_5_and_says_what_to_do(tmp_path: Path) -> None:
    nobody = {"handler": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    task = {"query": "q", "context": "c", "supervisor": nobody, "worker": nobody}
    (tmp_path / "task.json").write_text(json.dumps(task))
    done = supdist("run", "task.json", cwd=tmp_path)
    assert done.returncode == 5
    assert "127.0.0.1:9: Connection refused. Start it, or correct its address" in done.stderr
    assert "supervisor: the model failed: the model m at http://127.0.0.1:9/v1: " in done.stderr


def test_a_model_that_fails_for_good_is_exit_5(tmp_path: Path) -> None:
    done = supdist("run", scripted_task(tmp_path, []), cwd=tmp_path)
    assert done.returncode == 5
    assert "the model failed: the script has no reply for call 1" in done.stderr


_HIDING = """
try:
    found = worker_batch([str(n) for n in range(4)], return_errors=True)[0]
except Exception:
    found = 'a guess'
"""


def test_a_worker_that_answers_nothing_is_exit_5_with_what_was_found(tmp_path: Path) -> None:
    """Nobody listens at this port. The code hides it."""
    worker = {"handler": "openai", "model": "small", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}
    task = scripted_task(tmp_path, ["```repl\n" + _HIDING + "FINAL('found')\n```"], worker=worker)
    done = supdist("run", task, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, "found\n")
    said = [line for line in done.stderr.splitlines() if line.startswith("supdist-engine: ")]
    assert not [line for line in said if "worker calls failed" in line], "a dead worker is one line"
    (line,) = (line for line in done.stderr.splitlines() if "answered none of 4 calls: " in line)
    assert "127.0.0.1:9" in line
    assert "Connection refused" in line
    assert "Connection refused. Start it, or correct its address. The answer above may be" in done.stderr
    done = supdist("run", task, "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert (done.returncode, result["answer"], result["stop_reason"]) == (5, "found", "worker_failed")
    assert result["failed_calls"] == {"unreachable": 4}


def test_what_failed_beside_answers_is_shown_in_red_on_a_terminal(tmp_path: Path) -> None:
    worker = {"handler": "scripted", "replies": ["yes"]}
    task = scripted_task(tmp_path, ["```repl\n" + _HIDING + "FINAL(found)\n```"], worker=worker)
    line = "supdist-engine: 3 of 4 worker calls failed: request rejected (3)"
    done = supdist("run", task, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "yes\n")
    assert f"\n{line}\n" in done.stderr
    controller, terminal = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "run", task], cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal
    ):
        os.close(terminal)
        shown = b"".join(terminal_output(controller))
    os.close(controller)
    assert f"\x1b[31m{line}\x1b[0m".encode() in shown


def test_logs_that_cannot_be_written_are_exit_6(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    done = supdist("run", str(QUICKSTART), "--log-dir", "logs", cwd=tmp_path)
    assert done.returncode == 6
    assert "cannot write the logs" in done.stderr


def test_a_cache_that_is_no_cache_is_exit_6_and_nothing_is_spent(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_text(
        "no database at all, but text that is long enough to be looked at"
    )
    task = {"query": "q", "context": "c", "cache": "answers.sqlite"}
    (tmp_path / "task.json").write_text(json.dumps(task))
    done = supdist("run", "task.json", cwd=tmp_path)
    assert done.returncode == 6
    assert "choose another path" in done.stderr


def test_a_dot_env_file_configures_the_endpoint(tmp_path: Path) -> None:
    """An endpoint where nobody listens: reached for, since the file names it."""
    (tmp_path / ".env").write_text("BASE_URL=http://127.0.0.1:9/v1\nSUPERVISOR_MODEL=m\nWORKER_MODEL=m\n")
    (tmp_path / "task.json").write_text('{"query": "q", "context": "c"}')
    done = supdist("run", "task.json", cwd=tmp_path)
    assert done.returncode == 5
    assert "the connection to the endpoint failed" in done.stderr


def test_a_broken_dot_env_file_is_one_line_where_nothing_of_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=b\nhello there\n")
    (tmp_path / ".env").chmod(0o600)
    scripted_task(tmp_path, ["```repl\nFINAL(1)\n```"])
    done = supdist("run", "task.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.count(".env") == 1
    assert "supdist-engine: not read: .env, line 2: it is no NAME=VALUE\n" in done.stderr
    (tmp_path / "task.json").write_text('{"query": "q", "context": "c"}')
    done = supdist("run", "task.json", cwd=tmp_path)
    assert done.returncode == 2
    assert ".env may set it, and is broken: .env, line 2: it is no NAME=VALUE. To read another" in done.stderr


def test_control_characters_never_reach_a_terminal_raw() -> None:
    nasty = "a\x1b]52;c;eA==\x07\x9b31m\r\x00\u202e\ud800\u2028 b\n\tc"
    shown = printable(nasty)
    assert shown == "a\\x1b]52;c;eA==\\x07\\x9b31m\\r\\x00\\u202e\\ud800\\u2028 b\n\tc"
    assert printable("plain é 漢字 🙂") == "plain é 漢字 🙂"


def test_on_a_terminal_the_answer_is_escaped_and_progress_is_drawn(tmp_path: Path) -> None:
    import pty

    nasty = "\\x1b]0;title\\x07 [bold]x[/bold] {0}"
    task = scripted_task(
        tmp_path,
        [f"```repl\nprint('{nasty}')\n```", f"```repl\nFINAL('{nasty}')\n```"],
        query="[red]q[/red]\x1b[2J",
    )
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "run", task], cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b"".join(terminal_output(controller))
    os.close(controller)
    assert process.returncode == 0
    assert b"]0;title\x07" not in shown
    assert b"\\x1b]0;title\\x07 [bold]x[/bold] {0}" in shown
    assert b"\x1b[2J" not in shown.replace(b"\x1b[2K", b"")
    assert b"[red]q[/red]" in shown, "markup is text"


@pytest.mark.parametrize(
    ("code", "status", "stdout", "stderr"),
    [
        ("print('out'); import sys; print('err', file=sys.stderr)", 0, "out\n", "err\n"),
        ("import sys; sys.exit(7)", 7, "", ""),
        ("import sys; sys.exit()", 0, "", ""),
        ("import sys; sys.exit('words')", 1, "", ""),
        ("1/0", 1, "", "ZeroDivisionError: division by zero\n"),
        ("import os; os.kill(os.getpid(), 9)", 137, "", "killed: the interpreter was killed (SIGKILL)\n"),
        ("import time; time.sleep(9)", 124, "", "or give a longer timeout\n"),
        ("print('out', end='')\n['value']", 0, "out\n['value']\n", ""),
        (
            (
                "class Image:\n  __repr__ = lambda self: 'image'\n  _repr_png_ = lambda self: b'x' * 12345\n"
                "Image()"
            ),
            0,
            "image\n[image/png, 12345 bytes]\n",
            "",
        ),
    ],
)
def test_exec_ends_as_a_shell_expects(
    tmp_path: Path, code: str, status: int, stdout: str, stderr: str
) -> None:
    done = supdist("exec", code, "--timeout", "0.5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, stdout)
    assert done.stderr.endswith(stderr)


def test_exec_reads_stdin_and_a_context_and_speaks_json(tmp_path: Path) -> None:
    (tmp_path / "doc.txt").write_text("hello")
    done = supdist("exec", "--json", "--context-file", "doc.txt", cwd=tmp_path, text="print(context.upper())")
    result = json.loads(done.stdout)
    assert (result["outcome"], result["stdout"], result["error"]) == ("ok", "HELLO\n", None)
    assert result["display"] == []
    code = "class Image:\n  __repr__ = lambda self: '\\x1b[2J'\n  _repr_png_ = lambda self: b'png'\nImage()"
    shown = json.loads(supdist("exec", "--json", code, cwd=tmp_path).stdout)["display"]
    assert shown == [{"text/plain": "\x1b[2J", "image/png": "cG5n"}]


def test_exec_says_how_to_run_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('ran')")
    done = supdist("exec", "a.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "supdist-engine exec - < a.py" in done.stderr
    assert supdist("exec", "-", cwd=tmp_path, text="print('ran')").stdout == "ran\n"
    missing = supdist("exec", "b.py", cwd=tmp_path)
    assert (missing.returncode, "NameError" in missing.stderr) == (1, True)


def test_schema_and_version(tmp_path: Path) -> None:
    schema = json.loads(supdist("schema", cwd=tmp_path).stdout)
    assert schema["properties"]["limits"]
    assert supdist("--version", cwd=tmp_path).stdout.startswith("supdist-engine 0.")


def test_ctrl_c_ends_the_run_keeps_the_logs_and_exits_130(tmp_path: Path) -> None:
    task = scripted_task(
        tmp_path,
        ["```repl\nprint('begun')\n```", "```repl\nimport time; time.sleep(60)\n```"],
        log_dir="logs",
    )
    process = subprocess.Popen(
        [*COMMAND, "run", task], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigint
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("turn 2: supervisor"):
            break
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    message = process.stderr.read()
    assert process.wait(15) == 130
    process.stderr.close()
    assert "interrupted; the logs are in logs" in message
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in below) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in below if os.path.exists(f"/proc/{pid}")]
    last = json.loads((tmp_path / "logs/supervisor.jsonl").read_text().splitlines()[-1])
    assert last["stop_reason"] == "cancelled"


def test_every_paper_gets_an_answer(tmp_path: Path, papers: list[dict[str, Any]]) -> None:
    assert len(papers) == 8
    for number, paper in enumerate(papers):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "paper.txt").write_text(paper["text"], encoding="utf-8")
        task = {"query": paper["qas"][0]["question"], "context_file": "paper.txt"}
        (folder / "task.json").write_text(json.dumps(task))
        done = supdist("run", str(folder / "task.json"), "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["stop_reason"] == "final"
        assert result["answer"].strip()
        assert result["worker_usage"]["calls"] >= 2


@pytest.mark.parametrize(
    "program", [["-m", "supdist.tools.basic_qa"], [str(REPOSITORY / "tools/basic_qa.py")]]
)
def test_basic_qa_runs_without_a_key(tmp_path: Path, program: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *program],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
    )
    assert done.returncode == 0
    assert "41 tonnes" in done.stdout
    assert (tmp_path / "logs/basic_qa/worker.jsonl").exists()


def test_basic_qa_has_help_and_takes_a_file_and_a_question(tmp_path: Path) -> None:
    program = [sys.executable, str(REPOSITORY / "tools/basic_qa.py")]
    (tmp_path / "note.txt").write_text("The harbour opens at seven. Cats sleep all day.")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *words], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env=clean_environment(),
        )  # fmt: skip

    page = run("--help")
    assert (page.returncode, page.stderr) == (0, "")
    assert "usage: basic_qa.py [-h] [file] [question]" in page.stdout
    assert "OPENAI_API_KEY" in page.stdout
    assert run("-h").stdout == page.stdout
    assert not (tmp_path / "logs").exists()
    assert "seven" in run("note.txt", "When does the harbour open?").stdout


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["ask"], ["exec"], ["mcp"], ["broker"], ["broker", "serve"], ["trust"], ["image", "build"]],
)
def test_h_is_help_everywhere(tmp_path: Path, words: list[str]) -> None:
    done = supdist(*words, "-h", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == supdist(*words, "--help", cwd=tmp_path).stdout
    assert done.stdout.startswith("Usage: ")
