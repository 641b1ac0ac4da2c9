"""What a command lets a file do, by its options and by the user's answers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import TRUST
from .stdin import read_line

if TYPE_CHECKING:
    from ..trust import Answer, Bound, Environment, Question

_LETTERS: dict[Answer, str] = {"yes": "y", "once": "o", "always": "a", "no": "n", "never": "v"}

EnvFileOption = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        rich_help_panel=TRUST,
        help="A file of variables. Default: .env in the working directory.",
    ),
]
AllowReadOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-read",
        rich_help_panel=TRUST,
        metavar="PATH",
        exists=True,
        help="Let the file read this folder or file, too. May be repeated.",
    ),
]
AllowWriteOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-write",
        rich_help_panel=TRUST,
        metavar="PATH",
        help="Let the file write to this folder or file, too. May be repeated.",
    ),
]
TrustEndpointOption = Annotated[
    bool,
    typer.Option(
        "--trust-endpoint",
        rich_help_panel=TRUST,
        help="This time, send the keys that the file names to the endpoints that it names. "
        "The key is OPENAI_API_KEY where it names none.",
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
    def from_options(
        cls,
        env_file: Path | None,
        read: list[Path] | None,
        write: list[Path] | None,
        trust_endpoint: bool,
    ) -> Allowed:
        """Return what some options allow."""
        return cls(env_file, tuple(read or ()), tuple(write or ()), trust_endpoint)

    def environment(self) -> Environment:
        """Return the variables of the process and of the ``.env`` file.

        Raises:
            TaskError: the file cannot be read, or is not the user's own.
        """
        from ...sandbox_image.text import printable
        from ..trust import load_environment
        from ..trust.environment import env_file_above

        found = load_environment(self.env_file)
        for each in found.warnings:
            print(f"supdist-engine: {printable(each)}", file=sys.stderr)
        if found.broken:
            print(f"supdist-engine: not read: {printable(found.broken)}", file=sys.stderr)
        # Such a file may belong to another project, so it is named and not read.
        if (above := None if found.path else env_file_above()) is not None:
            print(
                "supdist-engine: only the .env of the working directory is read; for one in a folder above: "
                f"--env-file {shlex.quote(printable(str(above)))}",
                file=sys.stderr,
            )
        if found.not_passed_on:
            names = printable(", ".join(found.not_passed_on))
            print(
                f"supdist-engine: {found.path}: only keys, models and addresses of local servers are "
                f"read from it, not {names}; set the others in the shell",
                file=sys.stderr,
            )
        return found

    def bind(
        self, subject: Path | None, environment: Environment, *, ask: bool = True, is_own: bool = False
    ) -> Bound:
        """Return what a file may do.

        Args:
            subject: the file; None for the environment alone.
            environment: holds the keys.
            ask: whether the user may be asked on the terminal.
            is_own: whether the user wrote the file: then its paths and imports are allowed.
        """
        from ..trust import Bound
        from ..trust.environment import ENV_FILE
        from ..trust.questions import always_no

        # Without a terminal a question would wait for ever.
        can_ask = ask and sys.stdin.isatty() and sys.stderr.isatty()
        return Bound(
            subject or environment.path or Path(ENV_FILE),
            environment,
            read=self.read,
            write=self.write,
            trust_endpoint=self.trust_endpoint,
            ask=ask_on_terminal if can_ask else always_no,
            is_own=is_own,
        )


@contextmanager
def explain_withheld_keys(permissions: Bound) -> Generator[None]:
    """Add to an endpoint's refusal the key that was withheld, and how to allow it."""
    from ...handlers import NoAccess

    try:
        yield
    except NoAccess as error:
        if permissions.withheld:
            # Each once: both roles may use the same endpoint.
            raise NoAccess("; ".join([str(error), *dict.fromkeys(permissions.withheld)])) from error
        raise


def ask_on_terminal(question: Question) -> Answer:
    """Ask on stderr until there is an answer; the end of the input means no."""
    from ...sandbox_image.text import printable

    letters: dict[str, Answer] = {_LETTERS[answer]: answer for answer in question.answers}
    if "once" in question.answers:
        # A habitual "y" must not allow more than this once.
        letters["y"] = "once"
    choice = ", ".join(f"{_LETTERS[answer]} = {answer}" for answer in question.answers)
    print(printable(question.text), file=sys.stderr)
    while (line := read_line(f"{choice}? ")) is not None:
        if (found := letters.get(line.lower()[:1])) is not None:
            return found
    return "no"
