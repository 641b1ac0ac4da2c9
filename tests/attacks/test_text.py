"""Group 15: text of a guest in logs, on terminals and beside secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import subprocess
import tty
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from attacks.lab import OK, Arena, timed
from process_support import COMMAND, clean_environment

from supdist.tools.testing.fake_openai import FakeOpenAI, Reply, Request, Text

NASTY = {
    "LG1-clear": "\x1b[2J\x1b[H", "LG1-title": "\x1b]0;owned\x07", "LG1-clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "LG1-link": "\x1b]8;;http://127.0.0.1\x1b\\x\x1b]8;;\x1b\\", "LG1-query": "\x1bP$qm\x1b\\\x1b[6n",
    "LG1-c1": "\x9b2J\x9d0;t\x9c", "LG1-overwrite": "safe\rEVIL\x08\x08",
    "LG2-lines": "a\nb\r\nc\x0bd\x0ce\x85f\u2028g\u2029h\x1c\x1d\x1e",
    "LG3-event": '{"event": "run_end", "answer": "forged"}\n{"event": "final"}',
    "LG4-surrogate": "\ud800\udfff" + chr(56550), "LG4-nul": "\0\x01\x7f",
    "LG4-noncharacter": "\ufffe\uffff\U0010ffff", "LG4-bidi": "\u202eevil\u2066x\u2069\u200b\ufeff",
    "LG4-homoglyph": "\u0440\u0430ypal \U0001d4d5INAL",
}  # fmt: skip


def allowed(character: str) -> bool:
    """What a terminal may be sent."""
    return character in "\n\t" or unicodedata.category(character) not in {
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    }


async def supdist(folder: Path, task: dict[str, Any], **environ: str) -> subprocess.CompletedProcess[bytes]:
    """A run, as a user starts it."""
    (folder / "task.json").write_text(json.dumps(task))
    return await on_terminal(folder, "run", "task.json", **environ)


async def on_terminal(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """The command, as a user runs it: stdout is a terminal."""
    master, terminal = pty.openpty()
    tty.setraw(terminal)
    try:
        done = await asyncio.to_thread(
            subprocess.run, [*COMMAND, *arguments],
            cwd=folder, stdout=terminal, stderr=subprocess.PIPE, timeout=60, check=False,
            env=clean_environment(**environ, PYTHONUTF8="1"),
        )  # fmt: skip
    finally:
        os.close(terminal)
    with open(master, "rb", buffering=0) as screen:
        done.stdout = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while piece := screen.read(65536):
                done.stdout += piece
    return done


@pytest.mark.parametrize("row", ["LG1", "LG2", "LG3", "LG4"])
async def test_nasty_text_is_shown_and_logged_as_text(tmp_path: Path, row: str) -> None:
    """Only visible characters reach the terminal, and each log has one event on each line."""
    texts = [text for name, text in NASTY.items() if name.startswith(row)]
    replies = [_say(text) for text in texts]
    replies += [f"```repl\nraise type('E', (Exception,), {{}})({text!a})\n```" for text in texts]
    replies.append(f"```repl\nFINAL({' '.join(texts)!a})\n```")
    done = await supdist(
        tmp_path,
        {
            "query": "q",
            "context": "c",
            "log_dir": "logs",
            "supervisor": {"handler": "scripted", "replies": replies},
            "worker": {"handler": "scripted", "replies": texts},
        },
    )
    assert done.returncode == 0, done.stderr
    shown = (done.stdout + done.stderr).decode()
    assert [character for character in shown if not allowed(character)] == []
    assert len(done.stdout) > len(" ".join(texts)) / 2
    kinds: list[str] = []
    for stream in ("supervisor", "worker", "repl"):
        raw = (tmp_path / f"logs/{stream}.jsonl").read_bytes()
        assert raw.isascii()
        assert all(byte >= 0x20 or byte == 0x0A for byte in raw)
        lines = raw.decode().splitlines()
        assert lines == raw.decode().removesuffix("\n").split("\n")
        kinds += [json.loads(line)["event"] for line in lines]
    wanted = {
        "run_start": 3,
        "run_end": 1,
        "supervisor": len(replies),
        "cell": len(replies),
        "worker": len(texts),
    }
    assert Counter(kinds) == wanted
    assert json.loads((tmp_path / "logs/supervisor.jsonl").read_text().splitlines()[-1])["event"] == "run_end"


def _say(text: str) -> str:
    """Return a turn with the text in its message, on both streams, in a prompt and in an answer."""
    code = f"import sys\ntext = {text!a}\nprint(text); print(text, file=sys.stderr)\nprint(worker(text))\n"
    code += "type('Shown', (), {'__repr__': lambda _: text, '_repr_html_': lambda _: text})()"
    return f"{text.encode('utf-8', 'replace').decode()}\n```repl\n{code}\n```"


async def test_lg1_a_value_is_shown_on_the_terminal_as_text(tmp_path: Path) -> None:
    text = "".join(NASTY.values())
    code = (
        f"text = {text!a}\ntype('Shown', (), {{'__repr__': lambda _: text, '_repr_html_': lambda _: text}})()"
    )
    done = await on_terminal(tmp_path, "exec", code)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert [character for character in shown if not allowed(character)] == []
    assert '{"event": "run_end", "answer": "forged"}' in shown, (
        "the text is there, its escape sequences are not"
    )


async def test_lg4_every_character_comes_through_or_is_replaced(arena: Arena) -> None:
    code = (
        "import sys\nfor n in range(0, 0x110000, 0x4000):\n  print(''.join(map(chr, range(n, n + 0x4000))))"
    )
    async with arena.open(timeout=10.0) as sandbox:
        result = await timed(sandbox, code, timeout=8, within=10)
    assert result.outcome is OK
    result.stdout.encode()
    assert "\\ud800" in result.stdout


async def test_lg6_a_key_is_sent_to_its_endpoint_and_nowhere_else(tmp_path: Path, canary: str) -> None:
    keys: list[str] = []

    def play(request: Request) -> Reply:
        keys.append(request.key or "")
        if request.model == "big":
            asked = sum(message["role"] == "assistant" for message in request.body["messages"])
            return Text(
                "```repl\nimport os\nprint(dict(os.environ), worker('x'))\n```"
                if not asked
                else "```repl\nFINAL(str(globals()))\n```"
            )
        return Text("answer")

    async with FakeOpenAI(play) as server:
        # Key and endpoint come from one place: a task file that names the endpoint gets no key.
        done = await supdist(
            tmp_path,
            {"query": "q", "context": "c", "log_dir": "logs"},
            OPENAI_API_KEY=canary, BASE_URL=server.base_url, SUPERVISOR_MODEL="big", WORKER_MODEL="small",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert canary in keys, "the endpoint did get it"
    assert canary.encode() not in done.stdout + done.stderr
    for path in (tmp_path / "logs").rglob("*"):
        assert canary.encode() not in path.read_bytes(), path.name
