"""``supdist-engine broker``: models as a service, and the keys of those who may use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from .options import group_with_default
from .permissions import Allowed, WhatEndpoint, WhatEnvFile, WhatRead

if TYPE_CHECKING:
    from ...handlers import ModelHandler
    from ..model_specs import ModelSpec
    from ..service import Service
    from .console import ServiceScreen

INTERRUPTED = 130

_OPEN_FILES = 16384  # each engine is a connection, each request to an endpoint another
_LOOK_SECONDS = 0.5


app = typer.Typer(
    cls=group_with_default("serve"),
    help="Serve models to the engines of many processes and machines (`broker [MODELS] --bind ADDRESS`), or make "
    "their keys.",
    epilog="Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 wrong file, address or keys.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def serve(
    *,
    bind: Annotated[
        str,
        typer.Option(help="ipc://PATH, or tcp://HOST:PORT (any free port where PORT is *); tcp needs keys."),
    ],
    models: Annotated[
        Path | None,
        typer.Argument(
            help="A JSON or TOML file with `worker`, `supervisor` or both, as in a task file; else the environment."
        ),
    ] = None,
    curve_keys: Annotated[
        Path | None,
        typer.Option(help="The folder that `broker keygen` made; who has no key in it gets nothing."),
    ] = None,
    env_file: WhatEnvFile = None,
    allow_read: WhatRead = None,
    trust_endpoint: WhatEndpoint = False,
) -> None:
    """Serve models until Ctrl-C. The address goes to stdout, once clients can connect."""
    import asyncio

    handlers = _handlers(models, Allowed.by(env_file, allow_read, None, trust_endpoint))
    try:
        asyncio.run(_serve(handlers, bind, curve_keys))
    except KeyboardInterrupt:  # the second; the first ends it in good order
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def keygen(
    folder: Annotated[Path, typer.Argument(help="The folder for `--curve-keys` of the service.")],
    client: Annotated[
        str | None, typer.Option(help="Make the keys of a client of that name, too: DIR/clients/NAME.")
    ] = None,
) -> None:
    """Make the keys of a service, and of one more client. None is ever written over."""
    from ..service import make_client_keys, make_server_keys

    if client is None or not (folder / "server.key").exists():
        make_server_keys(folder)
        print(f"{folder}: for --curve-keys of the service")
    if client is not None:
        made = make_client_keys(folder, client)
        print(f"{made}: for --curve-keys of {client}; copy the folder to its machine")


def _handlers(path: Path | None, allowed: Allowed) -> dict[str, ModelHandler]:
    """The models of a file, or of the environment.

    Raises:
        TaskError: there are none, or the file is wrong.
    """
    from ..errors import TaskError
    from ..model_specs import Role, specified_by
    from ..taskfile import TaskLimits, read_models

    environment = allowed.environment()
    specs: dict[Role, ModelSpec | None]
    if path is not None:
        file = read_models(path)
        specs = {"supervisor": file.supervisor, "worker": file.worker}
    else:
        specs = {role: specified_by(environment, role) for role in get_args(Role)}
    permissions = allowed.bind(path, environment)
    folder, context = permissions.subject.parent, TaskLimits().worker_ctx_k
    handlers: dict[str, ModelHandler] = {
        role: spec.build(role, folder, context, permissions) for role, spec in specs.items() if spec
    }
    if not handlers:
        raise TaskError(
            "no model to serve: name a file, such as models.json with "
            '{"worker": {"handler": "vllm", "model": "..."}}, or set TOGETHER_API_KEY, OPENAI_API_KEY or BASE_URL'
        )
    return handlers


async def _serve(handlers: dict[str, ModelHandler], bind: str, curve_keys: Path | None) -> None:
    import asyncio
    import contextlib
    import signal

    from ..service import Service, read_server_keys
    from .console import service_screen

    _allow_connections()
    keys = read_server_keys(curve_keys) if curve_keys is not None else None
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    with service_screen() as screen, contextlib.suppress(asyncio.CancelledError):
        async with Service(handlers, bind, keys=keys, on_trouble=screen.note) as service:
            names = ", ".join(f"{role} {handler.model}" for role, handler in handlers.items())
            screen.note(f"serving {names}; Ctrl-C ends it")
            print(service.address, flush=True)
            async with asyncio.TaskGroup() as group:
                group.create_task(_show(service, screen))
                group.create_task(service.serve())


async def _show(service: Service, screen: ServiceScreen) -> None:
    import asyncio

    while True:
        screen.show(service.load)
        await asyncio.sleep(_LOOK_SECONDS)


def _allow_connections() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
