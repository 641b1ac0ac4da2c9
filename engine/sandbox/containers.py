"""Containers of a Docker daemon, through its SDK: made hardened, looked at, removed, swept.

Everything here blocks, at most ``_REQUEST_SECONDS`` for one answer of the daemon, and is called in threads.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...sandbox_image import protocol
from ...sandbox_image.environment import (
    GUEST_ID,
    MASKED_PROC_FILES,
    MASKED_PROC_FOLDERS,
    SECCOMP_PROFILE,
    packages_variables,
)
from ...sandbox_image.image import PROTOCOL_LABEL, PYTHON_LABEL
from ..errors import SandboxLost, SandboxUnavailable, TaskError
from ..jail.cgroups import MOUNT, V1_CONTROLLERS
from ..jail.rootfs import PACKAGES
from .config import SandboxConfig
from .owner import has_ended, own_lease

_REQUEST_SECONDS = 20
_API = "1.41"
"""The first version that knows ``CgroupnsMode``: Docker 20.10."""
_LEASE = "supdist.lease"
_LEFT_SECONDS = 600.0
_END_SECONDS = 5.0
"""Longer than a guest's init may stay after its last words (2 s): where its input is full of what it never read, it does
not learn that the shim has hung up.
"""
_REASON_SECONDS = 1.0
"""That the kernel killed a container for want of memory is told by another event than its end, which may come later."""
_LOOK_SECONDS = 0.02
_KILLED = 128 + 9
_PODMAN = "Podman Engine"
_USER = f"{GUEST_ID}:{GUEST_ID}"
_GUEST = ["python3", "-I", "-m", "supdist.sandbox_image.guest"]
_MOST_FILES = 4096
"""Init's own limit, above what the descriptors that guests have in flight may come to; it makes the other the guest's."""

# Naming any path replaces the daemon's own list, which this one contains.
_MASKED = (
    *(f"/proc/{name}" for name in (*MASKED_PROC_FILES, *MASKED_PROC_FOLDERS)),
    "/sys",
    # Guests need no terminals, and no message queues: no limit counts the memory of those.
    "/dev/mqueue",
    "/dev/pts",
)

START = (
    "Start it (`systemctl start docker`), set DOCKER_HOST to its socket, or join the group that may use it."
)
LOOK = "The daemon's own log says more (`journalctl -u docker`)."
"""What to do about a daemon that does not answer, or does not do as it is told."""


@dataclass(frozen=True, slots=True)
class Container:
    """One that runs: its daemon's id for it, its stdio as the daemon attached it, and its control groups by controller."""

    id: str
    stream: socket.socket
    groups: dict[str, str]

    @property
    def is_alive(self) -> bool:
        """Whether its stdio is open; nothing has been read from it so far."""
        with contextlib.suppress(BlockingIOError):
            return bool(self.stream.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return True


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is built on ours.

    Attributes:
        name: what the daemon knows it by.
        python: major and minor version of its Python.
        is_gvisor: whether its containers are to run under gVisor.
    """

    name: str
    python: str
    is_gvisor: bool

    def check_python(self) -> None:
        """Functions travel as byte code, which only the same version of Python understands.

        Raises:
            TaskError: it has another.
        """
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        if self.python != own:
            raise TaskError(
                f"tools: the image {self.name!r} has Python {self.python} and the engine {own}, so that functions cannot "
                "be sent there: use HostTool, or build the image on the engine's version (`image build --base`)"
            )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container's first process ended, by the daemon."""

    out_of_memory: bool
    was_killed: bool


class Daemon:
    """The way to a Docker daemon.

    Attributes:
        shares_files: whether it is on this machine, so that a folder of ours can be mounted.
    """

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self._url = url
        self.shares_files = _is_local(url)

    @classmethod
    def connect(cls) -> Daemon:
        """The daemon that the environment names, as for ``docker``: DOCKER_HOST, else the usual socket.

        Raises:
            SandboxUnavailable: there is none that will do.
        """
        docker = sdk()
        from docker.errors import DockerException

        where = docker.utils.kwargs_from_env()
        url = where.get("base_url") or "unix:///var/run/docker.sock"
        if "tls" in where or url.startswith(("https:", "ssh:")):
            raise SandboxUnavailable(
                f"A container's stream cannot be handed over by the daemon at {url}",
                "Forward its socket and use that: `ssh -N -L 127.0.0.1:2375:/var/run/docker.sock HOST` and "
                "DOCKER_HOST=tcp://127.0.0.1:2375.",
            )
        client = None
        try:
            _dial(url).close()  # the SDK forgets a socket that it could not connect
            client = docker.APIClient(base_url=url, version=_API, timeout=_REQUEST_SECONDS)
            # It would keep one for each address of late, and a container has addresses of its own.
            client.headers["Connection"] = "close"
            served = client.version(api_version=False)
        except (DockerException, OSError) as error:
            if client is not None:
                client.close()
            raise SandboxUnavailable(f"No Docker daemon answers at {url} ({reason(error)})", START) from error
        try:
            _check_version(served)
        except SandboxUnavailable:
            client.close()
            raise
        return cls(client, url)

    def look_at(self, name: str, runtime: str | None) -> Image:
        """An image, and whether containers of it can be made.

        Raises:
            SandboxUnavailable: they cannot.
        """
        from docker.errors import ImageNotFound

        with self._asking("be asked for its images"):
            try:
                labels: dict[str, str] = self._client.inspect_image(name)["Config"].get("Labels") or {}
            except ImageNotFound:
                raise SandboxUnavailable(
                    f"The Docker daemon has no image {name!r}",
                    "Build ours with `supdist-engine image build`, or name one that is built on it in `image`.",
                ) from None
            runtimes: dict[str, Any] = self._client.info()["Runtimes"] if runtime is not None else {}
        if labels.get(PROTOCOL_LABEL) != str(protocol.VERSION):
            raise SandboxUnavailable(
                f"The image {name!r} is not built on a sandbox image of this version",
                "Build ours with `supdist-engine image build`, and yours on it again.",
            )
        if runtime is not None and runtime not in runtimes:
            raise SandboxUnavailable(
                f"The Docker daemon has no runtime {runtime!r}; it has {', '.join(sorted(runtimes))}",
                "For gVisor: install runsc, then `runsc install` and restart the daemon.",
            )
        program = runtimes[runtime].get("path") or runtime if runtime is not None else ""
        return Image(name, labels.get(PYTHON_LABEL, ""), "runsc" in os.path.basename(program))

    def start(self, image: Image, config: SandboxConfig, folder: str | None) -> Container:
        """Make and start a container of the guest, attached.

        Args:
            image: its image.
            config: its limits.
            folder: one of this machine that it sees, read-only, at ``os.path.dirname(protocol.CONTEXT_FILE)``.

        Raises:
            SandboxUnavailable: the daemon refuses it.
        """
        with self._asking("make a container of the sandbox image", LOOK):
            made = self._client.create_container_from_config(
                self._settings(image, config, folder), name=f"supdist-{os.urandom(8).hex()}"
            )
            try:
                stream = self._attach(made["Id"])
                try:
                    self._client.start(made["Id"])
                    return Container(made["Id"], stream, self._groups(made["Id"]))
                except BaseException:
                    stream.close()
                    raise
            except BaseException:
                self.remove(made["Id"])
                raise

    def _attach(self, container: str) -> socket.socket:
        """The connection that carries its stdio from now on (Docker Engine API, "Attach to a container", hijacking).

        The SDK would give a reader on top of it and keep the connection for itself.
        """
        connection = HTTPConnection("docker", timeout=_REQUEST_SECONDS)
        connection.sock = _dial(self._url)
        try:
            path = f"/v{_API}/containers/{container}/attach?stdin=1&stdout=1&stream=1"
            connection.request("POST", path, headers={"Connection": "Upgrade", "Upgrade": "tcp"})
            answer = connection.getresponse()
            if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise OSError(f"it answered {answer.status} to a request to attach to a container")
            stream = (
                connection.sock.dup()
            )  # nothing was sent before its start, so that the reader holds nothing
            stream.setblocking(True)
            answer.close()
        except HTTPException as error:
            raise OSError(f"it does not speak HTTP: {error!r}") from error
        finally:
            connection.close()
        return stream

    def _groups(self, container: str) -> dict[str, str]:
        """The control groups of a container of this machine, where they can be seen."""
        if not self.shares_files:
            return {}
        pid = self._client.inspect_container(container)["State"]["Pid"]
        own: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                own |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
        groups = {name: str(MOUNT / name / own[name]) for name in V1_CONTROLLERS if own.get(name)}
        if not groups and own.get(""):
            groups = {name: str(MOUNT / own[""]) for name in ("memory", "pids")}
        # A runtime that ignores control groups leaves its processes in its own parent's.
        here = all(container in folder and os.path.isdir(folder) for folder in groups.values())
        return groups if here else {}

    def ended(self, container: str) -> Ended:
        """How a container ended that is about to.

        Raises:
            SandboxLost: it does not end, or the daemon cannot tell.
        """
        from docker.errors import DockerException

        deadline, was_over = time.monotonic() + _END_SECONDS, False
        state: dict[str, Any] = {"Running": True}
        while time.monotonic() < deadline:
            try:
                state = self._client.inspect_container(container)["State"]
            except (DockerException, OSError) as error:
                raise SandboxLost(f"the Docker daemon cannot tell how it ended ({reason(error)})") from error
            if not state["Running"]:
                if state["OOMKilled"] or state["ExitCode"] != _KILLED:
                    break
                if not was_over:
                    was_over, deadline = True, time.monotonic() + _REASON_SECONDS
            time.sleep(_LOOK_SECONDS)
        if state["Running"]:
            raise SandboxLost("its container does not end")
        return Ended(bool(state["OOMKilled"]), state["ExitCode"] == _KILLED)

    def remove(self, container: str) -> None:
        """Kill a container and remove it; nothing where it is gone. What cannot be removed now, the next start sweeps."""
        from docker.errors import DockerException

        with contextlib.suppress(DockerException, OSError):
            self._client.remove_container(container, force=True, v=True)

    def sweep(self) -> None:
        """Remove containers whose engine has ended, and such as have long ended themselves.

        Raises:
            SandboxUnavailable: the daemon does not answer.
        """
        with self._asking("list its containers"):
            found = self._client.containers(all=True, filters={"label": _LEASE})
        for container in found:
            lease = container["Labels"][_LEASE]
            is_old = container["Created"] < datetime.now(UTC).timestamp() - _LEFT_SECONDS
            if has_ended(lease) or (container["State"] in ("exited", "dead", "created") and is_old):
                self.remove(container["Id"])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _settings(self, image: Image, config: SandboxConfig, folder: str | None) -> dict[str, Any]:
        from docker.types import Mount, Ulimit

        limits = config.resource_limits()
        mounts = [_mount(Mount, os.path.dirname(protocol.CONTEXT_FILE), folder)] if folder is not None else []
        environment: list[str] = []
        if config.packages is not None:
            mounts.append(_mount(Mount, PACKAGES, config.packages))
            variables = packages_variables(PACKAGES, limits.cpus, limits.pids)
            environment = [f"{name}={value}" for name, value in variables.items()]
        ulimits = {
            "nofile": (limits.open_files, max(limits.open_files, _MOST_FILES)),
            "fsize": (limits.file_bytes, limits.file_bytes),
            "cpu": (limits.cpu_seconds, limits.cpu_seconds),
            "core": (0, 0),
            "memlock": (0, 0),
        }
        if image.is_gvisor:  # whose processes are none of the host's: no control group counts them
            ulimits["nproc"] = (limits.pids + 1, limits.pids + 1)
        host: dict[str, Any] = self._client.create_host_config(
            network_mode="none",
            ipc_mode="private",
            cgroupns="private",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", f"seccomp={Path(SECCOMP_PROFILE).read_text()}"],
            mem_limit=limits.memory_bytes,
            memswap_limit=limits.memory_bytes,
            pids_limit=limits.pids + 1,  # init is not the user's
            nano_cpus=int(limits.cpus * 1e9),
            ulimits=[Ulimit(name=name, soft=soft, hard=hard) for name, (soft, hard) in ulimits.items()],
            tmpfs={
                path: _tmpfs(limits.scratch_bytes // part, limits.scratch_inodes // part)
                for path, part in ((protocol.WORK, 2), ("/tmp", 4), ("/dev/shm", 4))
            },
            mounts=mounts,
            log_config={"Type": "none"},  # its output is the protocol
            dns=["127.0.0.1"],  # else the host's own would be written into it
            dns_search=["."],
            init=False,
            runtime=config.runtime,
        )
        host["MaskedPaths"] = list(_MASKED)
        return self._client.create_container_config(
            image.name,
            [*_GUEST, str(limits.memory_bytes)],
            user=_USER,
            hostname="sandbox",
            working_dir=protocol.WORK,
            environment=environment,
            labels={_LEASE: own_lease()},
            stdin_open=True,
            host_config=host,
        )

    @contextmanager
    def _asking(self, what: str, remedy: str = START) -> Generator[None]:
        from docker.errors import DockerException

        try:
            yield
        except (DockerException, OSError) as error:
            raise SandboxUnavailable(
                f"The Docker daemon could not {what} ({reason(error)})", remedy
            ) from error


def sdk() -> Any:
    """The module ``docker``.

    Raises:
        SandboxUnavailable: it is not installed.
    """
    try:
        import docker
    except ImportError:
        raise SandboxUnavailable(
            "The Docker SDK for Python is not installed",
            "Install it: `pip install 'supdist-engine[docker]'`.",
        ) from None
    return docker


def _check_version(served: dict[str, Any]) -> None:
    if any(part.get("Name") == _PODMAN for part in served.get("Components", [])):
        raise SandboxUnavailable(
            "Podman's compatible API cannot limit the number of files in a tmpfs, nor take a filter of system calls by value",
            "Set DOCKER_HOST to a Docker daemon, or use the process backend, which needs none.",
        )
    if _number(served["ApiVersion"]) < _number(_API):
        raise SandboxUnavailable(
            f"The Docker daemon is too old: its API is {served['ApiVersion']}, and {_API} is needed",
            "Use Docker 20.10 or newer.",
        )


def _is_local(url: str) -> bool:
    return url.startswith(("unix:", "http+unix:"))


def _dial(url: str) -> socket.socket:
    """A connection to a daemon."""
    if not _is_local(url):
        address = urlsplit(url)
        return socket.create_connection((address.hostname, address.port or 2375), _REQUEST_SECONDS)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(_REQUEST_SECONDS)
        sock.connect(url.split("://", 1)[1])
    except BaseException:
        sock.close()
        raise
    return sock


def _mount(kind: Any, target: str, source: str) -> Any:
    return kind(target, source, type="bind", read_only=True)


def _tmpfs(size: int, inodes: int) -> str:
    return f"rw,exec,nosuid,nodev,size={size},nr_inodes={inodes},mode=0700,uid=65534,gid=65534"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def reason(error: BaseException) -> str:
    """An error's own words on one line; the SDK wraps what matters in several layers."""
    explanation = getattr(error, "explanation", None)
    return " ".join(str(explanation or error).split())[:300]
