"""Complete what is typed in a shell.

The script of a shell runs the program with the words before the cursor as arguments, and the variable
``_SUPDIST_ENGINE_COMPLETE``. It gets a line for each possible word: the word, a tab, and what it means.
Without a line, the shell completes the names of files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import TaskError

_MOST_CHARS = 60
_COMMENT = "# supdist-engine: completion"

# bash splits words at = and :, so the words are joined and taken from the line. A preset ends in /, and the
# name of a model follows at once.
_BASH = """\
_supdist_engine() {
    local line=${COMP_LINE:0:COMP_POINT} reply words IFS=$' \\t\\n'
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    mapfile -t reply < <(_SUPDIST_ENGINE_COMPLETE=bash "$1" "${words[@]:1}" 2>/dev/null)
    COMPREPLY=("${reply[@]%%$'\\t'*}")
    local current=${words[-1]}
    # What bash replaces is only what stands behind the last = or :
    [[ $current == *[=:]* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*[=:]}"}"}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == */ ]] && compopt -o nospace
    return 0
}
complete -o default -F _supdist_engine supdist-engine
"""
_ZSH = """\
#compdef supdist-engine
_supdist_engine() {
    local -a found words_before
    words_before=("${(@Q)words[2,CURRENT]}")
    local line word
    while IFS= read -r line; do
        word=${line%%$'\\t'*}
        found+=("${word//:/\\\\:}:${line#*$'\\t'}")
    done < <(_SUPDIST_ENGINE_COMPLETE=zsh ${(Q)words[1]} "${words_before[@]}" 2>/dev/null)
    if (( ${#found} )); then
        _describe -V supdist-engine found -S ''
    else
        _files
    fi
}
if [[ ${funcstack[1]} == _supdist_engine ]]; then
    _supdist_engine "$@"
else
    compdef _supdist_engine supdist-engine
fi
"""
_FISH = """\
function __supdist_engine
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (_SUPDIST_ENGINE_COMPLETE=fish $words[1] $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        string join \\n -- $found
    else
        __fish_complete_path "$current"
    end
end
complete -c supdist-engine -f -a '(__supdist_engine)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """Return the script of a shell."""
    return _SCRIPTS[shell]


def install(shell: str) -> str:
    """Write the script where the shell reads it, and return what was done.

    Raises:
        TaskError: it cannot be written.
    """
    home = Path.home()
    try:
        if shell == "fish":
            config = os.environ.get("XDG_CONFIG_HOME") or home / ".config"
            return f"{_write(Path(config) / 'fish/completions/supdist-engine.fish', _FISH)}: open a new shell"
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "supdist-engine"
        path = _write(data / f"completion.{shell}", _SCRIPTS[shell])
        start = Path(os.environ.get("ZDOTDIR") or home) / ".zshrc" if shell == "zsh" else home / ".bashrc"
        begin = "autoload -Uz compinit && compinit -C; " if shell == "zsh" else ""
        _append(start, f'{begin}source "{path}"  {_COMMENT}')
    except OSError as error:
        raise TaskError(
            f"completion for {shell} cannot be written: {error.filename}: {error.strerror}; "
            f"to use it in one shell: source <(supdist-engine --show-completion {shell})"
        ) from error
    return f"{path}, read by {start}: open a new shell"


def complete(app: typer.Typer) -> None:
    """Print what the last argument can become."""
    *before, current = sys.argv[1:] or [""]
    for word, meaning in _possible(typer.main.get_command(app), before, current):
        print(f"{word}\t{_short(meaning)}")


def _possible(command: Any, before: Sequence[str], current: str) -> Iterator[tuple[str, str]]:
    context, pending = typer.Context(command, info_name="supdist-engine", resilient_parsing=True), None
    is_value = False
    for word in before:
        if pending is not None:
            pending = None
        elif word == "--":
            is_value = True
        elif word.startswith("-") and not is_value:
            pending = None if "=" in word else _option_with_value(context, word)
        elif word in getattr(context.command, "commands", {}):
            context = _below(context, word)
        elif (default := getattr(context.command, "default", None)) is not None:
            # `broker models.json` means `broker serve models.json`.
            context = _below(context, default)
    name, equals, value = current.partition("=")
    if pending is None and equals and (pending := _option_with_value(context, name)) is not None:
        return _values(context, pending, value, f"{name}=")
    if pending is not None:
        return _values(context, pending, current)
    if current.startswith("-") and not is_value:
        return _options(context, current)
    return _commands(context, current)


def _below(context: Any, name: str) -> Any:
    command = context.command.commands[name]
    return typer.Context(command, info_name=name, parent=context, resilient_parsing=True)


def _option_with_value(context: Any, word: str) -> Any:
    for each in context.command.get_params(context):
        if word in each.opts and each.param_type_name == "option" and not (each.is_flag or each.count):
            return each
    return None


def _values(context: Any, option: Any, current: str, start: str = "") -> Iterator[tuple[str, str]]:
    for each in option.shell_complete(context, current):
        if each.type == "plain":
            yield f"{start}{each.value}", each.help or ""


def _options(context: Any, current: str) -> Iterator[tuple[str, str]]:
    for each in context.command.get_params(context):
        if each.param_type_name == "option" and not each.hidden:
            # One name: the short one only where there is no other.
            names = [name for name in (*each.opts, *each.secondary_opts) if name.startswith(current)]
            for name in [name for name in names if name.startswith("--")] or names:
                yield name, each.help or ""


def _commands(context: Any, current: str) -> Iterator[tuple[str, str]]:
    for name, each in getattr(context.command, "commands", {}).items():
        if name.startswith(current) and not each.hidden:
            yield name, each.help or ""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARS else f"{line[: _MOST_CHARS - 1]}…"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _append(path: Path, line: str) -> None:
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    if line in text.splitlines():
        return
    # An older line of ours named another folder.
    kept = [each for each in text.splitlines() if not each.endswith(_COMMENT)]
    new = "\n".join([*kept, line, ""])
    path.write_text(new, encoding="utf-8", errors="surrogateescape")
