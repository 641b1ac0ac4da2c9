"""The command ``supdist-engine exec``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TaskError
from .exit import ANSWERED, KILLED, RAISED, TIMED_OUT, wait
from .options import (
    MOST_SECONDS,
    Backend,
    BackendOption,
    ImageOption,
    PackagesOption,
    RawHtmlOption,
    RuntimeOption,
    sandbox_config,
)

if TYPE_CHECKING:
    from ..documents.reading import Value
    from ..sandbox import CellResult


def execute(
    code: Annotated[
        str | None, typer.Argument(help="Python source. Default, and with '-': read it from stdin.")
    ] = None,
    *,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=MOST_SECONDS, help="Seconds that the code may take.")
    ] = 120.0,
    memory: Annotated[str, typer.Option(help="Memory that the code may use, such as 512MiB.")] = "2GiB",
    context_file: Annotated[
        Path | None,
        typer.Option(
            help="A text, PDF, HTML, Office or EPUB file, a folder or a pattern; - is stdin. "
            "The code has its text in `context`."
        ),
    ] = None,
    raw_html: RawHtmlOption = False,
    packages: PackagesOption = None,
    backend: BackendOption = Backend.PROCESS,
    image: ImageOption = None,
    runtime: RuntimeOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print outcome, output, displayed values and error as JSON.")
    ] = False,
) -> None:
    """Run Python code in a new sandbox. Prints its output and the value of a last expression.

    The exit code is that of the code, as in a shell.
    """
    from ..sandbox import as_data, open_sandbox
    from ..sandbox.context import NO_CONTEXT

    if code is None and context_file == Path("-"):
        raise TaskError("stdin is the context, so the code must be an argument")
    source = _source_of_stdin() if code is None or code == "-" else code
    _check_no_file(source)
    config = sandbox_config(memory=memory, packages=packages, backend=backend, image=image, runtime=runtime)

    async def once() -> CellResult:
        context = NO_CONTEXT if context_file is None else await _context(context_file, raw_html=raw_html)
        async with open_sandbox(config, context=context) as sandbox:
            return await sandbox.execute(source, timeout=timeout)

    result = wait(once())
    if as_json:
        print(json.dumps(as_data(result)))
    else:
        _copy_output(result)
    raise typer.Exit(_exit_status(result))


def _check_no_file(source: str) -> None:
    # As Python, a file's name is an attribute of a name that no new sandbox has.
    if source.endswith(".py") and len(source.split()) == 1 and Path(source).is_file():
        raise TaskError(
            f"{source} is a file, and the argument is code; to run the file: "
            f"supdist-engine exec - < {shlex.quote(source)}"
        )


async def _context(file: Path, *, raw_html: bool) -> Value:
    # Few cells have a context, and the readers take 10 ms to import.
    from .documents import load, print_warnings

    return print_warnings(await load([file], "--context-file", raw_html=raw_html))


def _source_of_stdin() -> str:
    """Return the code on stdin, decoded as Python reads a file."""
    import tokenize
    from io import BytesIO

    from .stdin import read_bytes

    data = read_bytes("the code", may_be_empty=True)
    try:
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        return data.decode(encoding)
    # SyntaxError: an unknown encoding, or a first line that is no UTF-8.
    except (SyntaxError, UnicodeDecodeError) as error:
        raise TaskError(
            f"cannot read the code from stdin: {error}; save it as UTF-8, or name its encoding: "
            "# -*- coding: latin-1 -*-"
        ) from error


def _copy_output(result: CellResult) -> None:
    # Escape sequences of the code could deceive on a terminal; a file gets the output as it is.
    for stream, text in ((sys.stdout, _output_text(result)), (sys.stderr, result.stderr)):
        stream.write(_for_terminal(text) if stream.isatty() else text)
        stream.flush()
    # sys.exit() is no failure to explain: the exit status says it.
    if result.error is not None and result.error.type != "SystemExit":
        print(_for_terminal(result.error.traceback), end="", file=sys.stderr)
    # A traceback says where the code was, and not that a limit ended it.
    if result.detail:
        from ..sandbox.cell_details import reason_of

        print(f"supdist-engine: {result.outcome.value}: {_for_terminal(reason_of(result))}", file=sys.stderr)


def _for_terminal(text: str) -> str:
    from ...sandbox_image.terminal_text import finish, terminal_text
    from ...sandbox_image.text import printable

    return printable(finish(terminal_text(text)))


def _output_text(result: CellResult) -> str:
    if not result.display:
        return result.stdout
    # Each displayed value begins on a line of its own.
    printed = result.stdout if result.stdout.endswith("\n") or not result.stdout else result.stdout + "\n"
    return printed + "".join(f"{display.as_text()}\n" for display in result.display)


def _exit_status(result: CellResult) -> int:
    from ..sandbox import Outcome

    match result.outcome:
        case Outcome.OK:
            return ANSWERED
        case Outcome.USER_ERROR if result.error is not None and result.error.type == "SystemExit":
            message = result.error.message
            # sys.exit() and sys.exit(None) mean success.
            if message in ("", "None"):
                return 0
            # A message is of any length; a status has few digits, and the system keeps its low 8 bits.
            return int(message) & 0xFF if message.isdecimal() and len(message) < 10 else 1
        case Outcome.USER_ERROR | Outcome.OUTPUT_LIMIT:
            return RAISED
        case Outcome.TIMEOUT:
            return TIMED_OUT
        case _:
            return KILLED
