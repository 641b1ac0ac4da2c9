"""Tests the isolation of this machine with probes inside a real sandbox."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from ...sandbox_image.text import shorten
from ..errors import SandboxError, SandboxUnavailable
from .config import GVISOR, CellResult, Outcome, SandboxConfig
from .doctor_remedies import (
    DOCKER_MOUNTS,
    OWN_KERNEL,
    REPORT,
    filter_remedy,
    landlock_remedy,
    limits_remedy,
    overlay_remedy,
)
from .factory import open_sandbox
from .refusals import kernel_release
from .sandbox import Sandbox

# Small limits are reached soon. With best_effort a missing layer is a finding, not an error.
_LIMITS = SandboxConfig.model_validate(
    {
        "memory": "96MiB",
        "pids": 16,
        "scratch": "8MiB",
        "timeout": 10.0,
        "grace": 0.3,
        "isolation": "best_effort",
    }
)
_PROBES = Path(__file__).with_name("doctor_probes.py")
_VARIABLE = "SUPDIST_DOCTOR"
_ENOSPC, _EACCES = 28, 13
_GUEST_UID = 65534
# AF_UNIX, AF_INET, AF_INET6.
_ALLOWED_FAMILIES = {1, 2, 10}
# More than the limit of 16: a watchdog is late.
_MOST_CHILDREN = 24
# Four children want all processors for a second and get this part of one. Twice it may be used.
_CPUS = 0.2
_BURN_SECONDS = 1.0
_MOST_SECONDS = 2.0
_MOST_PATH = 70


class Layer(StrEnum):
    """Layers of the isolation."""

    SANDBOX = "sandbox"
    NAMESPACES = "namespaces"
    FILE_SYSTEM = "file system"
    PATHS = "paths"
    ENVIRONMENT = "environment"
    NETWORK = "network"
    IDENTITY = "identity"
    SYSTEM_CALLS = "system calls"
    SOCKET_FAMILIES = "socket families"
    DEVICES = "devices"
    SCRATCH_SIZE = "scratch size"
    LANDLOCK = "Landlock"
    MEMORY = "memory"
    PROCESSES = "processes"
    PROCESSORS = "processor time"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one layer on this machine.

    Attributes:
        holds: whether the probes were stopped.
        required: whether the level ``strict`` needs it.
        measured: what the probes saw.
        remedy: what to do, if it does not hold.
    """

    layer: Layer
    holds: bool
    required: bool
    measured: str
    remedy: str = ""


# See ``look_around`` of the probes.
class _Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    leaks: bool
    writable: list[str]
    paths: list[str]
    environment: bool
    dial: int
    interfaces: list[str]
    routes: int
    uid: int
    capabilities: int
    no_new_privs: bool
    seccomp: bool
    allowed: list[str]
    tried: int
    families: list[int]
    devices: list[str]
    scratch: int


@dataclass(frozen=True, slots=True)
class _Observed:
    seen: _Seen
    connections: int
    backend: str


async def examine(
    backend: Literal["process", "docker"] = "process", image: str | None = None, runtime: str | None = None
) -> list[Finding]:
    """Test every layer of a backend, for some seconds. An unusable backend is a finding."""
    config = _LIMITS.model_copy(update={"backend": backend, "image": image, "runtime": runtime})
    try:
        async with open_sandbox(config, query="") as sandbox:
            observed = await _observe(sandbox)
            findings = [_check_namespaces(sandbox), *(check(observed) for check in _CHECKS)]
        # A sandbox each: these probes use up the limits of theirs.
        for check in (_check_memory, _check_processes, _check_time):
            async with open_sandbox(config, query="") as sandbox:
                findings.append(await check(sandbox))
        async with open_sandbox(config.model_copy(update={"cpus": _CPUS}), query="") as sandbox:
            findings.append(await _check_processors(sandbox))
    except SandboxUnavailable as error:
        return [Finding(Layer.SANDBOX, False, True, error.capability, error.remedy)]
    except SandboxError as error:
        return [Finding(Layer.SANDBOX, False, True, str(error), REPORT)]
    return findings


def default_level_holds(findings: list[Finding]) -> bool:
    """Return whether every required layer holds."""
    return all(finding.holds for finding in findings if finding.required)


# Files and sockets of the host that no guest should reach, and an entry for each connection that arrived.
@dataclass(frozen=True, slots=True)
class _HostTargets:
    arguments: tuple[str, str, int, str, str]
    connections: list[None]


@asynccontextmanager
async def _host_targets() -> AsyncGenerator[_HostTargets]:
    secret = secrets.token_hex(16)
    connections: list[None] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(None)
        writer.close()

    with ExitStack() as stack:
        # A socket's path has at most 108 bytes (unix(7)).
        place = None if len(tempfile.gettempdir()) < _MOST_PATH else "/tmp"
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="supdist-doctor-", dir=place))
        file = _write_secret(folder, secret)
        os.environ[_VARIABLE] = secret
        stack.callback(os.environ.pop, _VARIABLE)
        abstract, path = f"supdist-{secret}", f"{folder}/socket"
        servers = [
            await asyncio.start_server(accept, "127.0.0.1", 0),
            await asyncio.start_unix_server(accept, f"\0{abstract}"),
            await asyncio.start_unix_server(accept, path),
        ]
        try:
            port = servers[0].sockets[0].getsockname()[1]
            yield _HostTargets((secret, file, port, abstract, path), connections)
        finally:
            for server in servers:
                server.close()
                await server.wait_closed()


def _write_secret(folder: str, secret: str) -> str:
    # Readable for everybody: only the isolation keeps a guest from it.
    file = Path(folder, "secret")
    file.write_text(secret)
    file.chmod(0o644)
    Path(folder).chmod(0o755)
    return str(file)


async def _observe(sandbox: Sandbox) -> _Observed:
    async with _host_targets() as targets:
        call = ", ".join(map(repr, targets.arguments))
        result = await sandbox.execute(f"{_PROBES.read_text()}\nFINAL(look_around({call}))")
    try:
        # The guest may lie: only the shape of its report is checked, and it is judged here.
        seen = msgspec.json.decode(result.final or "", type=_Seen)
    except msgspec.MsgspecError as error:
        raise SandboxError(
            f"the probes did not report ({result.outcome.value}): {_failure_text(result)}"
        ) from error
    return _Observed(seen, len(targets.connections), sandbox.isolation.backend)


def _failure_text(result: CellResult) -> str:
    error = result.error.message if result.error is not None else ""
    return result.detail or error or result.stderr[-300:]


def _finding(
    layer: Layer, holds: bool, measured: str, remedy: str = REPORT, *, required: bool = True
) -> Finding:
    return Finding(layer, holds, required, measured, "" if holds else remedy)


def _kernel_finding(
    observed: _Observed, layer: Layer, holds: bool, measured: str, remedy: str = ""
) -> Finding:
    # gVisor's kernel is no layer of the host.
    is_own = observed.backend == GVISOR
    if not remedy:
        remedy = filter_remedy(observed.backend, has_filter=observed.seen.seccomp)
    return _finding(layer, holds, measured, OWN_KERNEL if is_own else remedy, required=not is_own)


def _check_namespaces(sandbox: Sandbox) -> Finding:
    isolation = sandbox.isolation
    measured = ", ".join(isolation.namespaces) or "none"
    return _finding(Layer.NAMESPACES, not isolation.shared_namespaces(), measured)


def _check_file_system(observed: _Observed) -> Finding:
    seen = observed.seen
    file = "read" if seen.leaks else "absent"
    written = ", ".join(seen.writable) or "nothing but /work, /tmp and /dev/shm"
    holds = not seen.leaks and not seen.writable
    return _finding(Layer.FILE_SYSTEM, holds, f"host file {file}, written to: {written}")


def _check_paths(observed: _Observed) -> Finding:
    paths = observed.seen.paths
    measured = shorten(paths[0], 60) if paths else "none of the host's in mountinfo or maps"
    remedy = overlay_remedy(kernel_release()) if observed.backend == "process" else DOCKER_MOUNTS
    return _finding(Layer.PATHS, not paths, measured, remedy, required=False)


def _check_environment(observed: _Observed) -> Finding:
    leaks = observed.seen.environment
    return _finding(Layer.ENVIRONMENT, not leaks, "leaks" if leaks else "the host's secret is not there")


def _check_network(observed: _Observed) -> Finding:
    seen, arrived = observed.seen, observed.connections
    return _finding(
        Layer.NETWORK,
        arrived == 0 and seen.interfaces == ["lo"] and not seen.routes,
        f"{arrived} connections arrived; interfaces {', '.join(seen.interfaces)}; {seen.routes} routes",
    )


def _check_identity(observed: _Observed) -> Finding:
    seen = observed.seen
    cannot_gain = seen.no_new_privs or observed.backend == GVISOR
    return _finding(
        Layer.IDENTITY,
        seen.uid == _GUEST_UID and seen.capabilities == 0 and cannot_gain,
        f"uid {seen.uid}, capabilities {seen.capabilities:#x}, no_new_privs {seen.no_new_privs}",
    )


def _check_system_calls(observed: _Observed) -> Finding:
    seen = observed.seen
    allowed = f"allowed: {', '.join(seen.allowed)}"
    measured = allowed if seen.allowed else f"{seen.tried} forbidden calls refused"
    return _kernel_finding(observed, Layer.SYSTEM_CALLS, seen.seccomp and not seen.allowed, measured)


def _check_socket_families(observed: _Observed) -> Finding:
    families = observed.seen.families
    measured = f"open: {', '.join(map(str, families))} of 0-45"
    return _kernel_finding(observed, Layer.SOCKET_FAMILIES, set(families) <= _ALLOWED_FAMILIES, measured)


def _check_devices(observed: _Observed) -> Finding:
    devices = observed.seen.devices
    measured = ", ".join(devices) or "null, zero, full, random, urandom"
    return _kernel_finding(observed, Layer.DEVICES, not devices, measured, REPORT)


def _check_scratch(observed: _Observed) -> Finding:
    code = observed.seen.scratch
    ends = code == _ENOSPC
    return _finding(Layer.SCRATCH_SIZE, ends, "ends with ENOSPC" if ends else f"errno {code}")


def _check_landlock(observed: _Observed) -> Finding:
    refused = observed.seen.dial == _EACCES
    measured = "TCP refused by rule" if refused else "not active"
    is_process = observed.backend == "process"
    remedy = landlock_remedy(kernel_release()) if is_process else "The process backend has it."
    return _finding(Layer.LANDLOCK, refused, measured, remedy, required=False)


_CHECKS: tuple[Callable[[_Observed], Finding], ...] = (
    _check_file_system,
    _check_paths,
    _check_environment,
    _check_network,
    _check_identity,
    _check_system_calls,
    _check_socket_families,
    _check_devices,
    _check_scratch,
    _check_landlock,
)


async def _check_memory(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(f"{_PROBES.read_text()}\nuse_memory()")
    holder = sandbox.isolation.memory
    measured = f"eight processes of 24 MiB under a limit of 96 MiB: {result.outcome.value}, held by {holder}"
    remedy = limits_remedy(sandbox.isolation.backend)
    # The watchdog is weaker than control groups: the remedy stands beside a layer that holds, too.
    return Finding(
        Layer.MEMORY,
        result.outcome is Outcome.OOM,
        required=True,
        measured=measured,
        remedy="" if holder in ("cgroup", "daemon") else remedy,
    )


async def _check_processes(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(f"{_PROBES.read_text()}\nFINAL(count_children())")
    children = int(result.final) if result.final and result.final.isdecimal() else -1
    holds = 0 < children < _MOST_CHILDREN
    measured = f"{children} children under a limit of {_LIMITS.pids}, held by {sandbox.isolation.processes}"
    return _finding(Layer.PROCESSES, holds, measured)


async def _check_processors(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(f"{_PROBES.read_text()}\nFINAL(burn({_BURN_SECONDS}))")
    try:
        share = float(result.final or "") / result.elapsed
    except ValueError:
        share = float("inf")
    measured = f"{share:.2f} processors where {_CPUS} are allowed, held by {sandbox.isolation.cpus}"
    is_held = sandbox.isolation.cpus in ("cgroup", "daemon")
    remedy = REPORT if is_held else limits_remedy(sandbox.isolation.backend)
    return _finding(Layer.PROCESSORS, share < 2 * _CPUS, measured, remedy)


async def _check_time(sandbox: Sandbox) -> Finding:
    result = await sandbox.execute(f"{_PROBES.read_text()}\nnever_stop()", timeout=0.2)
    holds = result.outcome is Outcome.TIMEOUT and result.elapsed < _MOST_SECONDS
    return _finding(Layer.TIME, holds, f"killed {result.elapsed:.1f} s after a start with 0.2 s")
