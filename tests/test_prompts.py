from __future__ import annotations

from pathlib import Path

import pytest

from supdist.engine import Prompts, TaskError


def test_a_folder_replaces_the_texts_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief. $worker_ctx_k")
    prompts = Prompts.from_directory(tmp_path)
    assert prompts.system == "Be brief. $worker_ctx_k"
    assert prompts.first == Prompts().first


def test_a_misspelt_prompt_and_a_missing_folder_are_errors_that_say_so(tmp_path: Path) -> None:
    (tmp_path / "sytem.txt").write_text("")
    with pytest.raises(TaskError, match=r"sytem\.txt is no prompt; there are best_answer"):
        Prompts.from_directory(tmp_path)
    with pytest.raises(TaskError, match="does not exist"):
        Prompts.from_directory(tmp_path / "none")


def test_the_system_prompt_teaches_the_primitives() -> None:
    for name in (
        "context",
        "query",
        "worker(prompt)",
        "worker_batch(prompts)",
        "FINAL(answer)",
        "return_errors",
        "repl",
    ):
        assert name in Prompts().system
