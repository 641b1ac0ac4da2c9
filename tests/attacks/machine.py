"""Where a backend's sandboxes are on this machine: their first processes, and what they hold beside the engine's own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from supdist.engine.sandbox.lease import own_lease

_POOLED = 10
"""Connections that the Docker SDK keeps for the next request; more than these are leaks."""

_CGROUPS = Path("/sys/fs/cgroup")

DAEMON = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
"""The socket of the Docker daemon that the tests use."""


class Machine:
    """The process backend's: every sandbox is below the engine.

    Attributes:
        config: what of a sandbox's config says the backend.
        start_seconds: what a start takes at most where many are measured with what they are for.
        has_host_processes: whether a guest's processes are processes of this kernel.
    """

    start_seconds = 0.0
    has_host_processes = True

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    @property
    def source(self) -> str:
        """The same as source for a program that is run outside: arguments of ``open_sandbox`` and ``SyncSandbox``."""
        return f"__import__('supdist.engine').engine.SandboxConfig.model_validate({self.config!r})"

    def inits(self) -> list[int]:
        """The first process of each sandbox of this engine."""
        return below("supdist-init")

    def processes(self) -> list[psutil.Process]:
        """Every process of this engine and behind its walls."""
        return psutil.Process().children(recursive=True)

    def descriptors(self) -> int:
        """Of the engine's process."""
        return psutil.Process().num_fds()

    def mounts(self) -> int:
        """Of the engine's namespace."""
        return len(Path("/proc/self/mounts").read_text().splitlines())

    def cgroups(self) -> int:
        """Control groups of the sandboxes: beside each other, and named after their zygote."""
        own = cgroup_folders("self")
        parents: set[Path] = set()
        for pid in self.inits():
            with contextlib.suppress(OSError):
                folders = cgroup_folders(pid)
                parents |= {folder.parent for key, folder in folders.items() if folder != own.get(key)}
        zygotes = below("supdist-zygote")
        groups = {
            group for parent in parents for zygote in zygotes for group in parent.glob(f"supdist-{zygote}-*")
        }
        return len(groups)

    def others(self) -> dict[str, int]:
        """What else is held, by its name."""
        return {}

    def close(self) -> None:
        """Ask nobody any more."""


class DockerMachine(Machine):
    """The daemon's: containers with the engine's lease, which run below the daemon, and folders with their contexts."""

    start_seconds = 0.8

    def __init__(self, config: dict[str, Any]) -> None:
        import docker

        super().__init__(config)
        self._client: Any = docker.from_env(version="1.41", timeout=20).api
        self._pids: dict[str, int] = {}

    def containers(self) -> list[str]:
        """Those of this engine, alive or dead."""
        found = self._client.containers(
            all=True, quiet=True, filters={"label": f"supdist.lease={own_lease()}"}
        )
        return [container["Id"] for container in found]

    def inspect(self, container: str) -> str:
        """All that the daemon tells of one, and of its image with its layers, as text."""
        about = self._client.inspect_container(container)
        image = about["Image"]
        return json.dumps([about, self._client.inspect_image(image), self._client.history(image)])

    def inits(self) -> list[int]:
        """See ``Machine.inits``. Under gVisor it is the process of the guest's kernel."""
        from docker.errors import NotFound

        alive: list[int] = []
        for container in self.containers():
            if not self._pids.get(container):
                with contextlib.suppress(NotFound):
                    self._pids[container] = self._client.inspect_container(container)["State"]["Pid"]
            pid = self._pids.get(container)
            if pid and psutil.pid_exists(pid):
                alive.append(pid)
        return alive

    def processes(self) -> list[psutil.Process]:
        """See ``Machine.processes``."""
        found = super().processes()
        for pid in self.inits():
            with contextlib.suppress(psutil.NoSuchProcess):
                init = psutil.Process(pid)
                found += [init, *init.children(recursive=True)]
        return found

    def descriptors(self) -> int:
        """See ``Machine.descriptors``: as if all connections to the daemon that may be kept were there."""
        return super().descriptors() - min(_connections(DAEMON), _POOLED)

    def mounts(self) -> int:
        """See ``Machine.mounts``. The daemon's lie in the same place, and go with its containers."""
        return 0

    def cgroups(self) -> int:
        """See ``Machine.cgroups``: of every container that was ever seen."""
        return sum(1 for container in self._pids for _ in _CGROUPS.glob(f"*/docker/{container}"))

    def others(self) -> dict[str, int]:
        """See ``Machine.others``."""
        folders = Path(tempfile.gettempdir()).glob("supdist-contexts-*/*/")
        return {"containers": len(self.containers()), "folders": sum(1 for _ in folders)}

    def close(self) -> None:
        """See ``Machine.close``."""
        self._client.close()


class GvisorMachine(DockerMachine):
    """Under gVisor a guest's processes are its own kernel's alone; each call of theirs takes some microseconds more."""

    start_seconds = 2.0
    has_host_processes = False


MACHINES: dict[str, type[Machine]] = {
    "process": Machine,
    "docker": DockerMachine,
    "docker-runsc": GvisorMachine,
}


def below(name: str) -> list[int]:
    """Processes below this one with that short name."""
    found: list[int] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == name:
                found.append(child.pid)
    return found


def cgroup_folders(pid: int | str) -> dict[str, Path]:
    """A process's control groups by controller (v2: the empty name), as folders of this process's view."""
    folders: dict[str, Path] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount = _cgroup_mount(controller)
            if mount is not None:
                folders[controller] = mount / path.lstrip("/")
    return folders


def _cgroup_mount(controller: str) -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if (kind == "cgroup2" and not controller) or (
            kind == "cgroup" and controller and controller in options.split(" ")[-1].split(",")
        ):
            return Path(head.split()[4])
    return None


def _connections(path: str) -> int:
    """How many of this process's descriptors lead to a socket's file."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # no socket, or one that leads nowhere; listdir's own is gone
            if stat.S_ISSOCK(os.fstat(int(fd)).st_mode):
                with socket.socket(fileno=os.dup(int(fd))) as sock:
                    count += sock.getpeername() == path
    return count


def names(processes: list[psutil.Process]) -> Counter[str]:
    """How many there are of each short name; who has ended has none."""
    found: list[str] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.name())
    return Counter(found)
