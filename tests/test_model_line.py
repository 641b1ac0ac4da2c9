"""The first line of a run: which models answer, and where."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from process_support import clean_environment

from supdist.engine import RemoteHandler
from supdist.engine.cli.model_line import models_line
from supdist.handlers import (
    BuiltinSupervisor,
    BuiltinWorker,
    Completion,
    Message,
    ModelHandler,
    OpenAIHandler,
    ScriptedHandler,
    VLLMHandler,
)


class Own(ModelHandler):
    model = "own\x1b[2J"

    def chat(self, messages: Sequence[Message]) -> Completion:
        return Completion("")


def at(url: Any) -> OpenAIHandler:
    return OpenAIHandler("m", base_url=url)


@pytest.mark.parametrize(
    ("supervisor", "worker", "line"),
    [
        (OpenAIHandler("gpt-4.1", base_url="https://api.openai.com/v1"), BuiltinWorker(),
            "supervisor gpt-4.1 @ api.openai.com · worker builtin (no language model)"),
        (BuiltinSupervisor(), BuiltinWorker(), "supervisor and worker builtin (no language model)"),
        (at("http://localhost:11434/v1"), at("http://localhost:11434/v1"),
            "supervisor and worker m @ localhost:11434"),
        (at("http://localhost:8000/v1"), at("https://user:secret@box/v1?key=secret"),
            "supervisor m @ localhost:8000 · worker m @ box"),
        (at(["http://a:1/v1", "http://b:1/v1"]), None, "supervisor m @ a:1, b:1 · worker none"),
        (at([f"http://h{n}:1/v1" for n in range(5)]), None,
            "supervisor m @ h0:1, h1:1, h2:1, 2 more · worker none"),
        (VLLMHandler("Qwen/Qwen3-8B"), RemoteHandler("worker", "ipc:///run/models"),
            "supervisor Qwen/Qwen3-8B @ vLLM in this process · worker @ model server ipc:///run/models"),
        (ScriptedHandler([]), Own(), "supervisor scripted (fixed replies) · worker own\\x1b[2J (Own)"),
    ],
)  # fmt: skip
def test_the_line_is_true_for_each_role(
    supervisor: ModelHandler, worker: ModelHandler | None, line: str
) -> None:
    assert models_line({"supervisor": supervisor, "worker": worker}) == line


@pytest.mark.parametrize("command", ["run", "ask", "eval"])
def test_a_command_begins_with_the_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "c.md").write_text("Ann did it.")
    (tmp_path / "task.json").write_text('{"query": "Who did it?", "context": "Ann did it."}')
    words = {
        "run": ["task.json"],
        "ask": ["c.md", "Who did it?"],
        "eval": ["--task", "needle", "-T", "length=2k", "-n", "1", "--judge", "none"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "supdist.tools.cli", command, *words, "--worker", "builtin"],
        check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean_environment(),
    )  # fmt: skip
    assert done.stderr.splitlines()[0] == "supervisor and worker builtin (no language model)"
