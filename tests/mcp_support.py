"""MCP servers as their clients have them: processes that speak the protocol."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, TextContent
from process_support import COMMAND

from supdist.sandbox_image.image import default_tag

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""An image of one pixel."""


@dataclass(frozen=True)
class Server:
    """A server on stdio.

    Attributes:
        command: what starts it; options may follow.
        keeps_files: whether files outlive the interpreter.
        local: whether its processes are below its own.
    """

    name: str
    command: tuple[str, ...]
    keeps_files: bool
    local: bool = True


_CONTAINER = ("docker", "run", "-i", "--rm", "--network", "none", "--pids-limit", "128", "-m", "512m")

SERVERS = [
    Server("guest", (sys.executable, "-I", "-m", "supdist.sandbox_image.mcp", "--no-wall"), keeps_files=True),
    Server("sandbox", (*COMMAND, "mcp"), keeps_files=False),
    Server("container", (*_CONTAINER, default_tag(), "mcp"), keeps_files=True, local=False),
]


@asynccontextmanager
async def connected(server: Server, *options: str, mode: str = "legacy") -> AsyncGenerator[Client]:
    """The SDK's client of a server that was started for it."""
    command, *arguments = server.command
    environment = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    parameters = StdioServerParameters(command=command, args=[*arguments, *options], env=environment)
    async with asyncio.timeout(120), Client(stdio_client(parameters), mode=mode) as client:
        yield client


class Wire:
    """The protocol as it is on stdio, line by line: every line must be of it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._number = 0

    async def shake_hands(self) -> None:
        client = {"name": "test", "version": "0"}
        await self.ask(
            "initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        )
        self.say({"method": "notifications/initialized"})

    async def python(self, code: str) -> dict[str, Any]:
        return await self.ask("tools/call", {"name": "python", "arguments": {"code": code}})

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result of a request."""
        self._number += 1
        self.say({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(60):
            answer = await self.hear()
        assert answer["id"] == self._number
        return answer["result"]

    def say(self, message: dict[str, Any]) -> None:
        self._stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        message = json.loads(await self._stdout.readline())
        assert message["jsonrpc"] == "2.0"
        return message

    async def hang_up(self) -> bytes:
        """The rest of its stdout."""
        self._stdin.close()
        async with asyncio.timeout(60):
            return await self._stdout.read()


async def python(client: Client, code: str, **arguments: Any) -> CallToolResult:
    return await call(client, "python", code=code, **arguments)


async def call(client: Client, tool: str, **arguments: Any) -> CallToolResult:
    result = await client.call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    return result


def text(result: CallToolResult) -> str:
    """All text of a result, block after block."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def printed(client: Client, code: str, **arguments: Any) -> str:
    """What code that works prints."""
    result = await python(client, code, **arguments)
    assert not result.is_error, text(result)
    return text(result)
