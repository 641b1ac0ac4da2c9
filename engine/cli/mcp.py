"""The command ``supdist-engine mcp``: a sandbox for MCP clients, on stdio or over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .command import Command
from .options import (
    MOST_SECONDS,
    Backend,
    BackendOption,
    ImageOption,
    PackagesOption,
    RuntimeOption,
    sandbox_config,
)
from .signals import at_signal

if TYPE_CHECKING:
    import asyncio
    import socket

    from ...sandbox_image.mcp.session import Settings
    from ..mcp.http import AccessPolicy
    from ..sandbox import SandboxConfig

# Those of each session, and of clients that have none yet.
_CONNECTIONS_PER_SESSION = 4
_MORE_CONNECTIONS = 64
# A shorter one could be guessed.
_LEAST_TOKEN_CHARS = 16
# The default of SandboxConfig.wall; a longer --timeout raises it.
_LEAST_WALL_SECONDS = 3600.0


class OptionalPortCommand(Command):
    """A command in which ``--http`` alone means ``--http 0``, any free port."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; insert port 0 after an ``--http`` without a port."""
        places = [place for place, word in enumerate(args) if word == "--http"]
        # From the end: an insertion moves the places after it.
        for place in reversed(places):
            if place + 1 == len(args) or args[place + 1].startswith("-"):
                args = [*args[: place + 1], "0", *args[place + 1 :]]
        return super().parse_args(ctx, args)


CallTimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.001,
        max=MOST_SECONDS,
        help="Stop a call of the tool `python` after this many seconds.",
    ),
]
OutputLimitOption = Annotated[
    int,
    typer.Option(
        "--output-limit",
        min=100,
        help="Show at most this many characters of each text; the middle is cut out.",
    ),
]
WarmOption = Annotated[
    int,
    typer.Option(
        "--warm", min=0, help="With --http and --backend docker: keep this many started containers ready."
    ),
]
HttpOption = Annotated[
    str | None,
    typer.Option(
        "--http",
        metavar="[PORT]",
        help="Serve streamable HTTP on this port of 127.0.0.1 instead of stdio; any free port without PORT.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="With --http: a file that holds the bearer token. Default: print a new one on stderr.",
    ),
]
SessionsOption = Annotated[
    int,
    typer.Option(
        "--sessions",
        min=1,
        max=1000,
        help="With --http: allow this many sessions at once. Each has its own sandbox.",
    ),
]
IdleOption = Annotated[
    float,
    typer.Option(
        "--idle",
        min=0.1,
        max=MOST_SECONDS,
        help="With --http: end a session that was unused for this many seconds.",
    ),
]


def serve(
    *,
    timeout: CallTimeoutOption = 120.0,
    memory: Annotated[str, typer.Option(help="Memory of a session, such as 512MiB.")] = "2GiB",
    output: Annotated[str, typer.Option(help="Stop code that writes more than this.")] = "16MiB",
    output_limit: OutputLimitOption = 30_000,
    packages: PackagesOption = None,
    backend: BackendOption = Backend.PROCESS,
    image: ImageOption = None,
    runtime: RuntimeOption = None,
    warm: WarmOption = 0,
    http: HttpOption = None,
    token_file: TokenFileOption = None,
    sessions: SessionsOption = 8,
    idle: IdleOption = 600.0,
) -> None:
    """Serve a Python sandbox as tools of the Model Context Protocol (MCP), one sandbox for each client."""
    import asyncio

    from ..errors import TaskError

    _require_sdk()
    config = sandbox_config(
        timeout=timeout,
        wall=max(_LEAST_WALL_SECONDS, timeout),
        memory=memory,
        output=output,
        packages=packages,
        backend=backend,
        image=image,
        runtime=runtime,
        warm=warm,
    )
    settings = _settings(timeout, output_limit, packages)
    if http is not None:
        # Read before the import of the SDK, which takes a second, so that a wrong option is reported at once.
        port, token = _port(http), _token(token_file)
        from ..mcp.http import AccessPolicy

        serving = _serve_http(config, settings, port, AccessPolicy(token, sessions, idle))
    elif token_file is not None:
        raise TaskError("--token-file is for --http; a server on stdio has no other clients")
    else:
        serving = _serve_stdio(config, settings)
    raise typer.Exit(asyncio.run(serving))


def _require_sdk() -> None:
    from importlib.util import find_spec

    from ..errors import TaskError

    # The SDK is an extra; an ImportError would not say how to get it.
    if find_spec("mcp") is None:
        raise TaskError("the MCP SDK is not installed; run: pip install 'supdist-engine[mcp]'")


def _settings(timeout: float, output_limit: int, packages: str | None) -> Settings:
    from importlib.metadata import version

    from ...sandbox_image.mcp.session import Settings

    more = f" and the packages in {Path(packages).name}" if packages else ""
    return Settings(
        timeout=timeout,
        output_limit=output_limit,
        packages=f"The standard library{more} can be imported.",
        version=version("supdist-engine"),
    )


async def _serve_stdio(config: SandboxConfig, settings: Settings) -> NoReturn:
    from functools import partial

    from ...sandbox_image.mcp.session import SessionError
    from ...sandbox_image.mcp.session_queue import SessionQueue
    from ...sandbox_image.mcp.stdio import exit_now, serve_stdio
    from ..mcp.session import open_session

    queue = SessionQueue(partial(open_session, config))
    with _stopped_by_signal() as stopped:
        try:
            status = await serve_stdio(queue, settings, stopped)
        except SessionError as error:
            # The cause is the engine's own error, which has an exit code.
            raise error.__cause__ or error from None
        finally:
            await queue.close()
        # A thread may still wait for a line on stdin.
        exit_now(status)


async def _serve_http(config: SandboxConfig, settings: Settings, port: int, access: AccessPolicy) -> int:
    from functools import partial

    from ...sandbox_image.mcp.session_queue import SessionQueue
    from ..mcp.http import HOST, PATH, Sessions, serve_http
    from ..mcp.session import open_session
    from ..sandbox import SandboxRuntime, open_sandbox

    # Every session closes its sandbox first.
    with _stopped_by_signal() as stopped:
        async with SandboxRuntime(config):
            # Without a sandbox the server is of no use: report that before a client connects.
            async with open_sandbox(config):
                pass
            listener = _listen(HOST, port)
            # Port 0 has become a free port.
            port = listener.getsockname()[1]
            table = Sessions(lambda: SessionQueue(partial(open_session, config)), settings, access, port)
            print(f"http://{HOST}:{port}{PATH}", flush=True)
            connections = _CONNECTIONS_PER_SESSION * access.sessions + _MORE_CONNECTIONS
            await serve_http(table, listener, connections, stopped)
    return stopped.result()


@contextmanager
def _stopped_by_signal() -> Generator[asyncio.Future[int]]:
    import asyncio

    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        # SIGTERM is how a client or a service manager ends a server.
        status = 0 if number == SIGTERM else 128 + number
        # Threadsafe, since it wakes the loop.
        loop.call_soon_threadsafe(stopped.set_result, status)

    with at_signal(stop):
        yield stopped


def _listen(host: str, port: int) -> socket.socket:
    import socket

    from ..errors import TaskError

    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise TaskError(
            f"--http: cannot listen on {host}:{port}: {error.strerror}; choose another port"
        ) from error


def _port(text: str) -> int:
    from ..errors import TaskError

    # PORT alone, or with a name of this machine: no other address is served.
    host, colon, port = text.rpartition(":")
    if (colon and host not in ("127.0.0.1", "localhost")) or (not colon and "." in text):
        raise TaskError(
            f"--http {text}: the server listens on 127.0.0.1 only; give a port, and let others in through "
            "a program that authenticates and encrypts, such as ssh -L"
        )
    if not (port.isdecimal() and int(port) < 1 << 16):
        raise TaskError(f"--http: {port!r} is no port; give a number from 0 to 65535")
    return int(port)


def _token(path: Path | None) -> str:
    import secrets

    from ..errors import TaskError

    if path is None:
        token = secrets.token_urlsafe(32)
        # On stderr: stdout has the address alone, for scripts.
        print(f"bearer token: {token}", file=sys.stderr, flush=True)
        return token
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--token-file: cannot read the token: {error}") from error
    is_plain = token.isprintable() and not any(letter.isspace() for letter in token)
    if len(token) < _LEAST_TOKEN_CHARS or not is_plain:
        raise TaskError(
            f"--token-file: {path} must hold one token: {_LEAST_TOKEN_CHARS} characters or more, no spaces"
        )
    return token
