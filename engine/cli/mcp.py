"""``supdist-engine mcp``: a sandbox for clients that speak MCP, on stdio or over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from .options import Backend, WhatBackend, WhatImage, WhatPackages, WhatRuntime, sandbox_config

if TYPE_CHECKING:
    import socket

    from ...sandbox_image.mcp.session import Settings
    from ..mcp.http import Door
    from ..sandbox import SandboxConfig

INTERRUPTED = 130

_CONNECTIONS_A_SESSION = 4
_CONNECTIONS_BESIDE = 64
_TOKEN_CHARS = 16


class HttpMayBeBare(TyperCommand):
    """``--http`` alone is ``--http 0``: any port that is free."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the port in where there is none."""
        places = [place for place, word in enumerate(args) if word == "--http"]
        for place in reversed(places):
            if place + 1 == len(args) or args[place + 1].startswith("-"):
                args = [*args[: place + 1], "0", *args[place + 1 :]]
        return super().parse_args(ctx, args)


def serve(
    *,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds that a call of `python` may take.")
    ] = 120.0,
    memory: Annotated[str, typer.Option(help="Memory of a session, such as 512MiB.")] = "2GiB",
    output: Annotated[str, typer.Option(help="Output after which code is stopped.")] = "16MiB",
    output_limit: Annotated[
        int, typer.Option(min=100, help="Characters of each text in a result; longer ones are cut.")
    ] = 30_000,
    packages: WhatPackages = None,
    backend: WhatBackend = Backend.PROCESS,
    image: WhatImage = None,
    runtime: WhatRuntime = None,
    warm: Annotated[
        int, typer.Option(min=0, help="docker: containers that are kept started ahead, for --http.")
    ] = 0,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="[PORT]",
            help="Serve streamable HTTP on this port of 127.0.0.1 (any free one without) instead of stdio.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="With --http: a file with the bearer token; else one is made and told."),
    ] = None,
    sessions: Annotated[
        int, typer.Option(min=1, max=1000, help="With --http: sessions at once, each with a sandbox.")
    ] = 8,
    idle: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="With --http: seconds after which an unused one ends.")
    ] = 600.0,
) -> None:
    """Serve a Python sandbox as tools of the Model Context Protocol (MCP): one for each client that connects."""
    import asyncio
    from importlib.metadata import version
    from importlib.util import find_spec

    from ...sandbox_image.mcp.session import Settings
    from ..errors import TaskError

    if find_spec("mcp") is None:
        raise TaskError("`supdist-engine mcp` needs the SDK of MCP: pip install 'supdist-engine[mcp]'")
    config = sandbox_config(
        timeout=timeout,
        wall=max(3600.0, timeout),
        memory=memory,
        output=output,
        packages=packages,
        backend=backend,
        image=image,
        runtime=runtime,
        warm=warm,
    )
    importable = f" and what lies in {Path(packages).name}" if packages else ""
    settings = Settings(
        timeout=timeout,
        output_limit=output_limit,
        packages=f"The standard library{importable} can be imported.",
        version=version("supdist-engine"),
    )
    if http is not None:
        # Before the import of the SDK, which takes a second: a wrong option is reported at once.
        port, token = _port(http), _token(token_file)
        from ..mcp.http import Door

        serving = _over_http(config, settings, port, Door(token, sessions, idle))
    elif token_file is not None:
        raise TaskError("--token-file is for --http; on stdio there is nobody else")
    else:
        serving = _over_stdio(config, settings)
    raise typer.Exit(asyncio.run(serving))


async def _over_stdio(config: SandboxConfig, settings: Settings) -> NoReturn:
    from functools import partial

    from ...sandbox_image.mcp.session import SessionError
    from ...sandbox_image.mcp.session_queue import Desk
    from ...sandbox_image.mcp.stdio import leave, serve_stdio
    from ..mcp.session import open_session

    desk = Desk(partial(open_session, config))
    try:
        status = await serve_stdio(desk, settings)
    except SessionError as error:
        raise error.__cause__ or error from None
    finally:
        await desk.close()
    leave(status)


async def _over_http(config: SandboxConfig, settings: Settings, port: int, door: Door) -> int:
    import asyncio
    import signal
    from functools import partial

    from ...sandbox_image.mcp.session_queue import Desk
    from ..mcp.http import HOST, PATH, Sessions, serve_http
    from ..mcp.session import open_session
    from ..sandbox import SandboxRuntime, open_sandbox

    status = 0
    stopped = asyncio.Event()

    def stop(number: int) -> None:
        nonlocal status
        status = number
        stopped.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop, INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, stop, 0)
    async with SandboxRuntime(config):
        async with open_sandbox(config):
            pass  # what cannot be had here is said before anybody connects
        listener = _listen(HOST, port)
        port = listener.getsockname()[1]
        table = Sessions(lambda: Desk(partial(open_session, config)), settings, door, port)
        print(f"http://{HOST}:{port}{PATH}", flush=True)
        await serve_http(
            table, listener, _CONNECTIONS_A_SESSION * door.sessions + _CONNECTIONS_BESIDE, stopped
        )
    return status


def _listen(host: str, port: int) -> socket.socket:
    import socket

    from ..errors import TaskError

    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise TaskError(f"--http: port {port} cannot be had: {error.strerror}") from error


def _port(text: str) -> int:
    """A port, with or without the one address that there is."""
    from ..errors import TaskError

    host, colon, port = text.rpartition(":")
    if (colon and host not in ("127.0.0.1", "localhost")) or (not colon and "." in text):
        raise TaskError(
            f"--http: {text} is not on this machine alone; it is served on 127.0.0.1 only. Let others in through "
            "something that authenticates and encrypts, such as ssh -L"
        )
    if not (port.isdecimal() and int(port) < 1 << 16):
        raise TaskError(f"--http: {port!r} is no port")
    return int(port)


def _token(path: Path | None) -> str:
    """The bearer token of a file, or a new one, which is told on stderr."""
    import secrets

    from ..errors import TaskError

    if path is None:
        token = secrets.token_urlsafe(32)
        print(f"bearer token: {token}", file=sys.stderr, flush=True)
        return token
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--token-file: {error}") from error
    if len(token) < _TOKEN_CHARS or any(letter.isspace() or not letter.isprintable() for letter in token):
        raise TaskError(
            f"--token-file: {path} needs one token of {_TOKEN_CHARS} characters or more, without spaces"
        )
    return token
