"""Say what a mistyped option, command or value may have meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from ...sandbox_image.text import one_line, shorten

_MOST_SHOWN = 60
_MOST_NEAR = 3
_PROGRAM = "supdist-engine"
# Characters of a name that others may begin with.
_LEAST_TO_BEGIN = 5

# What other programs call an option.
_OTHER_NAMES = {
    "--model": ("--supervisor",),
    "--llm": ("--supervisor",),
    "--budget": ("--max-cost-usd",),
    "--max-budget-usd": ("--max-cost-usd",),
    "--max-turns": ("--max-iterations",),
    "--max-steps": ("--max-iterations",),
    "--timeout": ("--max-seconds", "--timeout"),
    "--output": ("--out", "--log-dir"),
}
_FILES = (".json", ".toml")

# pydantic's words, and the field's.
_WORDS = {
    "Input should be a valid integer, unable to parse string as an integer": "it is no whole number",
    "Input should be a valid number, unable to parse string as a number": "it is no number",
    "Input should be": "it must be",
}


def advice_on_option(name: str, options: Sequence[str], *, of_program: bool) -> str:
    """Return the message for an option that a command, or the program itself, does not have."""
    name = shown(name)
    # People write the names of Python: --max_cost_usd.
    typed = name.replace("_", "-").lower()
    near = [typed] if typed in options else [each for each in _OTHER_NAMES.get(typed, ()) if each in options]
    if not near and len(typed) >= _LEAST_TO_BEGIN:
        near = [each for each in options if each.startswith(f"{typed}-")]
    if not near and typed.startswith("--"):
        near = difflib.get_close_matches(typed, options, n=_MOST_NEAR, cutoff=0.7)
    if near:
        return f"No such option: {name}. Did you mean {' or '.join(near)}?"
    if of_program:
        return f"No such option: {name}. Options of a command come after its name: {_PROGRAM} COMMAND {name}"
    return f"No such option: {name}"


def advice_on_command(name: str, commands: Sequence[str]) -> str:
    """Return the message for a command that the program, or a group, does not have."""
    word = shown(name)
    if "run" in commands and name.endswith(_FILES) and os.path.lexists(name):
        return f"No such command '{word}'. To answer a task file: {_PROGRAM} run {word}"
    if "ask" in commands and os.path.lexists(name):
        return f"No such command '{word}'. To ask about a file: {_PROGRAM} ask {word} \"QUESTION\""
    near = difflib.get_close_matches(name.lower(), commands, n=_MOST_NEAR)
    if near:
        return f"No such command '{word}'. Did you mean {' or '.join(repr(each) for each in near)}?"
    return f"No such command '{word}'. Use one of {', '.join(commands)}"


def plain(message: str, choices: Sequence[str] = ()) -> str:
    """Return a library's message about a value in plain words, with the choice that is near."""
    message = message.removeprefix("Value error, ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    typed, is_choice, _ = message.removeprefix("'").partition("' is not one of ")
    near = difflib.get_close_matches(typed.lower(), choices, n=1) if is_choice else []
    return f"{message.rstrip('.')}. Did you mean {near[0]}?" if near else message


def shown(word: str) -> str:
    """Return a word that was typed, for a message."""
    return shorten(one_line(word), _MOST_SHOWN)
