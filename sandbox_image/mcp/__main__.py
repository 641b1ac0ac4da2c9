"""``python -I -m supdist.sandbox_image.mcp``: the image's MCP server on stdio.

Exit codes: 0 client gone or SIGTERM · 2 wrong arguments or no container · 4 no Python process · 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from .. import protocol
from . import processes
from .local import Limits, LocalSession
from .session import SessionError, Settings
from .session_queue import SessionQueue
from .stdio import exit_now, serve_stdio, stopped_by_signal

# Exit codes.
USAGE, NO_SESSION = 2, 4

# The image sets it: its container isolates the code.
_CONTAINER_VARIABLE = "SUPDIST_WALL"


def main() -> None:
    """Serve one client and end the process."""
    arguments = _arguments()
    if os.environ.get(_CONTAINER_VARIABLE) == "container":
        asyncio.run(_serve(arguments, nullcontext(protocol.WORK)))
    elif arguments.no_wall:
        print("Nothing isolates the code: it has all rights of your user.", file=sys.stderr)
        # A child that outlives its kill may still write here.
        own = tempfile.TemporaryDirectory(prefix="supdist-mcp-", ignore_cleanup_errors=True)
        asyncio.run(_serve(arguments, own))
    else:
        print(
            "This server runs only in the image's container, which isolates the code. For a sandbox here "
            "use `supdist-engine mcp`. With --no-wall the code runs here without isolation, with all rights "
            "of your user.",
            file=sys.stderr,
        )
        sys.exit(USAGE)


async def _serve(arguments: argparse.Namespace, place: AbstractContextManager[str]) -> NoReturn:
    # Before the guest starts: it inherits the capabilities, and runs as the same user.
    processes.drop_privileges()
    processes.close_own_files()
    with place as folder:
        settings = Settings(
            timeout=arguments.timeout,
            output_limit=arguments.output_limit,
            folder=folder,
            keeps_files=True,
            packages="The standard library can be imported, and what the image has installed.",
        )
        queue = SessionQueue(
            LocalSession(Path(folder), Limits(output=arguments.output, grace=arguments.grace)).start
        )
        try:
            status = await serve_stdio(queue, settings, stopped_by_signal())
        except SessionError as error:
            print(error, file=sys.stderr)
            status = NO_SESSION
        finally:
            await queue.close()
    exit_now(status)


def _arguments() -> argparse.Namespace:
    default, limits = Settings(), Limits()
    parser = argparse.ArgumentParser(
        prog="mcp", description="An MCP server on stdio: a Python session isolated by this container."
    )
    add = parser.add_argument
    add("--timeout", type=_positive, default=default.timeout, help="seconds for a call of `python`, at most")
    add(
        "--grace",
        type=_positive,
        default=limits.grace,
        help="seconds from the interrupt of a cell to its kill",
    )
    add(
        "--output",
        type=_count,
        default=limits.output,
        help="bytes that code may write to stdout, and to stderr",
    )
    add(
        "--output-limit",
        type=_count,
        default=default.output_limit,
        help="characters of a text that are shown",
    )
    add(
        "--no-wall",
        action="store_true",
        help="run the code without isolation, with all rights of your user",
    )
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {1 << 30}")
    return value


if __name__ == "__main__":
    main()
