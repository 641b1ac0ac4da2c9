"""The commands ``supdist-engine run | doctor | schema``, and the registration of all others."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from .broker import app as broker_app
from .exec import execute
from .exit import NO_FILES, NO_MODEL, NO_SANDBOX, USAGE, exit_code, fail, lack_of, wait
from .image import app as image_app
from .mcp import OptionalPortCommand
from .mcp import serve as serve_mcp
from .options import (
    Backend,
    BackendOption,
    ImageOption,
    JsonFindingsOption,
    JsonResultOption,
    RuntimeOption,
    SupervisorOption,
    WorkerOption,
    flag,
    sandbox_config,
    typed_models,
)
from .permissions import (
    Allowed,
    AllowReadOption,
    AllowWriteOption,
    EnvFileOption,
    TrustEndpointOption,
    explain_withheld_keys,
)
from .signals import Stopped, end_at_signals
from .streams import Streams
from .trust import app as trust_app

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...handlers import ModelHandler
    from ..model_specs import ModelSpec, Role
    from ..result import RunResult
    from ..taskfile import TaskFile
    from ..trust import Bound, Permissions

# Rich help and errors are off: importing rich takes as long as the rest of `--help`.
app = typer.Typer(
    name="supdist-engine",
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
    """Run commands. A failure is one message and an exit code."""
    end_at_signals()
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
            fail(NO_MODEL, f"the model failed: {error}" + (f". {advice}" if advice else ""))
        raise


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
    supervisor: SupervisorOption = None,
    worker: WorkerOption = None,
    as_json: JsonResultOption = False,
    log_dir: Annotated[Path | None, flag("log_dir", note="Default: as in the task file.")] = None,
    log_bytes: Annotated[int | None, flag("log_bytes", note="Default: as in the task file.")] = None,
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
    # A program that reads JSON cannot answer a question.
    permissions = allowed.bind(task, environment, ask=not as_json)
    description = _override(read_task(task), max_iterations, backend, log_bytes)
    outputs = _Outputs.of(description, task.parent, permissions, log_dir)
    typed = typed_models(supervisor, worker)
    server = _ModelServer(broker, curve_keys)
    work = _answer(description, outputs, server, permissions, typed, quiet=as_json)
    with explain_withheld_keys(permissions):
        result = wait(work, outputs.shown)
    if as_json:
        print(json.dumps(as_data(result)))
    else:
        _print_result(result, outputs.shown)
    code = exit_code(result.stop_reason)
    # A worker that failed is worse, and its code stays.
    is_incomplete = result.unstored_answers or result.log_error is not None
    raise typer.Exit(NO_FILES if is_incomplete and code != NO_MODEL else code)


def _override(
    task: TaskFile, max_iterations: int | None, backend: Backend | None, log_bytes: int | None
) -> TaskFile:
    given = {"max_iterations": max_iterations, "log_bytes": log_bytes}
    limits = {name: value for name, value in given.items() if value is not None}
    changes: dict[str, object] = {}
    if limits:
        changes["limits"] = task.limits.model_copy(update=limits)
    if backend is not None:
        # Checked anew: settings of the file may not fit the other backend.
        changes["sandbox"] = sandbox_config(
            **task.sandbox.model_dump(exclude_unset=True) | {"backend": backend}
        )
    return task.model_copy(update=changes)


class _Outputs(NamedTuple):
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
        # An option is the user's own word; only the file's paths need a permission.
        if log_dir is None and task.log_dir is not None:
            log_dir = permissions.writable(folder / task.log_dir, "log_dir")
        if task.cache in ("off", "run"):
            return cls(log_dir, task.cache)
        return cls(log_dir, permissions.writable(folder / task.cache, "cache"))


class _ModelServer(NamedTuple):
    address: str | None
    curve_keys: Path | None

    async def handlers(self) -> Mapping[str, ModelHandler]:
        from ..errors import TaskError

        if self.address is not None:
            from ..service import handlers_at

            return await handlers_at(self.address, curve_keys=self.curve_keys)
        if self.curve_keys is not None:
            raise TaskError("--curve-keys is for a model server: name it with --broker")
        return {}


async def _answer(
    task: TaskFile,
    outputs: _Outputs,
    server: _ModelServer,
    permissions: Bound,
    typed: Mapping[Role, ModelSpec],
    *,
    quiet: bool,
) -> RunResult:
    from ..api import arun
    from ..broker.cache import ResponseCache
    from ..model_specs import builtin
    from .console import display

    folder, worker_ctx_k = permissions.subject.parent, task.limits.worker_ctx_k
    models = await _models(task, server, permissions, typed)
    context = task.load_context(folder, permissions)
    # ``own``: the task file named the cache, not the user. Answers that another user kept are not trusted.
    cache = outputs.cache if isinstance(outputs.cache, str) else ResponseCache(outputs.cache, own=True)
    config = task.run_config(folder, permissions, cache=cache, log_dir=outputs.log_dir)
    with display(task.query, quiet=quiet) as screen:
        # The builtin pair stands in for a model that is missing: say that it is no language model.
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


async def _models(
    task: TaskFile, server: _ModelServer, permissions: Bound, typed: Mapping[Role, ModelSpec]
) -> dict[str, ModelHandler]:
    from ..model_specs import configured

    roles: tuple[tuple[Role, ModelSpec | None], ...] = (
        ("supervisor", task.supervisor),
        ("worker", task.worker),
    )
    folder, worker_ctx_k = permissions.subject.parent, task.limits.worker_ctx_k
    served = await server.handlers()
    models = dict(served)
    # An option comes first, then the server, the task, the environment, and the option for the other role.
    for role, named in roles:
        spec = named or configured(permissions.environment, role) or next(iter(typed.values()), None)
        spec = typed.get(role) or (None if role in served else spec)
        if spec is not None:
            models[role] = spec.build(role, folder, worker_ctx_k, permissions)
    return models


def _print_result(result: RunResult, log_dir: str | None) -> None:
    from ...sandbox_image.text import printable
    from .console import summary
    from .failures import print_failures

    answer = "(no answer)" if result.answer is None else result.answer
    # Escape sequences could deceive on a terminal; a file gets the answer as it is.
    print(printable(answer) if sys.stdout.isatty() else answer, flush=True)
    print(summary(result, log_dir), file=sys.stderr)
    print_failures(result)


app.command("exec")(execute)


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

    # Reports options that exclude each other.
    sandbox_config(backend=backend, image=image, runtime=runtime)
    findings = wait(examine(backend.value, image, runtime))
    if not print_findings(backend.value, findings, as_json=as_json):
        raise typer.Exit(NO_SANDBOX)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a task file, for editors."""
    from ..taskfile import json_schema

    print(json.dumps(json_schema(), indent=2))
