"""What a file on the command line may do, by the options of a command and by the user's answers."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..trust import Answer, Bound, Environment, Question

_LETTERS: dict[Answer, str] = {"yes": "y", "once": "o", "always": "a", "no": "n", "never": "v"}

WhatEnvFile = Annotated[
    Path | None,
    typer.Option("--env-file", help="A file of variables; .env in the working directory by default."),
]
WhatRead = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-read",
        metavar="PATH",
        exists=True,
        help="Let the file read this folder or file, too. May be repeated.",
    ),
]
WhatWrite = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-write",
        metavar="PATH",
        help="Let the file write in this folder or file, too. May be repeated.",
    ),
]
WhatEndpoint = Annotated[
    bool,
    typer.Option(
        "--trust-endpoint",
        help="For this time, send the keys that the file names (OPENAI_API_KEY where it names none) to its endpoints.",
    ),
]


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the options of a command allow."""

    env_file: Path | None = None
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    trust_endpoint: bool = False

    @classmethod
    def by(
        cls,
        env_file: Path | None,
        read: list[Path] | None,
        write: list[Path] | None,
        trust_endpoint: bool,
    ) -> Allowed:
        """Take the options as typer gives them."""
        return cls(env_file, tuple(read or ()), tuple(write or ()), trust_endpoint)

    def environment(self) -> Environment:
        """Return the process's variables, with those of the ``.env`` file.

        Raises:
            TaskError: the file cannot or may not be read.
        """
        from ...sandbox_image.text import printable
        from ..trust import load_environment
        from ..trust.environment import env_file_above

        found = load_environment(self.env_file)
        if (above := None if found.path else env_file_above()) is not None:
            print(
                "supdist-engine: only the .env of the working directory is read; for the one above: --env-file "
                f"{shlex.quote(printable(str(above)))}",
                file=sys.stderr,
            )
        if found.not_passed_on:
            names = printable(", ".join(found.not_passed_on))
            print(
                f"supdist-engine: {found.path}: only keys and models are read from it, not {names}: set them in the shell",
                file=sys.stderr,
            )
        return found

    def bind(
        self, subject: Path | None, environment: Environment, *, ask: bool = True, is_own: bool = False
    ) -> Bound:
        """Return what a file may do. Questions are asked only where a person can answer on the terminal.

        Args:
            subject: the file; None where only the environment says something.
            environment: where keys come from.
            ask: whether questions are asked at all.
            is_own: whether the user wrote what the file says, so that its paths and imports are the user's.
        """
        from ..trust import Bound
        from ..trust.environment import ENV_FILE
        from ..trust.questions import nobody

        person = ask and sys.stdin.isatty() and sys.stderr.isatty()
        return Bound(
            subject or environment.path or Path(ENV_FILE),
            environment,
            read=self.read,
            write=self.write,
            trust_endpoint=self.trust_endpoint,
            ask=ask_on_terminal if person else nobody,
            is_own=is_own,
        )


@contextmanager
def withheld_keys_named(permissions: Bound) -> Generator[None]:
    """Add to an endpoint's refusal which key it was not sent, and how to allow that."""
    from ...handlers import NoAccess

    try:
        yield
    except NoAccess as error:
        if permissions.withheld:
            raise NoAccess("; ".join([str(error), *dict.fromkeys(permissions.withheld)])) from error
        raise


def ask_on_terminal(question: Question) -> Answer:
    """Ask on stderr until there is an answer. Ctrl-C ends the program; the end of the input is a no."""
    from ...sandbox_image.text import printable

    letters: dict[str, Answer] = {_LETTERS[answer]: answer for answer in question.answers}
    if "once" in question.answers:
        letters["y"] = "once"
    choice = ", ".join(f"{_LETTERS[answer]} = {answer}" for answer in question.answers)
    with _interruptible():
        print(printable(question.text), file=sys.stderr)
        while True:
            print(f"{choice}? ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                print(file=sys.stderr)
                return "no"
            if (found := letters.get(line.strip().lower()[:1])) is not None:
                return found


@contextmanager
def _interruptible() -> Generator[None]:
    """Let Ctrl-C interrupt: asyncio's own handler would wait for the next await."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
