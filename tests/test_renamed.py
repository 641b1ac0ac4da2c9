"""Names of version 0.1 work for one release: each leads to its new name and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from process_support import COMMAND
from pydantic import ValidationError
from results_support import record, write_run

from supdist.engine import TaskError
from supdist.tools.evals.analysis import analyse
from supdist.tools.evals.config import ExperimentConfig
from supdist.tools.evals.grid import read_grid
from supdist.tools.evals.records import read_records

RENAMED = [
    ("supdist.engine", "Engine", "supdist.engine", "SandboxRuntime"),
    ("supdist.engine.blocks", "code_blocks", "supdist.engine.supervisor.blocks", "code_blocks"),
    ("supdist.engine.models", "from_environment", "supdist.engine.model_specs", "from_environment"),
    ("supdist.engine.models", "OpenAISpec", "supdist.engine.model_specs", "OpenAISpec"),
    *(
        ("supdist.tools.fake_openai", name, "supdist.tools.testing.fake_openai", name)
        for name in ("FakeOpenAI", "Shape", "Stream", "read_replies", "Text", "Status")
    ),
]
STAYS = [
    ("supdist.engine.api", "RunLimits"),
    ("supdist.engine.cli", "app"),
    ("supdist.tools.cli", "main"),
    ("supdist.tools.replay", "main"),
    ("supdist.sandbox_image.protocol", "encode"),
]


@pytest.mark.parametrize(("module", "name", "new_module", "new_name"), RENAMED)
def test_an_old_name_is_the_new_one_and_warns(
    module: str, name: str, new_module: str, new_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module != "supdist.engine":
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.warns(DeprecationWarning, match=new_module.rpartition(".")[2]):
        found = getattr(import_module(module), name)
    assert found is getattr(import_module(new_module), new_name)


@pytest.mark.parametrize(("module", "name"), STAYS)
def test_a_name_that_others_rely_on_stays(module: str, name: str) -> None:
    assert hasattr(import_module(module), name)


def engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m supdist.engine``, which was the engine's commands alone."""
    command = [*COMMAND, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_the_module_has_all_commands_of_the_console_script() -> None:
    listed = engine("--help").stdout
    for command in ("run", "exec", "doctor", "eval", "grid", "analyze", "export", "benchmark", "broker"):
        assert f"\n  {command} " in listed
    assert "bench " not in listed.replace("benchmark", "")


def test_bench_is_eval_and_arm_is_strategy(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = engine(
        *("bench", "--task", "needle", "-T", "length=2k", "-n", "1", "--arm", "builtin", "--out", str(out))
    )
    assert done.returncode == 0, done.stderr
    assert "`bench` is now `eval`" in done.stderr
    assert "--arm is now --strategy" in done.stderr
    assert json.loads((out / "config.json").read_text())["strategy"] == "builtin"


def test_both_names_at_once_are_an_error(tmp_path: Path) -> None:
    done = engine("eval", "--strategy", "builtin", "--arm", "direct", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "old name of --strategy" in done.stderr
    (tmp_path / "grid.toml").write_text('arm = ["builtin"]\nstrategy = ["direct"]\n')
    with pytest.raises(TaskError, match="old name of strategy"):
        read_grid(tmp_path / "grid.toml", tmp_path)
    with pytest.raises(ValidationError, match="arm"):
        ExperimentConfig.model_validate({"arm": "direct", "strategy": "direct"})


def test_settings_records_and_grids_with_arm_are_read(tmp_path: Path) -> None:
    assert ExperimentConfig.model_validate({"arm": "direct"}).strategy == "direct"
    (tmp_path / "old.toml").write_text('arm = ["builtin", "direct"]\n[base]\ntask = "needle"\nn = 3\n')
    (tmp_path / "new.toml").write_text('strategy = ["builtin", "direct"]\n[base]\ntask = "needle"\nn = 3\n')
    old, new = (read_grid(tmp_path / name, tmp_path) for name in ("old.toml", "new.toml"))
    assert [each.folder for each in old] == [each.folder for each in new]
    # The folders that version 0.1 gave this grid: a grid that goes on finds them.
    assert [each.folder.name for each in old] == ["builtin_34e7e593", "direct_bfa22147"]
    (tmp_path / "base.toml").write_text('seed = [1]\n[base]\narm = "direct"\n')
    (each,) = read_grid(tmp_path / "base.toml", tmp_path)
    assert each.settings["strategy"] == "direct"


def test_a_folder_of_version_0_1_is_analysed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [record(0)], strategy="direct")
    for file in folder.glob("*.json*"):
        file.write_text(file.read_text().replace('"strategy"', '"arm"'))
    (found,) = read_records(folder)
    assert found.strategy == "supervisor"
    (figures,) = analyse([folder]).figures
    assert figures.strategy == "supervisor"
    (folder / "results.jsonl").write_text("")
    (figures,) = analyse([folder]).figures
    assert figures.strategy == "direct"
