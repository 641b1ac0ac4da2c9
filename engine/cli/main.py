"""The commands ``supdist-engine run | exec | doctor | schema``, and the exit codes of all commands."""

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
from .mcp import OptionalPortCommand
from .mcp import serve as serve_mcp
from .options import (
    MOST_SECONDS,
    Backend,
    BackendOption,
    ImageOption,
    JsonFindingsOption,
    JsonResultOption,
    PackagesOption,
    RuntimeOption,
    flag,
    sandbox_config,
)
from .permissions import (
    Allowed,
    AllowReadOption,
    AllowWriteOption,
    EnvFileOption,
    TrustEndpointOption,
    explain_withheld_keys,
)
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

# Rich help and errors are off: importing rich takes as long as the rest of `--help`.
app = typer.Typer(
    name="supdist-engine",
    help="A supervisor model writes Python that calls a worker model. "
    "The Python runs in a locked-down process.",
    epilog="Exit codes: 0 answered or done, 1 the code of `exec` failed, 2 wrong task file or argument, "
    "3 a limit was reached (the best answer is printed), 4 the sandbox cannot be started, "
    "5 the model failed, 6 the logs or the cache cannot be written, "
    "124 `exec` timed out, 137 `exec` was killed, 130 Ctrl-C.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(broker_app, name="broker")
app.command("mcp", cls=OptionalPortCommand)(serve_mcp)
app.add_typer(image_app, name="image")
app.add_typer(trust_app, name="trust")


def main() -> None:
    """Run the engine's commands as a program."""
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run commands. Each failure of the product is one message and an exit code; a traceback is a bug."""
    from ..errors import CacheError, LogError, SandboxError, TaskError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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


def _wait(work: Coroutine[Any, Any, T], log_dir: str | None = None) -> T:
    """Wait for the end or for Ctrl-C, which cancels and closes first what runs."""
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
) -> None:
    pass


@app.command()
def run(
    task: Annotated[
        Path, typer.Argument(help="The task file (JSON or TOML). `supdist-engine schema` describes it.")
    ],
    *,
    as_json: JsonResultOption = False,
    log_dir: Annotated[Path | None, flag("log_dir", note="Default: as in the task file.")] = None,
    max_iterations: Annotated[
        int | None, flag("max_iterations", note="Default: as in the task file.")
    ] = None,
    backend: Annotated[
        Backend | None,
        typer.Option(help="Isolate the code in a process or in a container. Default: as in the task file."),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            help="The address of a `supdist-engine broker`, whose models replace those of the task."
        ),
    ] = None,
    curve_keys: Annotated[
        Path | None, typer.Option(help="With --broker: the folder of this client's keys. tcp needs them.")
    ] = None,
    env_file: EnvFileOption = None,
    allow_read: AllowReadOption = None,
    allow_write: AllowWriteOption = None,
    trust_endpoint: TrustEndpointOption = False,
) -> None:
    """Answer the question of a task file. The answer goes to stdout, progress to stderr."""
    from ..api import as_data
    from ..taskfile import read_task

    allowed = Allowed.from_options(env_file, allow_read, allow_write, trust_endpoint)
    environment = allowed.environment()
    permissions = allowed.bind(task, environment, ask=not as_json)
    description = _override(read_task(task), max_iterations, backend)
    outputs = _Outputs.of(description, task.parent, permissions, log_dir)
    work = _answer(description, outputs, _ModelServer(broker, curve_keys), permissions, quiet=as_json)
    with explain_withheld_keys(permissions):
        result = _wait(work, outputs.shown)
    if as_json:
        print(json.dumps(as_data(result)))
    else:
        _print_result(result, outputs.shown)
    if result.stop_reason != "final":
        raise typer.Exit(LIMIT)


def _override(task: TaskFile, max_iterations: int | None, backend: Backend | None) -> TaskFile:
    """Return the task with the options of the command line."""
    changes: dict[str, object] = {}
    if max_iterations is not None:
        changes["limits"] = task.limits.model_copy(update={"max_iterations": max_iterations})
    if backend is not None:
        changes["sandbox"] = sandbox_config(
            **task.sandbox.model_dump(exclude_unset=True) | {"backend": backend}
        )
    return task.model_copy(update=changes)


class _Outputs(NamedTuple):
    """The paths that a run writes to."""

    log_dir: Path | None
    cache: Path | str

    @property
    def shown(self) -> str | None:
        """The log folder for a message, relative to the working directory if it is below."""
        if self.log_dir is None:
            return None
        # The working directory may have been removed, or the folder is not below it.
        with contextlib.suppress(OSError, ValueError):
            return str(self.log_dir.relative_to(os.path.realpath(os.curdir)))
        return str(self.log_dir)

    @classmethod
    def of(cls, task: TaskFile, folder: Path, permissions: Permissions, log_dir: Path | None) -> _Outputs:
        """Return the paths that the task may write to. ``log_dir`` is typed, so it needs no permission."""
        if log_dir is None and task.log_dir is not None:
            log_dir = permissions.writable(folder / task.log_dir, "log_dir")
        if task.cache in ("off", "run"):
            return cls(log_dir, task.cache)
        return cls(log_dir, permissions.writable(folder / task.cache, "cache"))


class _ModelServer(NamedTuple):
    """The address of a model server, and the folder of this client's keys."""

    address: str | None
    curve_keys: Path | None

    async def handlers(self) -> Mapping[str, ModelHandler]:
        """Return its models by role; none without an address."""
        from ..errors import TaskError

        if self.address is not None:
            from ..service import handlers_at

            return await handlers_at(self.address, curve_keys=self.curve_keys)
        if self.curve_keys is not None:
            raise TaskError("--curve-keys is for a model server: name it with --broker")
        return {}


async def _answer(
    task: TaskFile, outputs: _Outputs, server: _ModelServer, permissions: Bound, *, quiet: bool
) -> RunResult:
    from ..api import arun
    from ..broker.cache import ResponseCache
    from ..model_specs import builtin
    from .console import display

    folder, worker_ctx_k = permissions.subject.parent, task.limits.worker_ctx_k
    models = await _models(task, server, permissions)
    context = task.load_context(folder, permissions)
    # ``own``: the task file named the cache, not the user. Answers that another user kept are not trusted.
    cache = outputs.cache if isinstance(outputs.cache, str) else ResponseCache(outputs.cache, own=True)
    config = task.run_config(folder, permissions, cache=cache, log_dir=outputs.log_dir)
    with display(task.query, quiet=quiet) as screen:
        if len(models) < 2:
            from ...handlers.builtin import NOTICE

            screen.note(NOTICE)
        return await arun(
            query=task.query,
            context=context,
            supervisor=models.get("supervisor") or builtin("supervisor", worker_ctx_k),
            worker=models.get("worker") or builtin("worker", worker_ctx_k),
            config=replace(config, on_event=screen.on_event),
        )


async def _models(task: TaskFile, server: _ModelServer, permissions: Bound) -> dict[str, ModelHandler]:
    """Return the models by role: of the server, else of the task, else of the environment."""
    from ..model_specs import specified_by

    roles: tuple[tuple[Role, ModelSpec | None], ...] = (
        ("supervisor", task.supervisor),
        ("worker", task.worker),
    )
    folder, worker_ctx_k = permissions.subject.parent, task.limits.worker_ctx_k
    served = await server.handlers()
    models = dict(served)
    for role, named in roles:
        spec = named or specified_by(permissions.environment, role)
        if role not in served and spec is not None:
            models[role] = spec.build(role, folder, worker_ctx_k, permissions)
    return models


def _print_result(result: RunResult, log_dir: str | None) -> None:
    from ...sandbox_image.text import printable
    from .console import summary

    answer = "(no answer)" if result.answer is None else result.answer
    print(printable(answer) if sys.stdout.isatty() else answer, flush=True)
    print(summary(result, log_dir), file=sys.stderr)


@app.command("exec")
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

    result = _wait(once())
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
    """Return what the code printed, and after it each displayed value on a line of its own."""
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
            # A message is of any length; a status has few digits, and the system keeps its low 8 bits.
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
    backend: BackendOption = Backend.PROCESS,
    image: ImageOption = None,
    runtime: RuntimeOption = None,
    as_json: JsonFindingsOption = False,
) -> None:
    """Attack the isolation of this machine from inside a sandbox. Exit 0 if the default level holds."""
    from ..sandbox.doctor import examine
    from .console import print_findings

    sandbox_config(backend=backend, image=image, runtime=runtime)  # reports options that exclude each other
    findings = _wait(examine(backend.value, image, runtime))
    if not print_findings(backend.value, findings, as_json=as_json):
        raise typer.Exit(NO_SANDBOX)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a task file, for editors."""
    from ..taskfile import json_schema

    print(json.dumps(json_schema(), indent=2))
