"""Questions on a terminal, and what each answer does: at most one for a host or a folder."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from process_support import COMMAND, clean_environment, terminal_output

ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(folder: Path, *answers: str, **environ: str) -> tuple[int, str]:
    """Run the task with answers typed as the questions come; the exit code and what was shown."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run", "task.json"],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=clean_environment(**environ),
    )
    os.close(terminal)
    shown, waiting = b"", list(answers)
    for piece in terminal_output(controller):
        shown += piece
        if shown.endswith(b"? ") and waiting:
            answer = waiting.pop(0)
            if answer == "ctrl-c":
                process.send_signal(signal.SIGINT)
            else:
                os.write(controller, answer.encode())
    os.close(controller)
    code = process.wait(30)
    assert not waiting, shown
    return code, ANSI.sub(b"", shown).decode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "task").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/doc.txt").write_text("the document")
    return tmp_path / "task"


def task(folder: Path, **changes: Any) -> None:
    replies = {"handler": "scripted", "replies": ["```repl\nFINAL(context)\n```"]}
    whole = {"query": "q", "context": "c", "supervisor": replies, "worker": {"handler": "builtin"}} | changes
    (folder / "task.json").write_text(
        json.dumps({name: value for name, value in whole.items() if value is not None})
    )


def test_a_file_elsewhere_is_asked_about_until_the_answer_is_remembered(folder: Path) -> None:
    task(folder, context=None, context_file="../data/doc.txt")
    code, shown = on_terminal(folder, "what?\n", "y\n")
    assert code == 0
    assert "the document" in shown
    assert shown.count("o = once, a = always, n = no? ") == 2
    assert on_terminal(folder, "a\n")[0] == 0
    code, shown = on_terminal(folder)
    assert (code, "Allow" in shown) == (0, False)


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("\x04", 2), ("ctrl-c", 130)])
def test_no_the_end_of_input_and_ctrl_c_end_it(folder: Path, answer: str, code: int) -> None:
    task(folder, context=None, context_file="../data/doc.txt")
    ended, shown = on_terminal(folder, answer)
    assert ended == code
    assert ("--allow-read" in shown) == (code == 2)
    assert "Traceback" not in shown


def test_a_folder_is_trusted_with_a_yes_and_its_code_runs(folder: Path) -> None:
    (folder / "mine.py").write_text("def twice(text): return text * 2\n")
    task(
        folder,
        tools={"twice": "mine:twice"},
        supervisor={"handler": "scripted", "replies": ["```repl\nFINAL(twice('ab'))\n```"]},
    )
    code, shown = on_terminal(folder, "y\n")
    assert (code, "abab" in shown) == (0, True)
    code, shown = on_terminal(folder)
    assert (code, "Trust" in shown) == (0, False)
    (folder / "mine.py").write_text("def twice(text): return text * 3\n")
    code, shown = on_terminal(folder, "n\n")
    assert (code, "has changed since it was trusted: mine.py" in shown) == (2, True)


def test_a_key_is_asked_about_with_the_host_and_the_danger(folder: Path) -> None:
    """No packet is sent: the port is one where nobody listens, and the name is no host."""
    model = {
        "handler": "openai",
        "model": "m",
        "base_url": "http://gpu-box.invalid:9/v1",
        "api_key_env": "BOX_KEY",
        "max_retries": 0,
    }
    task(folder, supervisor=model)
    code, shown = on_terminal(folder, "v\n", BOX_KEY="k")
    assert code == 2
    assert (
        "Send the key in BOX_KEY to http://gpu-box.invalid:9? task.json asks for it (supervisor.api_key_env)."
        in shown
    )
    assert "It is plain http" in shown
    code, shown = on_terminal(folder, BOX_KEY="k")
    assert (code, "Send the key" in shown) == (2, False)


def test_names_of_the_file_move_no_cursor(folder: Path) -> None:
    (folder.parent / "da\x1b[2J\u202eta").mkdir()
    (folder.parent / "da\x1b[2J\u202eta/doc.txt").write_text("d")
    task(folder, context=None, context_file="../da\x1b[2J\u202eta/doc.txt")
    code, shown = on_terminal(folder, "n\n")
    assert code == 2
    assert "\\x1b[2J\\u202e" in shown
