"""Makes, inspects and removes containers of a Docker daemon. Every call blocks: call it in a thread."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from ...sandbox_image import protocol
from ...sandbox_image.image import PROTOCOL_LABEL, PYTHON_LABEL
from ..errors import SandboxLost, SandboxUnavailable
from ..jail.cgroups import MOUNT, V1_CONTROLLERS
from .config import SandboxConfig
from .container_settings import OWNER_LABEL, Image, container_settings
from .docker_sdk import API, READ_LOG, REQUEST_SECONDS, START, Connection, connect, dial, is_local, reason
from .owner import has_ended

# An owner on another machine counts as alive; its ended containers are removed after this.
_LEFT_SECONDS = 600.0
# Init may stay 2 s after its last message: if its input is full, it does not see that the shim has hung up.
_END_SECONDS = 5.0
# The daemon learns of an out-of-memory kill by another event than the end, which may come later.
_OOM_EVENT_SECONDS = 1.0
_POLL_SECONDS = 0.02
_KILLED = 128 + 9


@dataclass(frozen=True, slots=True)
class Container:
    """A running container; ``stream`` is its stdio, ``groups`` its visible control groups by controller."""

    id: str
    stream: socket.socket
    groups: dict[str, str]
    image: Image

    @property
    def is_alive(self) -> bool:
        """Whether its stdio is open; nothing has been read from it yet."""
        with contextlib.suppress(BlockingIOError):
            return bool(self.stream.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return True


@dataclass(frozen=True, slots=True)
class ContainerEnd:
    """How a container ended, by the daemon."""

    out_of_memory: bool
    was_killed: bool


class Daemon:
    """A Docker daemon; ``shares_files`` says whether it can mount this machine's folders."""

    def __init__(self, connection: Connection) -> None:
        self._client = connection.client
        self._url = connection.url
        self.shares_files = is_local(connection.url)

    @classmethod
    def connect(cls) -> Daemon:
        """See ``docker_sdk.connect``."""
        return cls(connect())

    def inspect_image(self, name: str, runtime: str | None) -> Image:
        """Return an image whose containers can be made.

        Raises:
            SandboxUnavailable: no such image or runtime, or the image is not built on ours.
        """
        from docker.errors import ImageNotFound

        with self._translate_errors("be asked for its images"):
            try:
                labels: dict[str, str] = self._client.inspect_image(name)["Config"].get("Labels") or {}
            except ImageNotFound:
                raise SandboxUnavailable(
                    f"The Docker daemon has no image {name!r}",
                    "Build ours with `supdist-engine image build`, or name one that is built on it in "
                    "`image`.",
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

    def start(
        self, image: Image, config: SandboxConfig, folder: str | None, packages: Sequence[tuple[str, str]]
    ) -> Container:
        """Make, attach and start a container; it sees ``folder`` and packages read-only.

        Raises:
            SandboxUnavailable: the daemon reported an error.
        """
        with self._translate_errors("make a container of the sandbox image", READ_LOG):
            settings = container_settings(self._client, image, config, folder, packages)
            made = self._client.create_container_from_config(settings, name=f"supdist-{os.urandom(8).hex()}")
            try:
                stream = self._attach(made["Id"])
                try:
                    self._client.start(made["Id"])
                    return Container(made["Id"], stream, self._control_groups(made["Id"]), image)
                except BaseException:
                    stream.close()
                    raise
            except BaseException:
                self.remove(made["Id"])
                raise

    def _attach(self, container: str) -> socket.socket:
        # Docker Engine API, "Attach to a container". Not by the SDK: it returns a reader on top of the
        # connection, and keeps the connection.
        connection = HTTPConnection("docker", timeout=REQUEST_SECONDS)
        connection.sock = dial(self._url)
        try:
            path = f"/v{API}/containers/{container}/attach?stdin=1&stdout=1&stream=1"
            connection.request("POST", path, headers={"Connection": "Upgrade", "Upgrade": "tcp"})
            answer = connection.getresponse()
            if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
                raise OSError(f"it answered {answer.status} to a request to attach to a container")
            # The container has not started and has sent nothing, so the reader holds nothing.
            stream = connection.sock.dup()
            stream.setblocking(True)
            answer.close()
        except HTTPException as error:
            raise OSError(f"it does not speak HTTP: {error!r}") from error
        finally:
            connection.close()
        return stream

    def _control_groups(self, container: str) -> dict[str, str]:
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
        # A runtime that ignores control groups leaves its processes in the groups of its own parent.
        are_own = all(container in folder and os.path.isdir(folder) for folder in groups.values())
        return groups if are_own else {}

    def wait_for_end(self, container: str) -> ContainerEnd:
        """Wait for the end of a container whose stream has ended.

        Raises:
            SandboxLost: it does not end, or the daemon does not report how.
        """
        from docker.errors import DockerException

        deadline, was_killed = time.monotonic() + _END_SECONDS, False
        state: dict[str, Any] = {"Running": True}
        while time.monotonic() < deadline:
            try:
                state = self._client.inspect_container(container)["State"]
            except (DockerException, OSError) as error:
                raise SandboxLost(
                    f"the Docker daemon did not report how the sandbox's container ended ({reason(error)})"
                ) from error
            if not state["Running"]:
                if state["OOMKilled"] or state["ExitCode"] != _KILLED:
                    break
                if not was_killed:
                    was_killed, deadline = True, time.monotonic() + _OOM_EVENT_SECONDS
            time.sleep(_POLL_SECONDS)
        if state["Running"]:
            raise SandboxLost(f"the sandbox's container did not end within {_END_SECONDS:g} s")
        return ContainerEnd(bool(state["OOMKilled"]), state["ExitCode"] == _KILLED)

    def remove(self, container: str) -> None:
        """Kill and remove a container, if it exists."""
        from docker.errors import DockerException

        # What cannot be removed now, the next sweep removes.
        with contextlib.suppress(DockerException, OSError):
            self._client.remove_container(container, force=True, v=True)

    def sweep(self) -> None:
        """Remove containers of ended owners, and old ended ones.

        Raises:
            SandboxUnavailable: the daemon does not answer.
        """
        with self._translate_errors("list its containers"):
            found = self._client.containers(all=True, filters={"label": OWNER_LABEL})
        for container in found:
            is_old = container["Created"] < datetime.now(UTC).timestamp() - _LEFT_SECONDS
            # "created": its engine died before it was started.
            has_stopped = container["State"] in ("exited", "dead", "created")
            if has_ended(container["Labels"][OWNER_LABEL]) or (has_stopped and is_old):
                self.remove(container["Id"])

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _translate_errors(self, action: str, remedy: str = START) -> Generator[None]:
        from docker.errors import DockerException

        try:
            yield
        except (DockerException, OSError) as error:
            raise SandboxUnavailable(
                f"The Docker daemon could not {action} ({reason(error)})", remedy
            ) from error
