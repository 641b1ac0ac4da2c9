"""What the README says is what is run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from process_support import COMMAND, clean_environment
from support import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SET_UP, RUN, MEASURE, BROKER = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_two_commands_as_they_stand() -> None:
    ci = (REPOSITORY / "scripts/ci").read_text(encoding="utf-8")
    commands = SET_UP.strip().splitlines()
    assert len(commands) == 2
    assert "README.md" in ci, "CI reads them from the README itself"


@pytest.mark.parametrize("command", RUN.strip().splitlines())
def test_every_other_command_works(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
    module = ["-m", "supdist.engine"] if program.endswith("supdist-engine") else []
    arguments = [str(REPOSITORY / word) if word.startswith("tasks/") else word for word in arguments]
    done = subprocess.run(
        [sys.executable, *module, *arguments],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_measured_table_is_what_comes_out(tmp_path: Path) -> None:
    """Figure by figure: the texts, the sample and the builtin pair are the same on every machine."""
    (table,) = re.findall(r"```\n(Supervisor .*?)```", README, re.DOTALL)
    shown: list[str] = []
    for command in MEASURE.strip().splitlines():
        arguments = shlex.split(command)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "supdist.tools.cli", *arguments],
            check=True, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=clean_environment(),
        )  # fmt: skip
        if arguments[0] == "analyze":
            shown.append(done.stdout)
    assert "\n".join(shown) == table


@pytest.mark.slow
def test_the_broker_serves_as_it_is_shown(tmp_path: Path) -> None:
    """With this machine as both machines, and a port that is free."""
    keygen, serve, run = [[*COMMAND, *shlex.split(command)[1:]] for command in BROKER.strip().splitlines()]
    (tmp_path / "models.json").write_text('{"worker": {"handler": "builtin"}}')
    quickstart = REPOSITORY / "tasks/examples/quickstart"
    subprocess.run(keygen, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    shutil.copytree(tmp_path / "keys/clients/laptop", tmp_path / "laptop")
    serve[serve.index("tcp://0.0.0.0:5555")] = "tcp://127.0.0.1:*"
    with subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            run[run.index("tcp://gpu-box:5555")] = service.stdout.readline().strip()
            run[run.index("task.json")] = str(quickstart / "task.json")
            done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
        finally:
            service.terminate()
    assert "fibre-reinforced polymer" in done.stdout
    assert service.returncode == 0


def test_the_python_of_the_readme_works() -> None:
    whole, alone, tools = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(whole, "README", "exec")
    for code, output in ((alone, "6\n\ntimeout\n"), (tools, "AL\n\n")):
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
        )
        assert done.stdout == output


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_task_of_the_readme_is_a_task(tmp_path: Path) -> None:
    from supdist.engine.taskfile import read_task

    (task,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    (tmp_path / "task.json").write_text(task)
    assert read_task(tmp_path / "task.json").limits.max_iterations == 15


def test_the_questions_of_the_readme_can_be_asked(tmp_path: Path) -> None:
    """As a dry run: the models of the README are not here."""
    (commands,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for name in ("paper.md", "notes.txt"):
        (tmp_path / name).write_text("Ann found it.")
    program = f"{shlex.quote(sys.executable)} -m supdist.engine ask --dry-run"
    for command in commands.strip().splitlines():
        done = subprocess.run(
            ["sh", "-c", command.replace("supdist-engine ask", program)],
            check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=clean_environment(),
        )  # fmt: skip
        assert "Nothing was sent." in done.stdout
