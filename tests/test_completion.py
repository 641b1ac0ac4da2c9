"""What a shell completes, asked as a shell does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from process_support import COMMAND, clean_environment

from supdist.engine.cli.completion import install, script
from supdist.engine.cli.options import model_names
from supdist.engine.model_presets import BUILTIN, PRESETS

# The function of the script, called as readline does, without readline.
_ASK_BASH = """
set -u
compopt() { options+=" $*"; }
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} options=""
read -ra COMP_WORDS <<< "$2"
_supdist_engine supdist-engine
[[ ${#COMPREPLY[@]} == 0 ]] || printf '%s\\n' "${COMPREPLY[@]}"
echo "options:$options"
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder in which ``supdist-engine`` is the program under test."""
    path = tmp_path / "bin/supdist-engine"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    path.chmod(0o755)
    return path.parent


def completed(line: str, program: Path) -> tuple[list[str], str]:
    """Return the words that bash offers for a line, and what it was told to do."""
    source = program / "completion.bash"
    source.write_text(script("bash"))
    environment = clean_environment()
    done = subprocess.run(
        ["bash", "--norc", "-c", _ASK_BASH, "bash", source, line],
        check=True, capture_output=True, text=True, timeout=60, cwd=program,
        env=environment | {"PATH": f"{program}:{environment['PATH']}"},
    )  # fmt: skip
    assert done.stderr == ""
    *words, options = done.stdout.splitlines()
    return words, options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("supdist-engine ru", ["run"]),
        ("supdist-engine e", ["exec", "eval", "export"]),
        ("supdist-engine ask --max-co", ["--max-cost-usd"]),
        ('supdist-engine ask paper.md "What was found?" --bac', ["--backend"]),
        ("supdist-engine ask --backend ", ["process", "docker"]),
        ("supdist-engine eval --supervisor o", ["ollama/", "openai/", "openrouter/"]),
        # bash splits at =: only what stands behind it is replaced.
        ("supdist-engine eval --supervisor=lms", ["lmstudio/"]),
        ("supdist-engine eval --judge anth", ["anthropic/"]),
        ("supdist-engine eval --task ne", ["needle"]),
        ("supdist-engine broker k", ["keygen"]),
        # The command that may be left out.
        ("supdist-engine broker models.json --bi", ["--bind"]),
        ("supdist-engine broker serve models.json --bi", ["--bind"]),
        ("supdist-engine --install-completion f", ["fish"]),
        # Nothing of ours: bash completes files.
        ("supdist-engine ask pap", []),
        ("supdist-engine run task.json --log-dir lo", []),
        ("supdist-engine run -- --max", []),
        ("supdist-engine no-such-command --max", []),
    ],
)
def test_bash_completes_commands_options_and_values(program: Path, line: str, words: list[str]) -> None:
    assert completed(line, program)[0] == words


def test_the_name_of_a_model_follows_its_preset_without_a_space(program: Path) -> None:
    assert completed("supdist-engine run --worker vl", program) == (["vllm/"], "options: -o nospace")
    assert completed("supdist-engine run --worker buil", program) == (["builtin"], "options:")


def test_files_are_completed_where_nothing_else_is() -> None:
    assert "complete -o default -F _supdist_engine supdist-engine" in script("bash")
    assert "_files" in script("zsh")
    assert "__fish_complete_path" in script("fish")


def test_completion_imports_nothing_heavy() -> None:
    heavy = ("pydantic", "rich", "openai", "zmq", "msgspec", "supdist.handlers.openai")
    code = (
        "import atexit, sys\n"
        "say = lambda found: print(found, file=sys.stderr)\n"
        f"atexit.register(lambda: say([each for each in {heavy} if each in sys.modules]))\n"
        "sys.argv = ['supdist-engine', 'run', '--supervisor', '']\n"
        "from supdist.tools.cli import main; main()"
    )
    done = subprocess.run(
        [COMMAND[0], "-c", code], check=True, capture_output=True, text=True, timeout=60,
        env=clean_environment(_SUPDIST_ENGINE_COMPLETE="zsh"),
    )  # fmt: skip
    assert done.stderr.strip() == "[]"
    assert done.stdout.startswith("ollama/\t")


def test_all_presets_are_completed() -> None:
    assert model_names("") == [*(f"{preset}/" for preset in PRESETS), BUILTIN]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_writes_the_script_once_and_keeps_what_is_there(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR"):
        monkeypatch.delenv(variable, raising=False)
    start = tmp_path / f".{shell}rc"
    if shell != "fish":
        start.write_text("alias ll='ls -l'")
    said = install(shell)
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert install(shell) == said
    assert before == {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert script(shell) in before.values()
    if shell == "fish":
        assert list(before) == [tmp_path / ".config/fish/completions/supdist-engine.fish"]
    else:
        kept, ours = before[start].splitlines()
        assert kept == "alias ll='ls -l'"
        assert f'source "{tmp_path}/.local/share/supdist-engine/completion.{shell}"' in ours


def test_a_home_that_cannot_be_written_is_exit_2_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ".local").write_text("a file in the way")
    done = subprocess.run(
        [*COMMAND, "--install-completion", "bash"], check=False, capture_output=True, text=True, timeout=60,
        env={**clean_environment(HOME=str(tmp_path)), "XDG_DATA_HOME": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert "source <(supdist-engine --show-completion bash)" in done.stderr
    assert "Traceback" not in done.stderr
