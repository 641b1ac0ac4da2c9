"""The command as the user typed it, to type it again."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

PROGRAM = "supdist-engine"
# Options that a run which goes on does not take, each with a value. --save has written its file.
_REPLACED = ("--resume", "--log-dir", "--save")


def typed_command(asked: str | None = None) -> list[str]:
    """Return the words of this process's command.

    Args:
        asked: a question that was asked for on the terminal.
    """
    return [*_program(sys.argv[0]), *sys.argv[1:], *([] if asked is None else [asked])]


def resuming(command: Sequence[str], folder: str, raised: Mapping[str, str] | None = None) -> str:
    """Return the command that goes on with a run's folder, for a shell.

    Args:
        command: the words that began the run.
        folder: of its log.
        raised: options whose values replace those of the command.
    """
    raised = raised or {}
    replaced = {*_REPLACED, *raised}
    kept: list[str] = []
    words = iter(command)
    for word in words:
        # A value of --log-dir can be anything; what follows "--" is no option.
        if word == "--":
            kept += [word, *words]
        elif word in replaced:
            next(words, None)
        elif word.partition("=")[0] not in replaced:
            kept.append(word)
    place = kept.index("--") if "--" in kept else len(kept)
    limits = [word for option in raised.items() for word in option]
    return shlex.join([*kept[:place], *limits, "--resume", folder, *kept[place:]])


def _program(path: str) -> list[str]:
    if os.path.basename(path) == "__main__.py":
        return [sys.executable, "-m", "supdist.engine"]
    # A shell passes the whole path of a command that it found.
    with suppress(OSError):
        if (found := shutil.which(PROGRAM)) is not None and os.path.samefile(found, path):
            return [PROGRAM]
    return [path]
