"""What a sandbox is given, and what it gives back."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from msgspec import structs
from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

from ...sandbox_image import protocol
from ...sandbox_image.protocol import CallCode, CallError, ErrorInfo, FileEntry, Outcome, Usage

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

_LEAST_FRAME = 16 << 20  # an answer, or a block, of the largest size fits with room to spare
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

if TYPE_CHECKING:

    class Size:
        """Describe a field that takes a number of bytes, or text such as ``"512MiB"``, and reads as an int.

        A type checker takes the type of a constructor's parameter from ``__set__`` (PEP 681).
        """

        def __get__(self, config: object, kind: type | None = None) -> int: ...

        def __set__(self, config: object, value: int | str) -> None: ...

else:
    Size = ByteSize


def _size(default: int, least: int, most: int, description: str) -> Any:
    return Field(
        default=ByteSize(default), ge=least, le=most, description=description, validate_default=False
    )


class SandboxConfig(BaseModel):
    """Limits and timeouts of one sandbox. Sizes are bytes, or text such as ``"512MiB"``; times are seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    backend: Literal["process", "docker"] = Field(default="process", description="what the walls are made of")
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
        description="docker: containers that are kept started ahead, each for one sandbox",
    )
    isolation: Literal["strict", "best_effort"] = Field(
        default="strict",
        description="best_effort takes a sandbox without a filter of system calls, or in a container without limits, too",
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
        description="prompts that wait for workers at once; a guest with more waits",
    )

    packages: str | None = Field(
        default=None,
        min_length=1,
        description="a folder made by `pip install --target`, which the code can import from; "
        "relative to the task file, or in Python to the current directory",
    )
    calls_per_second: float = Field(
        default=10_000.0, gt=0, le=1e6, description="such messages a second; a faster guest is slowed down"
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
            file_bytes=2 * int(self.scratch),  # no room is said before too large
            scratch_bytes=int(self.scratch),
            scratch_inodes=self.scratch_files,
        )

    def session_limits(self, tools: int = 0) -> protocol.SessionLimits:
        """Return the limits that the shim checks, with the number of the host's tools."""
        return protocol.SessionLimits(
            output_bytes=int(self.output),
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
_CONTAINER = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_NAMESPACES = {"process": (*_CONTAINER, "user"), "docker": _CONTAINER, GVISOR: ()}


@dataclass(frozen=True, slots=True)
class Isolation:
    """The walls as they were measured from inside, before any code of a model ran.

    Attributes:
        backend: what the walls are made of: ``process``, ``docker`` or ``docker/runsc``.
        namespaces: the kinds of namespace that the sandbox does not share with the host, sorted.
        network: whether there is any interface but a loopback of its own.
        capabilities: bits of Linux capabilities that could be had inside; 0 is none.
        no_new_privs: whether no program inside can gain rights by being executed.
        seccomp: whether system calls are filtered.
        root_writable: whether the system's files can be changed.
        limited: whether memory, processes and processor time of all its processes together are limited. A runtime that
            ignores control groups limits them for none; of a daemon on another machine it is not known, and not said.
    """

    backend: str
    namespaces: tuple[str, ...]
    network: bool
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    root_writable: bool
    limited: bool

    @classmethod
    def from_facts(
        cls, backend: str, facts: protocol.Facts, host: dict[str, int], *, limited: bool
    ) -> Isolation:
        """Compare the guest's facts with the host's namespaces."""
        own = sorted(name for name, inode in facts.namespaces.items() if host.get(name) != inode)
        return cls(
            backend=backend,
            namespaces=tuple(name for name in own if not name.endswith("_for_children")),
            network=any(name != "lo" for name in facts.interfaces),
            capabilities=facts.capabilities,
            no_new_privs=facts.no_new_privs,
            seccomp=facts.seccomp,
            root_writable=facts.root_writable,
            limited=limited,
        )

    def shared_namespaces(self) -> list[str]:
        """The kinds of namespace that such a sandbox should have of its own and has in common with the host."""
        return [name for name in _NAMESPACES[self.backend] if name not in self.namespaces]

    def missing(self) -> list[str]:
        """What the default level asks for and does not hold here; empty where all holds.

        A container has its user's ids in common with the daemon's machine. Under gVisor the kernel that a guest sees,
        with its namespaces and its filter of system calls, is not the host's at all.
        """
        gaps = [f"a {name} namespace of its own" for name in self.shared_namespaces()]
        checks = {
            "no network": not self.network,
            "no capabilities": self.capabilities == 0,
            "no_new_privs": self.no_new_privs or self.backend == GVISOR,
            "a system-call filter (is libseccomp installed?)": self.seccomp or self.backend == GVISOR,
            "a read-only root": not self.root_writable,
            "limits on memory and processes (the container's runtime ignores control groups)": self.limited,
        }
        return gaps + [name for name, holds in checks.items() if not holds]


@dataclass(frozen=True, slots=True)
class Display:
    """A value that a cell shows: its last expression's, or a figure that it drew.

    Attributes:
        data: the value's forms by MIME type: ``text/plain``, which is always there, ``text/html`` and ``image/svg+xml``
            as str, ``image/png`` and ``image/jpeg`` as bytes. All of them are the code's own: whoever renders them must
            expect scripts in HTML and SVG, control characters in text, and images that are none.
    """

    data: Mapping[str, str | bytes]

    def as_text(self) -> str:
        """For where there is only text: the plain form, and a line for each image. Not escaped for a terminal."""
        plain = self.data.get("text/plain", "")
        images = [
            f"[{mime}, {len(form if isinstance(form, bytes) else form.encode())} bytes]"
            for mime, form in self.data.items()
            if mime.startswith("image/")
        ]
        return "\n".join([*([str(plain)] if plain else []), *images])

    def as_data(self) -> dict[str, str]:
        """For JSON, as notebooks have it: text as it is, images in base64."""
        return {
            mime: form if isinstance(form, str) else base64.b64encode(form).decode()
            for mime, form in self.data.items()
        }


@dataclass(frozen=True, slots=True)
class CellResult:
    """How a cell ended and what it left.

    Attributes:
        cell: its number in this sandbox, from 1.
        outcome: how it ended; the host's verdict.
        stdout, stderr: what it wrote, decoded; what is no UTF-8 is replaced.
        truncated: whether more was written than ``SandboxConfig.output`` allows.
        error: the exception that left it; None where there was none, or where the cell was killed.
        final: what it passed to ``FINAL``.
        elapsed: seconds from start to end.
        worker_wait: seconds of them in which it waited for workers and tools, which its timeout does not count.
        state_lost: whether its variables are gone; the next ``execute`` then raises until ``reset()``.
        dropped: messages that came too late, from threads or children of earlier cells.
        usage: processor seconds of the cell, peak memory of the sandbox so far in bytes, and who counted:
            ``cgroup`` or ``watchdog``, or ``none`` where a container's control groups cannot be seen.
        detail: for an end that was not the code's own, how it came about.
        display: what it shows: the value of its last statement, if that is an expression, is not None and does not end
            with ``;``; then each open figure of ``matplotlib.pyplot``, which is closed thereby.
    """

    cell: int
    outcome: Outcome
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


def as_data(result: CellResult) -> dict[str, Any]:
    """A result as plain data, for JSON."""
    data = {field.name: getattr(result, field.name) for field in fields(result)}
    data["usage"] = structs.asdict(result.usage)
    data["error"] = None if result.error is None else structs.asdict(result.error)
    data["display"] = [shown.as_data() for shown in result.display]
    return data


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a sandbox, by its own account; ``more`` tells that there are others."""

    files: tuple[FileEntry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """What a cell asks of the worker: some prompts at once."""

    cell: int
    call: int
    prompts: list[str]


OnCall = Callable[[WorkerCall], Awaitable[Sequence[str | CallError]]]
"""Answers a call: for each prompt a text or a ``CallError``, in order. Cancelled when the cell ends."""
