"""MCP servers as processes, and clients of them."""

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
    """Start a server and connect the SDK's client."""
    command, *arguments = server.command
    environment = {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    parameters = StdioServerParameters(command=command, args=[*arguments, *options], env=environment)
    async with asyncio.timeout(120), Client(stdio_client(parameters), mode=mode) as client:
        yield client


class StdioClient:
    """A client that reads and writes JSON-RPC line by line; every line must be a message."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._number = 0

    async def initialize(self) -> None:
        client = {"name": "test", "version": "0"}
        await self.request(
            "initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        )
        self.send({"method": "notifications/initialized"})

    async def python(self, code: str) -> dict[str, Any]:
        return await self.request("tools/call", {"name": "python", "arguments": {"code": code}})

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its result."""
        self._number += 1
        self.send({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(60):
            answer = await self.receive()
        assert answer["id"] == self._number
        return answer["result"]

    def send(self, message: dict[str, Any]) -> None:
        self._stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        message = json.loads(await self._stdout.readline())
        assert message["jsonrpc"] == "2.0"
        return message

    async def close(self) -> bytes:
        """Close the server's stdin; return the rest of its stdout."""
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
    """Return all text of a result."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def printed(client: Client, code: str, **arguments: Any) -> str:
    """Run code that works; return what it prints."""
    result = await python(client, code, **arguments)
    assert not result.is_error, text(result)
    return text(result)
