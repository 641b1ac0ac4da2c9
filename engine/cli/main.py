"""The command line: ``supdist-engine run | exec | doctor | schema | broker | image | mcp | trust``.

Exit codes: 0 answered · 1 the code of ``exec`` raised · 2 a wrong task or argument · 3 a limit was reached (the
best answer is printed all the same) · 4 no sandbox to be had · 5 the model's endpoint failed for good · 6 the logs
cannot be written · 124 and 137 ``exec`` timed out, or was killed · 130 Ctrl-C, which ends ``broker`` with 0.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, TypeVar

import typer

from .broker import app as broker_app
from .image import app as image_app
from .mcp import HttpMayBeBare
from .mcp import serve as serve_mcp
from .options import Backend, WhatBackend, WhatImage, WhatPackages, WhatRuntime, flag, sandbox_config
from .permissions import Allowed, WhatEndpoint, WhatEnvFile, WhatRead, WhatWrite, withheld_keys_named
from .trust import app as trust_app

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from ...handlers import ModelHandler
    from ..model_specs import ModelSpec, Role
    from ..result import RunResult
    from ..sandbox import CellResult
    from ..taskfile import TaskFile
    from ..trust import Bound, Permissions

T = TypeVar("T")


ANSWERED, RAISED, USAGE, LIMIT, NO_SANDBOX, NO_MODEL, NO_FILES = range(7)
TIMED_OUT, KILLED, INTERRUPTED = 124, 137, 130

# No rich in help and errors of typer: importing it takes as long as the rest of `--help`.
app = typer.Typer(
    name="supdist-engine",
    help="A supervisor model writes Python that directs a worker model, in a locked-down process.",
    epilog="Exit codes: 0 answered, 2 wrong task or argument, 3 a limit was reached, 4 no sandbox to be had, "
    "5 the model's endpoint failed, 6 the logs or the cache cannot be written, 130 Ctrl-C.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(broker_app, name="broker")
app.command("mcp", cls=HttpMayBeBare)(serve_mcp)
app.add_typer(image_app, name="image")
app.add_typer(trust_app, name="trust")


def main() -> None:
    """The console script."""
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run commands: every failure of ours as a line and a code; a traceback is a bug."""
    from ...sandbox_image.text import ESCAPE_SURROGATES
    from ..errors import CacheError, LogError, SandboxError, TaskError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE_SURROGATES)
    try:
        app()
    except TaskError as error:
        _fail(USAGE, error)
    except SandboxError as error:
        _fail(NO_SANDBOX, error)
    except (LogError, CacheError) as error:
        _fail(NO_FILES, error)
    except Exception as error:
        from ...handlers import HandlerError

        if isinstance(error, HandlerError):
            _fail(NO_MODEL, f"the model failed: {error}")
        raise


def _await(work: Coroutine[Any, Any, T], log_dir: str | None = None) -> T:
    """Run to the end, or to Ctrl-C: then what was begun is cancelled and closed first."""
    import asyncio

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        kept = f"; the logs are in {log_dir}" if log_dir else ""
        _fail(INTERRUPTED, f"interrupted{kept}")


def _fail(code: int, message: object) -> NoReturn:
    from ...sandbox_image.text import printable

    print(f"supdist-engine: {printable(str(message))}", file=sys.stderr)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"supdist-engine {version('supdist-engine')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    task: Annotated[Path, typer.Argument(help="The task file (JSON); `supdist-engine schema` describes it.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result, and nothing else, as JSON.")
    ] = False,
    log_dir: Annotated[Path | None, flag("log_dir")] = None,
    max_iterations: Annotated[int | None, flag("max_iterations")] = None,
    backend: Annotated[
        Backend | None, typer.Option(help="What the sandbox's walls are made of, whatever the task says.")
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(help="The address of a broker service: its models take the place of the task's."),
    ] = None,
    curve_keys: Annotated[
        Path | None, typer.Option(help="The folder with this client's keys for --broker; tcp needs them.")
    ] = None,
    env_file: WhatEnvFile = None,
    allow_read: WhatRead = None,
    allow_write: WhatWrite = None,
    trust_endpoint: WhatEndpoint = False,
) -> None:
    """Answer the question of a task file. The answer goes to stdout, progress to stderr."""
    from ..api import as_data
    from ..taskfile import read_task

    allowed = Allowed.by(env_file, allow_read, allow_write, trust_endpoint)
    environment = allowed.environment()
    permissions = allowed.bind(task, environment, ask=not as_json)
    description = _override(read_task(task), max_iterations, backend)
    outputs = _Outputs.of(description, task.parent, permissions, log_dir)
    work = _run(description, outputs, _Service(broker, curve_keys), permissions, quiet=as_json)
    with withheld_keys_named(permissions):
        result = _await(work, outputs.shown)
    if as_json:
        print(json.dumps(as_data(result)))
    else:
        _print_result(result, outputs.shown)
    if result.stop_reason != "final":
        raise typer.Exit(LIMIT)


def _override(task: TaskFile, max_iterations: int | None, backend: Backend | None) -> TaskFile:
    """The task with what the command line says instead."""
    changes: dict[str, object] = {}
    if max_iterations is not None:
        changes["limits"] = task.limits.model_copy(update={"max_iterations": max_iterations})
    if backend is not None:
        changes["sandbox"] = sandbox_config(
            **task.sandbox.model_dump(exclude_unset=True) | {"backend": backend}
        )
    return task.model_copy(update=changes)


class _Outputs(NamedTuple):
    """Where a run writes."""

    log_dir: Path | None
    cache: Path | str

    @property
    def shown(self) -> str | None:
        """The log folder, from the working directory where it is below."""
        if self.log_dir is None:
            return None
        # The working directory may have been removed, or the folder is not below it.
        with contextlib.suppress(OSError, ValueError):
            return str(self.log_dir.relative_to(os.path.realpath(os.curdir)))
        return str(self.log_dir)

    @classmethod
    def of(cls, task: TaskFile, folder: Path, permissions: Permissions, log_dir: Path | None) -> _Outputs:
        """The paths of the task, as it is permitted; a log folder that the user typed goes before."""
        if log_dir is None and task.log_dir is not None:
            log_dir = permissions.writable(folder / task.log_dir, "log_dir")
        if task.cache in ("off", "run"):
            return cls(log_dir, task.cache)
        return cls(log_dir, permissions.writable(folder / task.cache, "cache"))


class _Service(NamedTuple):
    """A broker service, and the keys for it."""

    address: str | None
    curve_keys: Path | None

    async def handlers(self) -> Mapping[str, ModelHandler]:
        """Its models, by role."""
        from ..errors import TaskError

        if self.address is not None:
            from ..service import handlers_at

            return await handlers_at(self.address, curve_keys=self.curve_keys)
        if self.curve_keys is not None:
            raise TaskError("--curve-keys are for a broker service: name it with --broker")
        return {}


async def _run(
    task: TaskFile, outputs: _Outputs, service: _Service, permissions: Bound, *, quiet: bool
) -> RunResult:
    from ..api import arun
    from ..broker.cache import ResponseCache
    from ..model_specs import builtin, specified_by
    from .console import display

    limits, folder, cache = task.limits, permissions.subject.parent, outputs.cache
    roles: tuple[tuple[Role, ModelSpec | None], ...] = (
        ("supervisor", task.supervisor),
        ("worker", task.worker),
    )
    served = await service.handlers()
    models = dict(served)
    for role, named in roles:
        spec = named or specified_by(permissions.environment, role)
        if role not in served and spec is not None:
            models[role] = spec.build(role, folder, limits.worker_ctx_k, permissions)
    context = task.load_context(folder, permissions)
    store = cache if isinstance(cache, str) else ResponseCache(cache, own=True)
    config = task.run_config(folder, permissions, cache=store, log_dir=outputs.log_dir)
    with display(task.query, quiet=quiet) as screen:
        if len(models) < len(roles):
            from ...handlers.builtin import NOTICE

            screen.note(NOTICE)
        return await arun(
            query=task.query,
            context=context,
            supervisor=models.get("supervisor") or builtin("supervisor", limits.worker_ctx_k),
            worker=models.get("worker") or builtin("worker", limits.worker_ctx_k),
            config=replace(config, on_event=screen.on_event),
        )


def _print_result(result: RunResult, log_dir: str | None) -> None:
    from ...sandbox_image.text import printable
    from .console import summary

    answer = "(no answer)" if result.answer is None else result.answer
    print(printable(answer) if sys.stdout.isatty() else answer, flush=True)
    print(summary(result, log_dir), file=sys.stderr)


@app.command("exec")
def execute(
    code: Annotated[
        str | None, typer.Argument(help="Python source; from stdin where it is not given, or is '-'.")
    ] = None,
    *,
    timeout: Annotated[float, typer.Option(min=0.001, max=86_400, help="Seconds that it may take.")] = 120.0,
    memory: Annotated[str, typer.Option(help="Memory that it may use, such as 512MiB.")] = "2GiB",
    context_file: Annotated[
        Path | None, typer.Option(help="A text file; the code sees it as `context`.")
    ] = None,
    packages: WhatPackages = None,
    backend: WhatBackend = Backend.PROCESS,
    image: WhatImage = None,
    runtime: WhatRuntime = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print outcome, output, values and error as JSON.")
    ] = False,
) -> None:
    """Run code in a fresh sandbox: its output, the value of a last expression, and an exit status as in a shell."""
    from ..errors import TaskError
    from ..sandbox import as_data, open_sandbox

    source = sys.stdin.read() if code is None or code == "-" else code
    config = sandbox_config(memory=memory, packages=packages, backend=backend, image=image, runtime=runtime)
    try:
        context = context_file.read_text(encoding="utf-8") if context_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--context-file: {error}") from error

    async def once() -> CellResult:
        async with open_sandbox(config, context=context) as sandbox:
            return await sandbox.execute(source, timeout=timeout)

    result = _await(once())
    if as_json:
        print(json.dumps(as_data(result)))
    else:
        _copy_output(result)
    raise typer.Exit(_exit_status(result))


def _copy_output(result: CellResult) -> None:
    from ...sandbox_image.text import printable

    for stream, text in ((sys.stdout, _shown(result)), (sys.stderr, result.stderr)):
        stream.write(printable(text) if stream.isatty() else text)
        stream.flush()
    if result.error is not None and result.error.type != "SystemExit":
        print(printable(result.error.traceback), end="", file=sys.stderr)
    elif result.detail:
        print(f"supdist-engine: {result.outcome.value}: {result.detail}", file=sys.stderr)


def _shown(result: CellResult) -> str:
    """What it printed, and then, on lines of their own, what it shows."""
    if not result.display:
        return result.stdout
    printed = result.stdout if result.stdout.endswith("\n") or not result.stdout else result.stdout + "\n"
    return printed + "".join(f"{display.as_text()}\n" for display in result.display)


def _exit_status(result: CellResult) -> int:
    from ..sandbox import Outcome

    match result.outcome:
        case Outcome.OK:
            return ANSWERED
        case Outcome.USER_ERROR if result.error is not None and result.error.type == "SystemExit":
            message = result.error.message
            if message in ("", "None"):
                return 0
            return int(message) & 0xFF if message.isdecimal() and len(message) < 10 else 1
        case Outcome.USER_ERROR | Outcome.OUTPUT_LIMIT:
            return RAISED
        case Outcome.TIMEOUT:
            return TIMED_OUT
        case _:
            return KILLED


@app.command()
def doctor(
    *,
    backend: WhatBackend = Backend.PROCESS,
    image: WhatImage = None,
    runtime: WhatRuntime = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Try, from inside a sandbox, what its walls stop on this machine. Exit 0 where the default level holds."""
    from ..sandbox.doctor import examine
    from .console import report

    sandbox_config(backend=backend, image=image, runtime=runtime)  # which says what does not go together
    findings = _await(examine(backend.value, image, runtime))
    if not report(backend.value, findings, as_json=as_json):
        raise typer.Exit(NO_SANDBOX)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a task file, for editors."""
    from ..taskfile import json_schema

    print(json.dumps(json_schema(), indent=2))
