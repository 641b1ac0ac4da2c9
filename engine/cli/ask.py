"""The command ``supdist-engine ask``: a question about files, without a task file."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import RawHtmlOption, takes
from .permissions import Allowed
from .run_flags import RunFlags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..documents import Context

STDIN = "-"
_PROGRAM = "supdist-engine ask"
_PATTERN = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskFlags(RunFlags):
    """The arguments of ``ask``."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE... QUESTION",
            help="Files, folders, patterns ('docs/*.md'), or - for stdin; last the question, in quotes.",
            show_default=False,
        ),
    ] = None
    raw_html: RawHtmlOption = False
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="TASK.json",
            help="Write the question, the files and these options as a task file, for `supdist-engine run`; "
            "then answer.",
        ),
    ] = None


@takes(AskFlags)
def ask(flags: AskFlags) -> None:
    """Answer a question about files. The answer goes to stdout, progress to stderr."""
    from ..taskfile import TaskFile
    from .answering import answer
    from .models import Models
    from .work import Work

    files, question = split(flags.words or [])
    asked = None
    if question is None:
        question = asked = _ask_for_question(files)
    allowed = Allowed(env_file=flags.env_file, trust_endpoint=flags.trust_endpoint)
    environment = allowed.environment()
    permissions = allowed.bind(None, environment, ask=not flags.as_json, is_own=True)
    # The context is loaded apart: this text only fills the place.
    task = flags.applied_to(TaskFile(query=question, context="", raw_html=flags.raw_html))
    work = Work(task, flags, Models.of(flags, environment), permissions, asked)
    if flags.save is not None:
        from .saving import save

        save(flags.save, work, files, environment)
    answer(work, lambda: _texts(files, raw_html=flags.raw_html))


async def _texts(files: Sequence[str], *, raw_html: bool) -> Context:
    """Read the files.

    Raises:
        TaskError: they cannot be read, or none has text.
    """
    from ..errors import TaskError
    from .documents import load

    found = await load(files, raw_html=raw_html)
    texts = found.value.values() if isinstance(found.value, dict) and len(files) > 1 else [found.value]
    if all(isinstance(each, str) and not each.strip() for each in texts):
        names = ", ".join(map(_shown, files))
        raise TaskError(f"{names} {'has' if len(files) == 1 else 'have'} no text")
    return found


def split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the files, and the question if there is one.

    Raises:
        TaskError: a file is missing, or the question is not the last word.
    """
    from ..errors import TaskError

    if not words:
        raise TaskError(f'name a file and ask a question: {_PROGRAM} paper.md "What was found?"')
    missing = next((place for place, word in enumerate(words) if not _is_file(word)), None)
    if missing is None:
        return list(words), None
    if missing == len(words) - 1:
        if missing == 0 or not words[-1].strip():
            raise TaskError(_no_file(words[-1]))
        return list(words[:-1]), words[-1]
    raise TaskError(_not_a_file(words, missing))


def _is_file(word: str) -> bool:
    import glob
    import os

    from ..documents.files import closed_folder

    # A question is no path: it may be too long for one, or hold a null character.
    try:
        if word == STDIN or os.path.lexists(word):
            return True
        os.lstat(word)
    except PermissionError:
        # Reading it names the cause. A question may begin with a path.
        return _looks_like_a_path(word)
    except OSError:
        pass
    except ValueError:
        return False
    # Only a pattern that finds something; a question may have a question mark.
    if _PATTERN.isdisjoint(word):
        return False
    if _looks_like_a_path(word) and closed_folder(Path(word)) is not None:
        return True
    return next(glob.iglob(word, recursive=True), None) is not None


def _no_file(word: str) -> str:
    if not word.strip():
        return f'the question is empty: {_PROGRAM} paper.md "What was found?"'
    if _looks_like_a_path(word):
        return f"{_shown(word)}: no such file"
    return (
        f"no file is named: {_PROGRAM} FILE... {shlex.quote(_shown(word))}; or - instead of FILE, for stdin"
    )


def _not_a_file(words: Sequence[str], missing: int) -> str:
    before, word, after = words[:missing], words[missing], words[missing + 1 :]
    files = [each for each in after if _is_file(each)]
    if "://" in word:
        return f"{_shown(word)}: a web page is not read; save it to a file first"
    if len(files) == len(after) and " " in word.strip():
        return f"the question comes last: {_command([*before, *after], word)}"
    if not files and not _looks_like_a_path(word):
        return (
            f"{_shown(word)}: no such file. If the question begins there, quote it: "
            f"{_command(before or ['FILE'], ' '.join(words[missing:]))}"
        )
    return f"{_shown(word)}: no such file"


def _looks_like_a_path(word: str) -> bool:
    return not any(map(str.isspace, word)) and ("/" in word or "." in word[1:-1])


def _command(files: Sequence[str], question: str) -> str:
    return (
        f"{_PROGRAM} {' '.join(shlex.quote(_shown(each)) for each in files)} {shlex.quote(_shown(question))}"
    )


def _shown(text: str) -> str:
    from ...sandbox_image.text import one_line, shorten

    return shorten(one_line(text), 200)


def _ask_for_question(files: Sequence[str]) -> str:
    from ..errors import TaskError
    from .stdin import read_line

    example = _command(files, "What was found?")
    if STDIN in files or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise TaskError(f"the question is missing; it comes last: {example}")
    question = read_line("Question: ")
    if not question:
        raise TaskError(f"the question is missing: {example}")
    return question
