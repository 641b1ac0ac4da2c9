"""The MCP server: its tools, their descriptions and results."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ListToolsResult,
    PaginatedRequestParams,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..protocol import Outcome
from ..text import replace_surrogates
from . import content
from .session import FileRefused, SessionError, Settings
from .session_queue import SessionQueue

T = TypeVar("T", bound=BaseModel)

_MOST_FILES = 1000

_Context = ServerRequestContext[Any, Any]


class _Arguments(BaseModel):
    # A wrong name or type must be an error that the model sees, and no default.
    model_config = ConfigDict(extra="forbid", strict=True)


class _Python(_Arguments):
    code: str = Field(description="Python source: statements, as many as you like.")
    timeout: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        # Clients send numbers as text, too.
        strict=False,
        description="Seconds after which it is stopped.",
    )


class _NoArguments(_Arguments):
    pass


class _PutFile(_Arguments):
    path: str = Field(description="Relative to the folder; folders on the way are made.")
    content: str = Field(description="The whole file: text, or base64 of any bytes.")
    encoding: Literal["text", "base64"] = Field(default="text", description="What `content` is.")


class _GetFile(_Arguments):
    path: str = Field(description="Relative to the folder.")


class _File(BaseModel):
    path: str
    size: int = Field(description="In bytes.")


class _Files(BaseModel):
    files: list[_File]
    more: bool = Field(description="Whether there are others, which are left out.")


def build(queue: SessionQueue, settings: Settings) -> Server[dict[str, Any]]:
    """Return a server for one client."""
    tools = Tools(queue, settings)
    return Server(
        "supdist-engine",
        version=settings.version,
        title="Python sandbox",
        instructions=(
            "An isolated Python interpreter: no network, and no files but its own. Variables stay from call "
            "to call. See the tool `python`."
        ),
        on_list_tools=tools.list,
        on_call_tool=tools.call,
    )


class Tools:
    """The tools of one client's session."""

    def __init__(self, queue: SessionQueue, settings: Settings) -> None:
        self._queue = queue
        self._settings = settings
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[CallToolResult]]] = {
            "python": self._python,
            "reset": self._reset,
            "put_file": self._put_file,
            "get_file": self._get_file,
            "list_files": self._list_files,
        }

    async def list(self, _: _Context, __: PaginatedRequestParams | None) -> ListToolsResult:
        """Return the tools, described for a model."""
        return ListToolsResult(tools=_describe(self._settings))

    async def call(self, _: _Context, request: CallToolRequestParams) -> CallToolResult:
        """Call a tool.

        Raises:
            MCPError: the tool is unknown.
        """
        handler = self._handlers.get(request.name)
        if handler is None:
            raise MCPError(INVALID_PARAMS, f"the tool is unknown; the tools are {', '.join(self._handlers)}")
        try:
            return await handler(request.arguments or {})
        except ValidationError as error:
            problems = (_problem(each["loc"], each["msg"]) for each in error.errors(include_url=False))
            # A result, not an error of the protocol: the model sees it and can try again.
            return _failed(f"Wrong arguments for {request.name}: {'; '.join(problems)}.")
        except SessionError as error:
            return _failed(f"{error}.")

    async def _python(self, arguments: dict[str, Any]) -> CallToolResult:
        call, settings = _Python.model_validate(arguments), self._settings
        timeout = min(call.timeout or settings.timeout, settings.timeout)
        cell = await self._queue.execute(call.code, timeout)
        steps = content.contents(
            cell, timeout=timeout, limit=settings.output_limit, keeps_files=settings.keeps_files
        )
        blocks = await _with_pauses(steps)
        # Without structured content, or clients show the model nothing else.
        return CallToolResult(content=blocks, is_error=cell.outcome is not Outcome.OK)

    async def _reset(self, arguments: dict[str, Any]) -> CallToolResult:
        _NoArguments.model_validate(arguments)
        await self._queue.reset()
        return _result(content.text(content.new_session_text(keeps_files=self._settings.keeps_files)))

    async def _put_file(self, arguments: dict[str, Any]) -> CallToolResult:
        call = _PutFile.model_validate(arguments)
        if call.encoding == "text":
            data = replace_surrogates(call.content).encode()
        else:
            try:
                data = base64.b64decode(call.content, validate=True)
            except ValueError as error:
                raise FileRefused(f"`content` is not valid base64: {error}") from None
        if len(data) > self._settings.file_limit:
            raise FileRefused(
                f"the file has {len(data)} bytes; at most {self._settings.file_limit} are allowed"
            )
        await self._queue.put(call.path, data)
        return _result(content.text(f"{len(data)} bytes written."))

    async def _get_file(self, arguments: dict[str, Any]) -> CallToolResult:
        call = _GetFile.model_validate(arguments)
        data = await self._queue.get(call.path, self._settings.file_limit)
        # A path may hold lone surrogates, which no URI can.
        uri = f"file://{self._settings.folder}/{quote(call.path, errors='replace')}"
        return _result(content.file_content(uri, data))

    async def _list_files(self, arguments: dict[str, Any]) -> CallToolResult:
        _NoArguments.model_validate(arguments)
        found = await self._queue.list(_MOST_FILES)
        files = _Files(
            files=[_File(path=each.path, size=each.size) for each in found.entries], more=found.more
        )
        return CallToolResult(
            content=[content.text(files.model_dump_json())], structured_content=files.model_dump(mode="json")
        )


def _result(block: ContentBlock) -> CallToolResult:
    return CallToolResult(content=[block])


def _failed(message: str) -> CallToolResult:
    return CallToolResult(content=[content.text(message)], is_error=True)


def _problem(place: tuple[int | str, ...], message: str) -> str:
    return f"`{'.'.join(map(str, place))}`: {message}" if place else message


def _describe(settings: Settings) -> list[Tool]:
    folder = settings.folder
    kept = "the files are kept" if settings.keeps_files else "so is every file"
    loss = f"every variable is lost, {kept}"
    return [
        _tool(
            "python",
            "Run Python",
            f"Run Python in a session that lasts: variables, functions and imports stay for the next call. "
            f"Returns what was printed to stdout and stderr, the value of the last expression, images, and "
            f"the traceback where the code raises (the variables set before are kept). {settings.packages} "
            f"There is no network. The working directory is {folder}; files there can be exchanged with "
            f"put_file and get_file. A call may take {settings.timeout:g} s; then it is interrupted, and the "
            f"variables are kept if it stops at once. Each text in a result is cut to "
            f"{settings.output_limit} characters in the middle: print what you need, write the rest to a "
            f"file. If the interpreter dies (crash, out of memory), the result says so: {loss}, and a new "
            f"session has begun. Calls are served one after another.",
            _Python,
            ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False
            ),
        ),
        _tool(
            "reset",
            "Start afresh",
            f"End the Python session with all its processes and begin a new one: {loss}.",
            _NoArguments,
            ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
            ),
        ),
        _tool(
            "put_file",
            "Write a file",
            f"Write a file below {folder}, where Python code finds it; one that is there is replaced. At "
            f"most {settings.file_limit} bytes.",
            _PutFile,
            ToolAnnotations(
                read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
            ),
        ),
        _tool(
            "get_file",
            "Read a file",
            f"Read a whole file below {folder}: an image as an image, UTF-8 as text, anything else as base64 "
            f"in an embedded resource. At most {settings.file_limit} bytes; read parts of a long one with "
            f"Python.",
            _GetFile,
            ToolAnnotations(read_only_hint=True, open_world_hint=False),
        ),
        _tool(
            "list_files",
            "List files",
            f"Name the regular files below {folder} with their sizes, at most {_MOST_FILES}.",
            _NoArguments,
            ToolAnnotations(read_only_hint=True, open_world_hint=False),
            result=_Files,
        ),
    ]


async def _with_pauses(steps: Generator[None, None, list[ContentBlock]]) -> list[ContentBlock]:
    """Do the steps; other clients are served in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            blocks: list[ContentBlock] = end.value
            return blocks
        await asyncio.sleep(0)


def _tool(
    name: str,
    title: str,
    description: str,
    arguments: type[BaseModel],
    annotations: ToolAnnotations,
    *,
    result: type[BaseModel] | None = None,
) -> Tool:
    return Tool(
        name=name,
        title=title,
        description=description,
        input_schema=arguments.model_json_schema(),
        output_schema=result.model_json_schema() if result else None,
        annotations=annotations,
    )
