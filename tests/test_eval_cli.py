"""The command ``eval``, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from eval_support import rows
from lookup_task import python_path
from process_support import clean_environment
from support import REPOSITORY

from supdist.engine import TaskError
from supdist.engine.model_specs import OpenAISpec
from supdist.tools.evals.command import Place, eval_with
from supdist.tools.evals.config import ExperimentConfig, resolve
from supdist.tools.evals.records import CONFIG, read_records

PROGRAMS = {
    "script": [str(REPOSITORY / "tools/run_experiment.py")],
    "module": ["-m", "supdist.tools.run_experiment"],
    "console": ["-c", "from supdist.tools.cli import main; main()", "eval"],
}


def evaluate(
    *arguments: str, cwd: Path, program: str = "script", **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *PROGRAMS[program], *arguments],
        check=False, cwd=cwd, capture_output=True, text=True, timeout=60,
        env=clean_environment(PYTHONPATH=python_path(cwd), **environ),
    )  # fmt: skip


def test_without_a_key_the_builtin_pair_runs_and_says_so(tmp_path: Path) -> None:
    done = evaluate("--task", "lookup", "-n", "3", "-T", "size=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "is not a language model" in done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    assert folder.parent == tmp_path / "logs/lookup"
    assert len(read_records(folder)) == len(rows(folder)) == 3
    settings = json.loads((folder / CONFIG).read_text())
    assert (settings["n"], settings["seed"], settings["task_options"]) == (3, 42, {"size": 5})
    again = evaluate("--resume", str(folder), "-n", "4", cwd=tmp_path)
    assert again.returncode == 2
    assert "n: 3 before, 4 now" in again.stderr


@pytest.mark.parametrize("program", ["module", "console"])
def test_every_way_to_it_has_the_same_flags(program: str, tmp_path: Path) -> None:
    def options(name: str) -> str:
        return evaluate("--help", cwd=tmp_path, program=name).stdout.partition("Task:")[2]

    assert "--supervisor-model" in options("script")
    assert options(program) == options("script")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "nope"], "there is no task 'nope'"),
        (["--task", "lookup", "-T", "sise=1"], "sise"),
        (["--task", "lookup", "-T", "size"], "KEY=VALUE"),
        (["--task", "lookup", "--strategy", "no-worker"], "no-worker"),
        (["--task", "lookup", "--judge-model", "m"], "no endpoint"),
        (["--resume", "nowhere"], "config.json"),
        (["--retry-failed"], "--resume"),
    ],
)
def test_a_mistake_is_said_in_a_line_and_leaves_nothing(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    done = evaluate(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("logs/lookup/*"))


def test_a_missing_key_is_exit_5_and_json_is_the_result_alone(tmp_path: Path) -> None:
    ask = ["--task", "lookup", "-n", "1", "--json"]
    done = evaluate(*ask, "--out", "a", cwd=tmp_path, OPENAI_API_KEY=" ", BASE_URL="https://api.openai.com/v1",
                 SUPERVISOR_MODEL="m", WORKER_MODEL="m")  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "OPENAI_API_KEY" in done.stderr
    done = evaluate(*ask, "--out", "b", "--supervisor-model", "builtin", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert (done.stderr, result["examples"], result["folder"]) == ("", 1, "b")


def test_the_tasks_are_listed(tmp_path: Path) -> None:
    assert "lookup" in evaluate("--list-tasks", cwd=tmp_path).stdout.splitlines()


def test_the_environment_names_models_and_the_judge_is_greedy() -> None:
    found = resolve(ExperimentConfig(), {"TOGETHER_API_KEY": "secret"})
    assert isinstance(found.supervisor, OpenAISpec)
    assert isinstance(found.judge, OpenAISpec)
    assert found.models == (
        "meta-llama/Llama-3.3-70B-Instruct-Turbo",
        "meta-llama/Llama-3.1-8B-Instruct-Turbo",
        "Qwen/Qwen3-235B-A22B-Instruct-2507-tput",
    )
    assert (found.judge.temperature, found.judge.base_url) == (0, found.supervisor.base_url)
    assert "secret" not in found.model_dump_json()
    assert resolve(ExperimentConfig(), {}).judge == "none"
    direct = resolve(ExperimentConfig(strategy="direct"), {"TOGETHER_API_KEY": "secret"})
    assert direct.worker is None


def test_retry_failed_needs_a_folder() -> None:
    with pytest.raises(TaskError, match="--resume"):
        eval_with({}, None, Place(None, None), retry_failed=True, as_json=False)


def test_list_tasks_prints_each_option_with_its_default(tmp_path: Path) -> None:
    text = evaluate("--list-tasks", cwd=tmp_path).stdout
    needle = text.partition("\nneedle\n")[2].partition("\n\n")[0]
    assert "  -T length=INT (default 32000)\n" in needle
    assert "One of single, multi-key," in needle
    assert "-T path=PATH (required)" in text.partition("jsonl\n")[2]
    assert max(map(len, text.splitlines())) <= 80
    listed = json.loads(evaluate("--list-tasks", "--json", cwd=tmp_path).stdout)
    found = next(each for each in listed if each["name"] == "needle")
    assert {"name": "seed", "type": "int", "default": "0"}.items() <= found["options"][3].items()


def test_dry_run_names_models_keys_and_the_most_it_may_cost_and_sends_nothing(tmp_path: Path) -> None:
    priced = '{"handler": "openai", "model": "m", "price": {"input_usd": 1, "output_usd": 2}}'
    (tmp_path / "c.json").write_text(f'{{"task": "needle", "n": 5, "supervisor": {priced}}}')
    done = evaluate("--config", "c.json", "--max-tokens", "1000000", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "task: needle, strategy supervisor\nquestions: 5 at most\n" in done.stdout
    assert (
        "supervisor: m @ api.openai.com\n  key: OPENAI_API_KEY (missing)\n  price: $1 in, $2 out"
        in done.stdout
    )
    assert "worker: builtin (no language model)\n  key: none\n" in done.stdout
    assert "cost: at most $10.0000, $2.0000 for each question\nNothing was sent.\n" in done.stdout
    assert not (tmp_path / "logs").exists()
    assert "cost: nothing\n" in evaluate("--task", "needle", "--dry-run", cwd=tmp_path).stdout
    unknown = evaluate("--task", "needle", "--supervisor", "ollama/x", "--dry-run", cwd=tmp_path)
    assert "cost: no bound is known: give --max-cost-usd, for each question\n" in unknown.stdout
    assert evaluate("--task", "nedle", "--dry-run", cwd=tmp_path).returncode == 2
