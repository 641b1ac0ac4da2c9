"""The commands ``supdist-engine doctor | schema``, and the registration of all others."""

from __future__ import annotations

import json
import logging
import os
from enum import Enum
from typing import Annotated

import typer

from .ask import ask
from .broker import app as broker_app
from .command import Group, with_examples
from .exec import execute
from .exit import NO_FILES, NO_MODEL, NO_SANDBOX, USAGE, fail, lack_of, wait
from .image import app as image_app
from .log import log
from .mcp import OptionalPortCommand
from .mcp import serve as serve_mcp
from .options import (
    HELP_OPTIONS,
    Backend,
    BackendOption,
    ImageOption,
    JsonFindingsOption,
    RuntimeOption,
    sandbox_config,
)
from .run import run
from .signals import Stopped, end_at_signals
from .streams import Streams
from .trust import app as trust_app


class _Program(Group):
    examples = (
        'supdist-engine ask paper.md "What was found?" --supervisor ollama/qwen3:8b',
        "supdist-engine exec 'print(6 * 7)'",
    )


# Rich help and errors are off: importing rich takes as long as the rest of `--help`.
app = typer.Typer(
    name="supdist-engine",
    cls=_Program,
    help="A supervisor model writes Python that calls a worker model. "
    "The Python runs in a locked-down process.",
    epilog="Exit codes: 0 answered or done, 1 the code of `exec` failed, 2 wrong task file or argument, "
    "3 a limit was reached (the best answer is printed, if there is one), 4 the sandbox cannot be started, "
    "5 a model failed (an answer that was found is printed), "
    "6 the logs, the cache or stdout cannot be written (an answer is still printed), "
    "124 `exec` timed out, 137 `exec` was killed, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM, "
    "141 the reader of stdout has gone.",
    add_completion=False,
    no_args_is_help=True,
    # Commands inherit it.
    context_settings=HELP_OPTIONS,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Set by a shell that wants to know what a word can become; see completion.py.
VARIABLE = "_SUPDIST_ENGINE_COMPLETE"
# The groups of commands in the help page.
ASK, SANDBOX, MEASURE, SET_UP = "Ask", "Sandbox", "Measure", "Set up"


class Shell(Enum):
    """A shell that completes what is typed."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def main() -> None:
    """Run the engine's commands as a program."""
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run commands. A failure is one message and an exit code."""
    end_at_signals()
    if VARIABLE in os.environ:
        from .completion import complete

        return complete(app)
    # The console shows warnings. Without a handler, Python would print them, too.
    logging.getLogger("supdist").addHandler(logging.NullHandler())
    streams = Streams.guard()
    try:
        _run(app)
    finally:
        # Also when the command fails: it may have printed before.
        streams.check()


def _run(app: typer.Typer) -> None:
    from ..errors import CacheError, LogError, SandboxError, TaskError

    try:
        app()
    # These, HandlerError, and what this machine lacks. Else it is a bug, and its traceback is wanted.
    except Stopped as stopped:
        fail(stopped.status, stopped)
    except TaskError as error:
        fail(USAGE, error)
    except SandboxError as error:
        fail(NO_SANDBOX, error)
    except (LogError, CacheError) as error:
        fail(NO_FILES, error)
    except Exception as error:
        if (found := lack_of(error)) is not None:
            fail(*found)
        # Inside: a command that calls no model does not import the model backends.
        from ...handlers import HandlerError

        if isinstance(error, HandlerError):
            from ..broker.call_errors import remedy

            advice = remedy(error)
            who = f"{error.role}: " if error.role else ""
            fail(NO_MODEL, f"{who}the model failed: {error}" + (f". {advice}" if advice else ""))
        raise


def _show_completion(shell: Shell | None) -> None:
    if shell is not None:
        from .completion import script

        print(script(shell.value), end="")
        raise typer.Exit


def _install_completion(shell: Shell | None) -> None:
    if shell is not None:
        from .completion import install

        print(install(shell.value))
        raise typer.Exit


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"supdist-engine {version('supdist-engine')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    show_completion: Annotated[
        Shell | None,
        typer.Option(
            "--show-completion",
            callback=_show_completion,
            is_eager=True,
            help="Print the script that lets a shell complete commands, options and names of models.",
        ),
    ] = None,
    install_completion: Annotated[
        Shell | None,
        typer.Option(
            "--install-completion",
            callback=_install_completion,
            is_eager=True,
            help="Write that script where the shell reads it.",
        ),
    ] = None,
) -> None:
    pass


app.command(
    rich_help_panel=ASK,
    cls=with_examples(
        'supdist-engine ask paper.md "What was found?" --supervisor ollama/qwen3:8b',
        'supdist-engine ask paper.md notes/ "Where do they differ?" --supervisor openai/gpt-4.1 '
        "--max-tokens 500000",
        'cat paper.md | supdist-engine ask - "What was found?" --dry-run',
        'supdist-engine ask paper.md "What was found?" --max-seconds 600 --save task.json',
    ),
)(ask)
app.command(
    rich_help_panel=ASK,
    cls=with_examples(
        "supdist-engine run task.json",
        "supdist-engine run task.json --supervisor ollama/qwen3:8b --worker builtin --json",
        "cat task.json | supdist-engine run - --max-cost-usd 0.50 --dry-run",
    ),
)(run)
app.command(
    rich_help_panel=ASK, cls=with_examples("supdist-engine log", "supdist-engine log logs/my_run --whole")
)(log)
app.command(
    "exec",
    rich_help_panel=SANDBOX,
    cls=with_examples(
        "supdist-engine exec 'print(6 * 7)'",
        "echo 'sum(range(10))' | supdist-engine exec --timeout 5 --memory 256MiB",
        "supdist-engine exec --context-file paper.md 'len(context)'",
    ),
)(execute)
app.command(
    "mcp",
    rich_help_panel=SANDBOX,
    cls=with_examples(
        "supdist-engine mcp --memory 512MiB",
        "supdist-engine mcp --http 8000 --sessions 4",
        base=OptionalPortCommand,
    ),
)(serve_mcp)


@app.command(
    rich_help_panel=SANDBOX, cls=with_examples("supdist-engine doctor", "supdist-engine doctor --json")
)
def doctor(
    *,
    backend: BackendOption = Backend.PROCESS,
    image: ImageOption = None,
    runtime: RuntimeOption = None,
    as_json: JsonFindingsOption = False,
) -> None:
    """Attack the isolation of this machine from inside a sandbox. Exit 0 if the default level holds."""
    from ..sandbox.doctor import examine
    from .console import print_findings

    # Reports options that exclude each other.
    sandbox_config(backend=backend, image=image, runtime=runtime)
    findings = wait(examine(backend.value, image, runtime))
    if not print_findings(backend.value, findings, as_json=as_json):
        raise typer.Exit(NO_SANDBOX)


app.add_typer(image_app, name="image", rich_help_panel=SANDBOX)
app.add_typer(broker_app, name="broker", rich_help_panel=SET_UP)
app.add_typer(trust_app, name="trust", rich_help_panel=SET_UP)


@app.command(rich_help_panel=SET_UP, cls=with_examples("supdist-engine schema > task.schema.json"))
def schema() -> None:
    """Print the JSON Schema of a task file, for editors."""
    from ..taskfile import json_schema

    print(json.dumps(json_schema(), indent=2))
