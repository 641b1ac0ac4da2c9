"""Task files of ``supdist-engine run``, and models files of ``supdist-engine broker``.

Every function raises ``TaskError`` for what is wrong or not permitted. Paths begin at the file's folder.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ByteSize, ConfigDict, Field, JsonValue, model_validator

from ..handlers.text_files import NotText, decode_text
from .config import RunConfig, option_of, pydantic_field
from .errors import TaskError
from .limits import RunLimits
from .model_specs import ModelSpec
from .private_files import read_file
from .sandbox import SandboxConfig
from .supervisor.prompts import Prompts
from .toolbox.loading import load_tool
from .toolbox.toolbox import Tool
from .trust import UNBOUND, Permissions
from .trust.permissions import readable_files
from .validation import MODULE_FUNCTION, checked

if TYPE_CHECKING:
    from .documents import Context

T = TypeVar("T", bound=BaseModel)


ToolPlace = Annotated[
    str,
    Field(
        pattern=MODULE_FUNCTION,
        description="a module beside the task file, or installed; it is imported, so it runs in the engine",
    ),
]


class TaskLimits(RunLimits):
    """The numbers among the options of a run."""

    max_iterations: int = pydantic_field("max_iterations")
    output_limit: int = pydantic_field("output_limit")
    worker_ctx_k: int = pydantic_field("worker_ctx_k")
    log_bytes: ByteSize | None = pydantic_field("log_bytes")


class TaskFile(BaseModel):
    """A question about a context, and how to answer it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="supdist-engine task")

    schema_: str | None = Field(default=None, alias="$schema", description="for editors")
    query: str = Field(min_length=1, description="the question")
    context: str | list[JsonValue] | dict[str, JsonValue] | None = Field(
        default=None, description="the document itself"
    )
    context_file: str | None = Field(
        default=None,
        description="or a file that holds it: text, JSON, HTML, PDF, Office, EPUB; or a folder or a pattern "
        "such as papers/*.pdf, for a dict of texts by name; relative to the task file",
    )
    context_files: list[str] | None = Field(
        default=None,
        min_length=1,
        description="or several files, folders and patterns: a dict of texts by name; "
        "relative to the task file",
    )
    raw_html: bool = Field(
        default=False, description="keep HTML of these files as it is, instead of converting it to text"
    )
    supervisor: ModelSpec | None = Field(
        default=None, description="the model that writes code; from the environment by default"
    )
    worker: ModelSpec | None = Field(
        default=None, description="the model that the code asks; from the environment by default"
    )
    sandbox: SandboxConfig = pydantic_field("sandbox", default_factory=SandboxConfig)
    limits: TaskLimits = Field(default_factory=TaskLimits, description="what the run may take")
    cache: str = pydantic_field("cache", note="relative to the task file", min_length=1)
    cache_sampled: bool = pydantic_field("cache_sampled")
    log_dir: str | None = pydantic_field("log_dir", note="relative to the task file")
    prompts_dir: str | None = Field(
        default=None, description=f"a folder with {option_of('prompts').doc}; relative to the task file"
    )
    tools: dict[str, ToolPlace] = pydantic_field(
        "tools", note="each as module:function", default_factory=dict[str, str]
    )

    @model_validator(mode="after")
    def _one_context(self) -> TaskFile:
        keys = ("context", "context_file", "context_files")
        given = [f"`{key}`" for key in keys if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"a task has {' and '.join(given)}; give one of them")
        if not given:
            raise ValueError("a task needs either `context` or `context_file` or `context_files`")
        return self

    async def read_context(
        self, folder: Path, permissions: Permissions = UNBOUND, stdin: Callable[[], bytes] | None = None
    ) -> Context:
        """Return the context, or read it from its files; ``stdin`` reads stdin."""
        from .documents import Context, read_context

        if self.context is not None:
            return Context(self.context)
        return await read_context(
            self._paths,
            folder=folder,
            permissions=permissions,
            name="context_file" if self.context_files is None else "context_files",
            stdin=stdin,
            raw_html=self.raw_html,
            many=self.context_files is not None,
        )

    @property
    def _paths(self) -> list[str]:
        if self.context_files is not None:
            return self.context_files
        return [] if self.context_file is None else [self.context_file]

    def run_config(self, folder: Path, permissions: Permissions = UNBOUND, **options: object) -> RunConfig:
        """Return the run's options, with prompts and tools loaded; ``options`` replace those of the file."""
        found: dict[str, object] = {
            **dict(self.limits),
            "sandbox": sandbox_in(self.sandbox, folder, permissions),
            "cache": self.cache,
            "cache_sampled": self.cache_sampled,
            "log_dir": self.log_dir,
            "tools": self.load_tools(folder, permissions),
        }
        if self.prompts_dir:
            found["prompts"] = prompts_in(folder / self.prompts_dir, permissions)
        return RunConfig.from_mapping(found | options)

    def load_tools(self, folder: Path, permissions: Permissions = UNBOUND) -> dict[str, Tool]:
        """Import the tools, which runs their modules' code, and return them by name."""
        # An import runs with the rights of the engine.
        if self.tools:
            places = ", ".join(self.tools.values())
            permissions.require_trust("tools", f"runs code in the engine, outside the sandbox ({places})")
        return {name: load_tool(name, place, folder) for name, place in self.tools.items()}


def sandbox_in(sandbox: SandboxConfig, folder: Path, permissions: Permissions = UNBOUND) -> SandboxConfig:
    """Return a sandbox's configuration with resolved paths."""
    # A file from elsewhere must not choose weaker isolation for its code.
    if sandbox.isolation != "strict":
        permissions.require_trust("sandbox.isolation", "accepts a sandbox with weaker isolation")
    if sandbox.packages is None:
        return sandbox
    packages = permissions.readable(folder / sandbox.packages, "sandbox.packages")
    return sandbox.model_copy(update={"packages": str(packages)})


def prompts_in(folder: Path, permissions: Permissions = UNBOUND) -> Prompts:
    """Return the prompts of a folder that a file names."""
    return Prompts.from_directory(readable_files(permissions, folder, "prompts_dir"))


class ModelsFile(BaseModel):
    """The models of a model server, by role."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    supervisor: ModelSpec | None = None
    worker: ModelSpec | None = None

    @model_validator(mode="after")
    def _some_model(self) -> ModelsFile:
        if self.supervisor is None and self.worker is None:
            raise ValueError("a models file needs `worker`, `supervisor`, or both")
        return self


def read_task(path: Path) -> TaskFile:
    """Read and check a task file; the error lists all mistakes."""
    return read_as(TaskFile, path, "task")


def read_models(path: Path) -> ModelsFile:
    """Read and check a models file."""
    return read_as(ModelsFile, path, "models")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a task file."""
    # By alias: in a file the key is "$schema".
    return TaskFile.model_json_schema(by_alias=True)


def read_as(model: type[T], path: Path, what: str) -> T:
    """Read a file as a model: TOML for .toml, else JSON."""
    return parse_as(model, _read(path, f"cannot read the {what} file"), path, what)


def parse_as(model: type[T], text: str, path: Path, what: str) -> T:
    """Return the text of a file as a model."""
    return checked(model, _parse(text, path), f"{path} is not a valid {what} file")


def _read(path: Path, complaint: str) -> str:
    try:
        data = read_file(path)
    except OSError as error:
        raise TaskError(f"{complaint} {path}: {error.strerror or error}") from error
    return decoded(data, f"{complaint} {path}")


def decoded(data: bytes, complaint: str) -> str:
    """Return the text of a task or models file.

    Raises:
        TaskError: it is no text, or has another encoding without a mark.
    """
    try:
        text, guessed = decode_text(data)
    except NotText as error:
        raise TaskError(f"{complaint}: {error}") from error
    # JSON and TOML are UTF-8, or have a mark. A guess could change a name or a key.
    if guessed is not None:
        raise TaskError(f"{complaint}: it is not UTF-8 text; save it as UTF-8")
    return text


def _parse(text: str, path: Path) -> Any:
    toml = path.suffix.lower() == ".toml"
    try:
        return tomllib.loads(text) if toml else json.loads(text)
    # RecursionError: deeply nested JSON.
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path} is not valid {'TOML' if toml else 'JSON'}: {error}") from error
