"""The settings of a guest's container: isolation, limits, mounts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...sandbox_image import protocol
from ...sandbox_image.environment import (
    GUEST_ID,
    MASKED_PROC_FILES,
    MASKED_PROC_FOLDERS,
    SECCOMP_PROFILE,
    packages_variables,
)
from ..errors import TaskError
from ..jail.package_links import PACKAGES
from .config import SandboxConfig
from .owner import current_owner

# An old name: by it a sweep also finds the containers of older engines.
OWNER_LABEL = "supdist.lease"

_USER = f"{GUEST_ID}:{GUEST_ID}"
_COMMAND = ["python3", "-I", "-m", "supdist.sandbox_image.guest"]
# Init's limit. Guests may have fewer files than the descriptors that init may hold in flight for them.
_INIT_FILES = 4096

# A list of ours replaces the daemon's list, so it holds that one too.
_MASKED = (
    *(f"/proc/{name}" for name in (*MASKED_PROC_FILES, *MASKED_PROC_FOLDERS)),
    "/sys",
    # No guest needs a terminal, and no limit covers the memory of a message queue.
    "/dev/mqueue",
    "/dev/pts",
)


@dataclass(frozen=True, slots=True)
class Image:
    """An image built on ours: its name, Python version and runtime."""

    name: str
    python: str
    is_gvisor: bool

    def check_python(self) -> None:
        """Check that guest tools can be sent.

        Raises:
            TaskError: the image has another Python than the engine.
        """
        # They travel as byte code, which only the same version reads.
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        if self.python != own:
            raise TaskError(
                f"tools: the image {self.name!r} has Python {self.python} and the engine has {own}, so "
                "functions cannot be sent there. Use HostTool, or build the image on the engine's version "
                "(`image build --base`)"
            )


def container_settings(
    client: Any,
    image: Image,
    config: SandboxConfig,
    folder: str | None,
    packages: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the daemon's settings for a container; it sees ``folder`` at its context's place.

    Args:
        packages: see ``container_mounts``.
    """
    from docker.types import Mount, Ulimit

    limits = config.resource_limits()
    mounts = [_mount(Mount, os.path.dirname(protocol.CONTEXT_FILE), folder)] if folder is not None else []
    environment: list[str] = []
    if packages:
        mounts += [_mount(Mount, target, source) for source, target in packages]
        variables = packages_variables(PACKAGES, limits.cpus, limits.pids)
        environment = [f"{name}={value}" for name, value in variables.items()]
    host: dict[str, Any] = client.create_host_config(
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
        ulimits=[Ulimit(name=name, soft=soft, hard=hard) for name, (soft, hard) in _ulimits(limits, image)],
        tmpfs=_tmpfs_mounts(limits),
        mounts=mounts,
        log_config={"Type": "none"},  # its output is the protocol
        dns=["127.0.0.1"],  # else the daemon writes the host's own into it
        dns_search=["."],
        init=False,
        runtime=config.runtime,
    )
    host["MaskedPaths"] = list(_MASKED)
    return client.create_container_config(
        image.name,
        [*_COMMAND, str(limits.memory_bytes)],
        user=_USER,
        hostname="sandbox",
        working_dir=protocol.WORK,
        environment=environment,
        labels={OWNER_LABEL: current_owner()},
        stdin_open=True,
        host_config=host,
    )


def _ulimits(limits: protocol.ResourceLimits, image: Image) -> Iterable[tuple[str, tuple[int, int]]]:
    yield "nofile", (limits.open_files, max(limits.open_files, _INIT_FILES))
    yield "fsize", (limits.file_bytes, limits.file_bytes)
    yield "cpu", (limits.cpu_seconds, limits.cpu_seconds)
    yield "core", (0, 0)
    yield "memlock", (0, 0)
    if image.is_gvisor:
        # The host does not see gVisor's processes: no control group counts them.
        yield "nproc", (limits.pids + 1, limits.pids + 1)


def _mount(kind: Any, target: str, source: str) -> Any:
    return kind(target, source, type="bind", read_only=True)


def _tmpfs_mounts(limits: protocol.ResourceLimits) -> dict[str, str]:
    # Divided: a daemon cannot mount one file system at three places.
    parts = {protocol.WORK: 2, "/tmp": 4, "/dev/shm": 4}
    return {
        path: f"rw,exec,nosuid,nodev,size={limits.scratch_bytes // part},"
        f"nr_inodes={limits.scratch_inodes // part},"
        f"mode=0700,uid={GUEST_ID},gid={GUEST_ID}"
        for path, part in parts.items()
    }
