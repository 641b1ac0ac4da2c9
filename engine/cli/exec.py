"""The command ``supdist-engine exec``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .exit import ANSWERED, KILLED, RAISED, TIMED_OUT, wait
from .options import (
    MOST_SECONDS,
    Backend,
    BackendOption,
    ImageOption,
    PackagesOption,
    RuntimeOption,
    sandbox_config,
)

if TYPE_CHECKING:
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
        Path | None, typer.Option(help="A UTF-8 text file. The code has its text in `context`.")
    ] = None,
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
    from ..errors import TaskError
    from ..sandbox import as_data, open_sandbox

    source = sys.stdin.read() if code is None or code == "-" else code
    config = sandbox_config(memory=memory, packages=packages, backend=backend, image=image, runtime=runtime)
    try:
        context = context_file.read_text(encoding="utf-8") if context_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--context-file: cannot read it as UTF-8 text: {error}") from error

    async def once() -> CellResult:
        async with open_sandbox(config, context=context) as sandbox:
            return await sandbox.execute(source, timeout=timeout)

    result = wait(once())
    if as_json:
        print(json.dumps(as_data(result)))
    else:
        _copy_output(result)
    raise typer.Exit(_exit_status(result))


def _copy_output(result: CellResult) -> None:
    from ...sandbox_image.text import printable

    # Escape sequences of the code could deceive on a terminal; a file gets the output as it is.
    for stream, text in ((sys.stdout, _output_text(result)), (sys.stderr, result.stderr)):
        stream.write(printable(text) if stream.isatty() else text)
        stream.flush()
    # sys.exit() is no failure to explain: the exit status says it.
    if result.error is not None and result.error.type != "SystemExit":
        print(printable(result.error.traceback), end="", file=sys.stderr)
    elif result.detail:
        print(f"supdist-engine: {result.outcome.value}: {result.detail}", file=sys.stderr)


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
