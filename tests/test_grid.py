"""Grids: what is combined, where it goes, what is refused before anything runs, and what goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lookup_task import entry_point, python_path
from process_support import MODEL_VARIABLES, clean_environment
from results_support import failed, record, write_run
from support import REPOSITORY

from supdist.engine import TaskError
from supdist.engine.cli.signals import Stopped
from supdist.engine.model_specs import BuiltinSpec, ModelSpec, OpenAISpec, Role
from supdist.tools.evals.config import ExperimentConfig
from supdist.tools.evals.grid import Combination, check, read_grid, run_grid
from supdist.tools.evals.records import RECORDS, read_records

TWO_BY_TWO = """
supervisor = ["maker/Large A", "maker/large-b"]
worker = ["maker/small-a", "maker/small-b"]
[base]
task = "lookup"
n = 3
"""


def combinations(folder: Path, text: str, **overrides: object) -> list[Combination]:
    file = folder / "grid.toml"
    file.write_text(text)
    return read_grid(file, folder / "out", **overrides)


def folders(folder: Path, text: str, **overrides: object) -> list[str]:
    return [each.folder.name for each in combinations(folder, text, **overrides)]


def by_name(role: Role, name: str) -> ModelSpec:
    del role
    return OpenAISpec(handler="openai", model=name, base_url="http://127.0.0.1:9/v1")


# What is combined, and where it goes


def test_all_combinations_in_order_with_readable_names(tmp_path: Path) -> None:
    found = combinations(tmp_path, TWO_BY_TWO)
    assert [each.folder.name.rpartition("_")[0] for each in found] == [
        "large-a_small-a_supervisor",
        "large-a_small-b_supervisor",
        "large-b_small-a_supervisor",
        "large-b_small-b_supervisor",
    ]
    config = found[1].config(by_name)
    assert config.models[:2] == ("maker/Large A", "maker/small-b")
    assert (config.task, config.n) == ("lookup", 3)
    assert all(each.folder.parent == tmp_path / "out" for each in found)


def test_specifications_options_and_limits_are_combined(tmp_path: Path) -> None:
    text = """
        seed = [1, 2]
        [base]
        task = "lookup"
        [base.task_options]
        salt = "x"
        [base.limits]
        max_worker_calls = 9
        [[worker]]
        handler = "builtin"
        [[worker]]
        handler = "openai"
        model = "m"
        [task_options]
        size = [5, 6]
        [limits]
        max_iterations = [3]
    """
    configs = [each.config(by_name) for each in combinations(tmp_path, text)]
    assert len(configs) == 8
    assert {(each.seed, str(each.task_options["size"])) for each in configs} == {
        (1, "5"),
        (1, "6"),
        (2, "5"),
        (2, "6"),
    }
    assert all(each.task_options["salt"] == "x" for each in configs)
    assert {(each.limits.max_iterations, each.limits.max_worker_calls) for each in configs} == {(3, 9)}
    assert any(isinstance(each.worker, BuiltinSpec) for each in configs)
    assert "_seed-1_" in combinations(tmp_path, text)[0].folder.name
    assert "_size-5_" in combinations(tmp_path, text)[0].folder.name


def test_a_model_that_an_arm_does_not_use_makes_no_combination(tmp_path: Path) -> None:
    text = 'strategy = ["supervisor", "no-worker", "direct", "builtin"]' + TWO_BY_TWO
    strategies = [each.config(by_name).strategy for each in combinations(tmp_path, text)]
    assert {strategy: strategies.count(strategy) for strategy in strategies} == {
        "supervisor": 4,
        "no-worker": 2,
        "direct": 2,
        "builtin": 1,
    }


def test_what_decides_no_result_and_what_is_the_default_change_no_folder(tmp_path: Path) -> None:
    plain = folders(tmp_path, TWO_BY_TWO)
    assert folders(tmp_path, TWO_BY_TWO + "concurrency = 9") == plain
    assert folders(tmp_path, TWO_BY_TWO, concurrency=2) == plain
    assert folders(tmp_path, TWO_BY_TWO + "seed = 42") == plain
    assert not set(folders(tmp_path, TWO_BY_TWO, n=4)) & set(plain)


def test_an_axis_that_is_added_finds_what_was_run_before(tmp_path: Path) -> None:
    before = combinations(tmp_path, TWO_BY_TWO)
    for each in before:
        each.folder.mkdir(parents=True)
    after = combinations(tmp_path, "seed = [42, 43]" + TWO_BY_TWO)
    assert {each.folder for each in before} < {each.folder for each in after}
    assert len(after) == 8


def test_without_out_the_folder_is_the_file_s_name(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('strategy = ["builtin"]\n[base]\ntask = "lookup"')
    assert read_grid(tmp_path / "mine.toml")[0].folder.parent == Path("logs/mine")


# What is refused before anything runs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seeds = [1]", "seeds: unknown key; did you mean `seed`?"),
        ("seed = 1", "seed: a combined setting needs a list"),
        ("seed = []", "seed: a combined setting needs a list of at least one"),
        ("[base]\nstrategy = ['direct']", "base.strategy: a list of values to combine belongs above [base]"),
        ("seed = [1]\n[base]\nseed = 2", "seed: is in [base] and is combined"),
        ("[base.limits]\nmax_tokens = 5\n[limits]\nmax_tokens = [6]", "limits.max_tokens: is in [base]"),
        ("[base]\ntsak = 'x'", "tsak: unknown key; did you mean `task`?"),
        ("[limits]\nmax_iteration = [5]", "did you mean `max_iterations`?"),
        ("strategy = ['direct', 'indirect']", "strategy='indirect'"),
        ("seed = [1, 'x']", "seed='x'"),
        ("[[worker]]\nhandler = 'openai'\nmodle = 'x'", "did you mean `model`?"),
        ("base = 3", "base: must be a table"),
        ("out = 3", "out: must be the path"),
        ("seed = [", "cannot read the grid"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(TaskError) as caught:
        combinations(tmp_path, text)
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"none\.toml"):
        read_grid(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[base]\ntask = "nothing"', "there is no task 'nothing'"),
        ('[base]\ntask = "lookup"\n[task_options]\nsizes = [1]', "sizes"),
        ('strategy = ["no-worker"]\n[base]\ntask = "lookup"', "strategy no-worker"),
    ],
)
def test_what_could_not_be_run_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.setattr(sys, "path", [str(entry_point(tmp_path / "installed")), *sys.path])
    for key in MODEL_VARIABLES:
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(TaskError, match=complaint):
        check(combinations(tmp_path, text), by_name)


# Running


def test_one_that_fails_stops_no_other() -> None:
    ran: list[Path] = []

    def run(config: ExperimentConfig, folder: Path) -> int:
        ran.append(folder)
        if folder.name == "b":
            raise TaskError("no room")
        return 2 if folder.name == "c" else 0

    config = ExperimentConfig()
    outcomes = list(run_grid([(config, Path(name)) for name in "abc"], run))
    assert ran == [Path("a"), Path("b"), Path("c")]
    assert [(each.failed, each.error) for each in outcomes] == [(0, ""), (0, "TaskError: no room"), (2, "")]
    assert isinstance(outcomes[1].cause, TaskError)


def test_a_signal_stops_all() -> None:
    ran: list[Path] = []

    def run(config: ExperimentConfig, folder: Path) -> int:
        ran.append(folder)
        raise Stopped(signal.SIGINT)

    with pytest.raises(Stopped):
        list(run_grid([(ExperimentConfig(), Path(name)) for name in "ab"], run))
    assert ran == [Path("a")]


def test_finished_is_what_has_all_of_its_examples(tmp_path: Path) -> None:
    (each, *_) = combinations(tmp_path, TWO_BY_TWO)
    assert not each.is_finished
    write_run(each.folder, [record(0), record(1)], planned=3)
    assert not each.is_finished
    write_run(each.folder, [record(0), record(1), failed(2)], planned=3)
    assert each.is_finished


def grid(
    *arguments: str | Path, cwd: Path, script: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    program = [str(REPOSITORY / "tools/grid.py")] if script else ["-m", "supdist.tools.grid"]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment(PYTHONPATH=python_path(cwd), **env),
    )


SMALL_GRID = """
strategy = ["builtin", "direct"]
supervisor = ["builtin"]
seed = [1, 2]
[base]
task = "lookup"
n = 3
[base.task_options]
size = 5
"""


@pytest.mark.slow
def test_a_grid_runs_goes_on_and_ends_with_its_table(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL_GRID)
    listed = grid("small.toml", "--dry-run", cwd=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["new"] * 4
    assert not (tmp_path / "logs").exists()

    first = grid("small.toml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    runs = sorted((tmp_path / "logs/small").iterdir())
    assert [len(read_records(run)) for run in runs] == [3, 3, 3, 3]
    assert first.stdout.startswith("Supervisor ")
    assert all(run.name in first.stdout for run in runs)

    whole = (runs[0] / RECORDS).read_text().splitlines(keepends=True)
    (runs[0] / RECORDS).write_text(whole[0] + whole[1][:30])
    listed = grid("small.toml", "--dry-run", cwd=tmp_path, script=False)
    assert sorted(line.split()[0] for line in listed.stdout.splitlines()) == ["begun", *["finished"] * 3]
    times = [(run / RECORDS).stat().st_mtime_ns for run in runs]
    again = grid("small.toml", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before") == 3
    assert [(run / RECORDS).stat().st_mtime_ns == time for run, time in zip(runs, times, strict=True)] == [
        False,
        True,
        True,
        True,
    ]
    assert (runs[0] / RECORDS).read_text().startswith(whole[0])
    assert len(read_records(runs[0])) == 3


@pytest.mark.slow
def test_a_combination_that_cannot_run_is_told_and_the_others_have_their_table(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL_GRID)
    listed = grid("small.toml", "--dry-run", cwd=tmp_path).stdout.split()
    blocked = tmp_path / listed[1]
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file in the way")
    done = grid("small.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert f"{listed[1]} failed: LogError" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count(" lookup") == 0
    assert len([line for line in done.stdout.split("\n\n")[0].splitlines() if "builtin" in line]) == 3


def test_a_grid_whose_combinations_all_lack_a_sandbox_ends_as_every_command(tmp_path: Path) -> None:
    settings = SMALL_GRID.replace("direct", "supervisor") + '[base.sandbox]\nbackend = "docker"\n'
    (tmp_path / "small.toml").write_text(settings)
    done = grid("small.toml", cwd=tmp_path, DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("failed: SandboxUnavailable: ") == 4


@pytest.mark.parametrize("arguments", [["none.toml"], ["small.toml", "--out"]])
def test_a_wrong_command_is_a_line_and_a_code(tmp_path: Path, arguments: list[str]) -> None:
    done = grid(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_the_reference_grid_is_two_by_two_and_passes_its_arguments_on(tmp_path: Path) -> None:
    """From anywhere, without a key: nothing is run."""
    for arguments in ([], ["-n", "2"]):
        done = subprocess.run(
            ["bash", str(REPOSITORY / "tools/ib_reproduce.sh"), "--dry-run", *arguments],
            check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHON": sys.executable},
        )  # fmt: skip
        lines = done.stdout.splitlines()
        assert len(lines) == 4
        assert all(line.startswith("new       logs/qasper/") for line in lines)
        names = [Path(line.split()[1]).name.split("_")[:2] for line in lines]
        assert names[0] == ["qwen3-235b-a22b-instruct-2507-tput", "meta-llama-3.1-8b-instruct-turbo"]
        assert names[3] == ["llama-3.3-70b-instruct-turbo", "qwen2.5-7b-instruct-turbo"]


def test_the_example_of_the_readme_is_a_grid(tmp_path: Path) -> None:
    readme = (REPOSITORY / "tools/README.md").read_text(encoding="utf-8")
    _, _, text = readme.partition("```toml\n")
    assert len(combinations(tmp_path, text.partition("```")[0])) == 8
