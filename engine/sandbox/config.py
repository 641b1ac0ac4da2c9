"""The configuration of a sandbox, and its results."""

from __future__ import annotations

import base64
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import structs
from pydantic import BeforeValidator, ByteSize, Field, model_validator

from ...sandbox_image import protocol
from ...sandbox_image.protocol import CallCode, CallError, ErrorInfo, FileEntry, Outcome, Usage
from ..safe_html import facts_html, forms_html, output_html, text_html
from ..validation import Options

__all__ = [
    "CallCode",
    "CallError",
    "CellResult",
    "Display",
    "ErrorInfo",
    "FileEntry",
    "Isolation",
    "Listing",
    "OnCall",
    "Outcome",
    "SandboxConfig",
    "Usage",
    "WorkerCall",
    "as_data",
]

# The largest answer or block fits, with room to spare.
_LEAST_FRAME = 16 << 20
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

if TYPE_CHECKING:

    class Size:
        """Type a field that takes bytes, or text such as ``"512MiB"``, and reads as an int."""

        # A type checker takes the type of the constructor's parameter from ``__set__`` (PEP 681).

        def __get__(self, config: object, kind: type | None = None) -> int: ...

        def __set__(self, config: object, value: int | str) -> None: ...

    class Folder:
        """Type a field that takes a path, as text or ``pathlib.Path``, and reads as text or None."""

        def __get__(self, config: object, kind: type | None = None) -> str | None: ...

        def __set__(self, config: object, value: str | os.PathLike[str] | None) -> None: ...

else:
    Size = ByteSize

    def _as_text(value: object) -> object:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        # ``~`` is the shell's, and in Python nobody else replaces it.
        return os.path.expanduser(value) if isinstance(value, str) else value

    Folder = Annotated[str | None, BeforeValidator(_as_text)]


def _size(default: int, least: int, most: int, description: str) -> Any:
    return Field(
        default=ByteSize(default), ge=least, le=most, description=description, validate_default=False
    )


def _folder(description: str) -> Any:
    return Field(default=None, min_length=1, description=description)


class SandboxConfig(Options):
    """Limits of one sandbox. Sizes are bytes, or text such as ``"512MiB"``; times are seconds."""

    backend: Literal["process", "docker"] = Field(
        default="process", description="what isolates the sandbox: our own processes, or containers"
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        description="docker: an image built on ours; by default the one of `supdist-engine image build`",
    )
    runtime: str | None = Field(
        default=None, min_length=1, description="docker: the daemon's runtime, such as runsc (gVisor)"
    )
    warm: int = Field(
        default=0,
        ge=0,
        le=256,
        description="docker: containers that are kept started, each for one sandbox",
    )
    isolation: Literal["strict", "best_effort"] = Field(
        default="strict",
        description="best_effort accepts a sandbox without system-call filter, or a container without limits",
    )
    timeout: float = Field(
        default=120.0, gt=0, le=86_400, description="seconds for a cell, not counting its waits for workers"
    )
    wall: float = Field(
        default=3600.0, gt=0, le=86_400, description="seconds for a cell with its waits for workers"
    )
    grace: float = Field(
        default=1.0, ge=0.01, le=60, description="seconds from the interrupt of a cell to its kill"
    )
    start_timeout: float = Field(default=30.0, gt=0, le=600, description="seconds for a sandbox to start")
    memory: Size = _size(2 * GIB, 64 * MIB, 1024 * GIB, "memory of all its processes")
    pids: int = Field(default=64, ge=4, le=32_768, description="processes and threads at once")
    cpus: float = Field(default=1.0, ge=0.01, le=1024, description="processors' worth of time")
    cpu_seconds: int = Field(default=3600, ge=1, le=1_000_000, description="processor time of a process")
    open_files: int = Field(default=256, ge=64, le=65_536, description="open files of a process")
    scratch: Size = _size(256 * MIB, MIB, 1024 * GIB, "size of /work, /tmp and /dev/shm together")
    scratch_files: int = Field(default=16_384, ge=64, le=10_000_000, description="files in them")
    output: Size = _size(16 * MIB, KIB, GIB, "output of a cell, of stdout and of stderr")
    display: Size = _size(8 * MIB, KIB, 32 * MIB, "what a cell shows: its last value and its figures")
    prompt: Size = _size(4 * MIB, KIB, 16 * MIB, "one prompt to a worker")
    batch: int = Field(
        default=1024,
        ge=1,
        le=65_536,
        description="prompts in one message of a worker_batch; longer lists take several",
    )
    pending_calls: int = Field(
        default=8192,
        ge=1,
        le=1_000_000,
        description="prompts that wait for workers at once; a guest with more of them waits",
    )

    packages: Folder = _folder(
        "a folder made by `pip install --target`, which the code can import from; "
        "relative to the task file, or in Python to the current directory",
    )
    calls_per_second: float = Field(
        default=10_000.0,
        gt=0,
        le=1e6,
        description="worker calls and tool calls a second; a faster guest is slowed down",
    )

    @model_validator(mode="after")
    def _docker_alone(self) -> SandboxConfig:
        if self.backend != "docker":
            for name in ("image", "runtime", "warm"):
                if getattr(self, name):
                    raise ValueError(f'{name} is for containers: add "backend": "docker"')
        return self

    def resource_limits(self) -> protocol.ResourceLimits:
        """Return the limits that the kernel enforces."""
        return protocol.ResourceLimits(
            memory_bytes=int(self.memory),
            pids=self.pids,
            cpus=self.cpus,
            cpu_seconds=self.cpu_seconds,
            open_files=self.open_files,
            # Twice: a guest then gets "no space left" before "file too large".
            file_bytes=2 * int(self.scratch),
            scratch_bytes=int(self.scratch),
            scratch_inodes=self.scratch_files,
        )

    def session_limits(self, tools: int = 0) -> protocol.SessionLimits:
        """Return the limits that the shim checks, with the number of the host's tools."""
        return protocol.SessionLimits(
            output_bytes=int(self.output),
            result_bytes=protocol.result_bytes(int(self.output)),
            display_bytes=int(self.display),
            frame_bytes=min(
                protocol.MAX_FRAME_BYTES, max(_LEAST_FRAME, 4 * int(self.prompt), 2 * int(self.display))
            ),
            prompt_bytes=int(self.prompt),
            batch=self.batch,
            pending_calls=self.pending_calls,
            calls_per_second=self.calls_per_second,
            wall_seconds=self.wall,
            grace_seconds=self.grace,
            tools=tools,
        )


GVISOR = "docker/runsc"
# A container's user ids are those of the daemon's machine.
_CONTAINER = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_NAMESPACES = {"process": (*_CONTAINER, "user"), "docker": _CONTAINER, GVISOR: ()}


@dataclass(frozen=True, slots=True)
class Isolation:
    """The isolation, as the guest measured it.

    Attributes:
        backend: ``process``, ``docker`` or ``docker/runsc``.
        namespaces: kinds that differ from the host's, sorted.
        network: whether there is more than a loopback.
        capabilities: bits of the Linux capabilities.
        limited: whether something holds each of the next three.
        memory, processes, cpus: what holds the limit, such as ``cgroup`` or ``watchdog every 0.01 to 0.1 s``;
            ``daemon`` on another machine. None if nothing does.
        lowered: limits that the engine's own are below, with both figures; only with ``best_effort``.
    """

    backend: str
    namespaces: tuple[str, ...]
    network: bool
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    root_writable: bool
    limited: bool
    # Logs of older versions do not have these.
    memory: str | None = None
    processes: str | None = None
    cpus: str | None = None
    lowered: tuple[str, ...] = ()

    @classmethod
    def from_facts(
        cls,
        backend: str,
        facts: protocol.Facts,
        host: dict[str, int],
        held: protocol.Enforcement,
        lowered: tuple[str, ...] = (),
    ) -> Isolation:
        """Compare the guest's facts with the host's namespaces."""
        # Namespaces are equal if their inode numbers are.
        own = sorted(name for name, inode in facts.namespaces.items() if host.get(name) != inode)
        return cls(
            backend=backend,
            # ``pid_for_children`` is the namespace of later children, and no kind of its own.
            namespaces=tuple(name for name in own if not name.endswith("_for_children")),
            network=any(name != "lo" for name in facts.interfaces),
            capabilities=facts.capabilities,
            no_new_privs=facts.no_new_privs,
            seccomp=facts.seccomp,
            root_writable=facts.root_writable,
            limited=None not in (held.memory, held.processes, held.cpus),
            memory=held.memory,
            processes=held.processes,
            cpus=held.cpus,
            lowered=lowered,
        )

    def shared_namespaces(self) -> list[str]:
        """Return the kinds that are shared with the host and should not be."""
        return [name for name in _NAMESPACES[self.backend] if name not in self.namespaces]

    def missing(self) -> list[str]:
        """Return what the level ``strict`` lacks here."""
        # Under gVisor namespaces and the filter belong to its own kernel, not to the host's.
        gaps = [f"a {name} namespace of its own" for name in self.shared_namespaces()]
        checks = {
            "no network": not self.network,
            "no capabilities": self.capabilities == 0,
            "no_new_privs": self.no_new_privs or self.backend == GVISOR,
            "a system-call filter (is libseccomp installed?)": self.seccomp or self.backend == GVISOR,
            "a read-only root": not self.root_writable,
            "limits on memory and processes (the container's runtime ignores control groups)": self.memory
            is not None
            and self.processes is not None,
            "a limit on processor time": self.cpus is not None or self.memory is None,
        }
        return gaps + [name for name, holds in checks.items() if not holds]


@dataclass(frozen=True, slots=True)
class Display:
    """A value or figure that a cell shows.

    Attributes:
        data: untrusted forms by MIME type; ``text/plain`` is always there.
    """

    data: Mapping[str, str | bytes]

    def as_text(self) -> str:
        """Return the plain form, unescaped, and a line for each image."""
        plain = self.data.get("text/plain", "")
        images = [
            f"[{mime}, {len(form if isinstance(form, bytes) else form.encode())} bytes]"
            for mime, form in self.data.items()
            if mime.startswith("image/")
        ]
        return "\n".join([*([str(plain)] if plain else []), *images])

    def as_data(self) -> dict[str, str]:
        """Return the forms for JSON, images in base64."""
        return {
            mime: form if isinstance(form, str) else base64.b64encode(form).decode()
            for mime, form in self.data.items()
        }


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended. ``as_data`` makes it plain data for JSON.

    Attributes:
        cell: its number, from 1.
        truncated: whether it wrote more than ``SandboxConfig.output``.
        final: the argument of ``FINAL``.
        elapsed, worker_wait: seconds in all, and in waits for workers.
        state_lost: whether ``execute`` raises until ``reset()``.
        dropped: late messages of earlier cells.
        usage: processor seconds and peak bytes.
        detail: why it ended, if the code did not choose it.
        display: the last expression's value, then open figures.
    """

    cell: int
    outcome: Outcome
    # UTF-8; invalid bytes are replaced.
    stdout: str
    stderr: str
    truncated: bool
    error: ErrorInfo | None
    final: str | None
    elapsed: float
    worker_wait: float
    state_lost: bool
    dropped: int
    usage: Usage
    detail: str = ""
    display: tuple[Display, ...] = ()

    def _repr_html_(self) -> str:
        parts = [output_html(self.stdout)] if self.stdout else []
        parts += [output_html(self.stderr, "#a00")] if self.stderr else []
        parts += [forms_html(each.data) for each in self.display]
        parts += [output_html(self.error.traceback, "#a00")] if self.error is not None else []
        parts += [text_html(f"FINAL: {self.final}")] if self.final is not None else []
        facts = [self.outcome.value, f"{self.elapsed:.2f} s", *([self.detail] if self.detail else [])]
        return "".join([*parts, facts_html(facts)])


def not_run(error: Exception) -> CellResult:
    """Return the result of code that was refused before it was sent to its sandbox."""
    name = type(error).__name__
    info = ErrorInfo(name, str(error), f"{name}: {error}\n")
    return CellResult(
        0, Outcome.USER_ERROR, "", "", truncated=False, error=info, final=None, elapsed=0.0, worker_wait=0.0,
        state_lost=False, dropped=0, usage=Usage(0.0, 0, "none"),
    )  # fmt: skip


def as_data(result: CellResult) -> dict[str, Any]:
    """Return a result as plain data for JSON."""
    data = {field.name: getattr(result, field.name) for field in fields(result)}
    data["usage"] = structs.asdict(result.usage)
    data["error"] = None if result.error is None else structs.asdict(result.error)
    data["display"] = [shown.as_data() for shown in result.display]
    return data


@dataclass(frozen=True, slots=True)
class Listing:
    """Files, as the guest reports them; ``more`` if others exist."""

    files: tuple[FileEntry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """Prompts of a cell for the worker."""

    cell: int
    call: int
    prompts: list[str]


# Returns a text or a ``CallError`` for each prompt, in order. Cancelled when the cell ends.
OnCall = Callable[[WorkerCall], Awaitable[Sequence[str | CallError]]]
