"""Help pages: groups, examples that work as typed, narrow terminals, and mistakes with a near name."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from process_support import COMMAND, clean_environment, ended, started
from support import REPOSITORY

from supdist.engine.cli.command import Command, Group
from supdist.tools.commands import app
from supdist.tools.testing.fake_openai import FakeOpenAI
from supdist.tools.testing.replies import Text

REPORT = (REPOSITORY / "tasks/examples/quickstart/report.md").read_text(encoding="utf-8")
# What serves until it is ended, and the line that says that it does.
SERVERS = {"mcp --http": "bearer token", "broker": "serving"}


def commands(command: Any = None, name: str = "supdist-engine") -> Iterator[tuple[str, Any]]:
    """Return every visible command by its whole name."""
    command = typer.main.get_command(app) if command is None else command
    yield name, command
    for word, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from commands(each, f"{name} {word}")


NAMES = dict(commands())
EXAMPLES = list(dict.fromkeys(line for command in NAMES.values() for line in command.examples))


def help_of(name: str, columns: int) -> str:
    done = subprocess.run(
        [*COMMAND, *name.split()[1:], "--help"], check=True, capture_output=True, text=True, timeout=60,
        env=clean_environment(COLUMNS=str(columns)),
    )  # fmt: skip
    return done.stdout


def test_every_command_has_examples_and_the_helpful_class() -> None:
    assert all(command.examples for command in NAMES.values())
    assert all(isinstance(command, Command | Group) for command in NAMES.values())
    for name, command in NAMES.items():
        assert all(name.split()[1] in line for line in command.examples if " " in name)


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("name", ["supdist-engine", "supdist-engine ask", "supdist-engine eval"])
def test_no_line_is_wider_than_the_terminal(name: str, columns: int) -> None:
    lines = help_of(name, columns).splitlines()
    # One word may be longer than a line.
    wide = [line for line in lines if len(line) > columns and len(line.split()) > 2]
    assert wide == []


def test_options_stand_in_groups_with_examples_at_the_end() -> None:
    page = help_of("supdist-engine ask", 80)
    titles = re.findall(r"^(\w[\w ]+):$", page, flags=re.MULTILINE)
    assert titles == [
        "Arguments", "Models", "Permissions", "Limits", "Sandbox", "Logs and cache", "Options", "Examples",
    ]  # fmt: skip
    limits = page.partition("\nLimits:\n")[2].partition("\n\n")[0]
    assert "--max-cost-usd NUMBER" in limits
    assert "--backend" not in limits
    assert page.rstrip().splitlines()[-1].startswith("  ")
    titles = re.findall(r"^(\w[\w ]+):$", help_of("supdist-engine", 80), flags=re.MULTILINE)
    assert titles == ["Ask", "Sandbox", "Set up", "Measure", "Options", "Examples"]


def test_the_values_of_an_option_are_in_plain_words() -> None:
    page = help_of("supdist-engine eval", 80)
    assert "[1 to 10000]" in page
    assert "[at least 1]" in page
    assert not re.search(r"<(int|str|float|path)|x>=", page)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the files that the examples name."""
    files = {
        "paper.md": REPORT,
        "notes/monday.md": "The deck was closed on Monday.",
        "task.json": json.dumps({"query": "How long must the new deck last?", "context_file": "paper.md"}),
        "models.json": json.dumps({"worker": {"handler": "scripted", "replies": ["x"]}}),
        "tasks/tool.py": "def tool(x: int) -> int:\n    return x\n",
        "grid.toml": 'strategy = ["supervisor", "builtin"]\n[base]\ntask = "needle"\nn = 1\n'
        "[task_options]\nlength = [2000]\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@asynccontextmanager
async def environment(line: str, place: Path) -> AsyncGenerator[dict[str, str]]:
    program = place / "bin/supdist-engine"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    own = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(place),
        "XDG_CONFIG_HOME": str(place / "config"),
    }
    if not re.search("ollama|openai", line) or "--dry-run" in line:
        yield clean_environment(**own)
        return
    async with FakeOpenAI(lambda request: Text("```repl\nFINAL('sixty years')\n```")) as server:
        at = {"OLLAMA_HOST": server.base_url, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "k"}
        yield clean_environment(**own, **at, SUPERVISOR_MODEL="m", WORKER_MODEL="m")


EVAL = "supdist-engine eval --task needle -T length=2000 -n 2"


async def prepare(line: str, place: Path, env: dict[str, str]) -> None:
    """Do what must have been done before the example."""
    if "engine log" in line:
        await done("supdist-engine run task.json --log-dir logs/my_run", place, env)
        await done("supdist-engine run task.json", place, env)
    elif "logs" in line and "--out logs" not in line:
        await done(f"{EVAL} --strategy builtin --out logs/needle", place, env)
    if "--format preference" in line:
        await done(f"{EVAL} --strategy direct --window 4000 --out logs/direct", place, env)
    if "--curve-keys" in line:
        await done("supdist-engine broker keygen keys", place, env)
    if "trust remove" in line:
        await done("supdist-engine trust host gpu-box:8000 --key OPENAI_API_KEY", place, env)
    if "--save" in line:
        (place / "task.json").unlink()


async def done(line: str, place: Path, env: dict[str, str]) -> tuple[str, str]:
    async with started("bash", "-c", line, cwd=place, env=env) as process:
        assert process.stdin is not None
        process.stdin.close()
        status, output, errors = await ended(process, 240)
    assert status == 0, errors
    return output, errors


@pytest.mark.parametrize("line", [line for line in EXAMPLES if " image " not in line])
async def test_an_example_works_as_typed(line: str, place: Path) -> None:
    async with environment(line, place) as env:
        await prepare(line, place, env)
        said = next((said for words, said in SERVERS.items() if words in line and "keygen" not in line), None)
        if said is None:
            await done(line, place, env)
        else:
            await serves(line.replace("/tmp/", f"{place}/").replace("5555", "*"), said, place, env)
    if "--save" in line:
        assert json.loads((place / "task.json").read_text())["context_file"] == "paper.md"


async def serves(line: str, said: str, place: Path, env: dict[str, str]) -> None:
    # Port 8000 may be taken.
    words = shlex.split(line.replace(" 8000", ""))
    async with started(str(place / "bin/supdist-engine"), *words[1:], cwd=place, env=env) as process:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while said not in (await process.stderr.readline()).decode():
                assert process.returncode is None
        process.send_signal(signal.SIGINT)
        status, _, errors = await ended(process)
    assert status in (0, 130), errors


@pytest.mark.docker
@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize("line", [line for line in EXAMPLES if " image check" in line])
async def test_an_example_with_containers_works_as_typed(line: str, place: Path) -> None:
    async with environment(line, place) as env:
        await done(line, place, env)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run t.json --max-cost 1", "No such option: --max-cost. Did you mean --max-cost-usd?"),
        ("run t.json --max_cost_usd 1", "No such option: --max_cost_usd. Did you mean --max-cost-usd?"),
        ("ask a b --model x", "No such option: --model. Did you mean --supervisor?"),
        ("eval --max-turns 3", "No such option: --max-turns. Did you mean --max-iterations?"),
        ("--max-tokens 3 run t.json", "come after its name: supdist-engine COMMAND --max-tokens"),
        ("rn t.json", "No such command 'rn'. Did you mean 'run'?"),
        ("zzz", "No such command 'zzz'. Use one of ask, run,"),
        ("task.json", "To answer a task file: supdist-engine run task.json"),
        ("paper.md", 'To ask about a file: supdist-engine ask paper.md "QUESTION"'),
        ("broker keygn keys", "No such command 'keygn'. Did you mean 'keygen'?"),
        ("trust hots gpu --key K", "No such command 'hots'. Did you mean 'host'?"),
        ("run t.json --backend dcker", "'dcker' is not one of 'process', 'docker'. Did you mean docker?"),
        ("eval --strategy none", "is not one of 'supervisor', 'no-worker', 'direct', 'builtin'"),
        ("run t.json --max-tokens many", "'--max-tokens': it is no whole number"),
        ("run t.json --max-cost-usd cheap", "'--max-cost-usd': it is no number"),
        ("run t.json --supervisor olama/x", "did you mean ollama/x"),
        ("eval --task nedle", "did you mean 'needle'"),
        ("--show-completion csh", "'csh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_a_mistake_is_exit_2_and_names_what_is_near(place: Path, words: str, message: str) -> None:
    (place / "t.json").write_text((place / "task.json").read_text())
    done = subprocess.run(
        [*COMMAND, *words.split()], check=False, cwd=place, capture_output=True, text=True, timeout=60,
        env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
