"""The commands ``supdist-engine broker``: serve models to engines, and make keys."""

from __future__ import annotations

from pathlib import Path
from signal import SIGHUP
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from .command import group_with_default, with_examples
from .permissions import Allowed, AllowReadOption, EnvFileOption, TrustEndpointOption
from .signals import Stopped, run_until_signal

if TYPE_CHECKING:
    from ...handlers import ModelHandler
    from ..model_specs import ModelSpec
    from ..service import Service
    from .console import ServiceScreen

# Each engine is a connection, and so is each request to an endpoint.
_OPEN_FILES = 16384
_REFRESH_SECONDS = 0.5


app = typer.Typer(
    cls=group_with_default(
        "serve",
        "supdist-engine broker models.json --bind ipc:///tmp/models.sock",
        "supdist-engine broker keygen keys --client laptop",
    ),
    help="Serve models to engines on this and other machines (`broker [MODELS] --bind ADDRESS`), "
    "or make keys.",
    epilog="Exit codes: 0 ended by Ctrl-C or SIGTERM, 2 wrong file, address or keys, 129 SIGHUP.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(
    cls=with_examples(
        "supdist-engine broker serve models.json --bind ipc:///tmp/models.sock",
        "supdist-engine broker serve models.json --bind tcp://127.0.0.1:5555 --curve-keys keys",
    )
)
def serve(
    *,
    bind: Annotated[
        str,
        typer.Option(
            help="ipc://PATH or tcp://HOST:PORT. PORT * is any free port. tcp needs --curve-keys.",
        ),
    ],
    models: Annotated[
        Path | None,
        typer.Argument(
            help="A JSON or TOML file with `worker`, `supervisor` or both, as in a task file. "
            "Default: the models of the environment."
        ),
    ] = None,
    curve_keys: Annotated[
        Path | None,
        typer.Option(help="The folder that `broker keygen` made. Only clients with a key in it are served."),
    ] = None,
    env_file: EnvFileOption = None,
    allow_read: AllowReadOption = None,
    trust_endpoint: TrustEndpointOption = False,
) -> None:
    """Serve models until Ctrl-C. The address goes to stdout when clients can connect."""
    handlers = _handlers(models, Allowed.from_options(env_file, allow_read, None, trust_endpoint))
    try:
        # A signal cancels the requests, then closes the server.
        run_until_signal(_serve(handlers, bind, curve_keys))
    except Stopped as stopped:
        raise typer.Exit(stopped.status if stopped.number == SIGHUP else 0) from None


@app.command(cls=with_examples("supdist-engine broker keygen keys --client laptop"))
def keygen(
    folder: Annotated[Path, typer.Argument(help="The folder of the server's keys, for its --curve-keys.")],
    client: Annotated[
        str | None,
        typer.Option(help="Make keys for a client of this name, too, in FOLDER/clients/NAME."),
    ] = None,
) -> None:
    """Make the keys of a server, and of a client. No key is ever overwritten."""
    from ..service import make_client_keys, make_server_keys

    # For a further client, the server's keys are there already.
    if client is None or not (folder / "server.key").exists():
        make_server_keys(folder)
        print(f"{folder}: for --curve-keys of the server")
    if client is not None:
        made = make_client_keys(folder, client)
        print(f"{made}: for --curve-keys of {client}; copy the folder to its machine")


def _handlers(path: Path | None, allowed: Allowed) -> dict[str, ModelHandler]:
    from ..config import RunConfig
    from ..errors import TaskError
    from ..model_specs import Role, configured
    from ..taskfile import read_models

    environment = allowed.environment()
    specs: dict[Role, ModelSpec | None]
    if path is not None:
        file = read_models(path)
        specs = {"supervisor": file.supervisor, "worker": file.worker}
    else:
        # Without a file the environment may name one model, or both.
        specs = {role: configured(environment, role) for role in get_args(Role)}
    permissions = allowed.bind(path, environment)
    folder, worker_ctx_k = permissions.subject.parent, RunConfig().worker_ctx_k
    handlers: dict[str, ModelHandler] = {
        role: spec.build(role, folder, worker_ctx_k, permissions) for role, spec in specs.items() if spec
    }
    if not handlers:
        raise TaskError(
            "no model to serve: name a file, such as models.json with "
            '{"worker": {"handler": "vllm", "model": "..."}}, '
            "or set TOGETHER_API_KEY, OPENAI_API_KEY or BASE_URL"
        )
    return handlers


async def _serve(handlers: dict[str, ModelHandler], bind: str, curve_keys: Path | None) -> None:
    import asyncio

    from ..service import Service, read_server_keys
    from .console import service_screen

    _raise_open_file_limit()
    keys = read_server_keys(curve_keys) if curve_keys is not None else None
    with service_screen() as screen:
        async with Service(handlers, bind, keys=keys, on_trouble=screen.note) as service:
            names = ", ".join(f"{role} {handler.model}" for role, handler in handlers.items())
            screen.note(f"serving {names}; Ctrl-C ends it")
            # A script waits for this line. A port that was * has its number now.
            print(service.address, flush=True)
            async with asyncio.TaskGroup() as group:
                group.create_task(_show_load(service, screen))
                group.create_task(service.serve())


async def _show_load(service: Service, screen: ServiceScreen) -> None:
    import asyncio

    while True:
        screen.show(service.load)
        await asyncio.sleep(_REFRESH_SECONDS)


def _raise_open_file_limit() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Without rights a process can raise its soft limit only up to the hard one.
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
