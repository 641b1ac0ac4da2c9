"""What the doctor says to do about a layer, by the cause that it can see."""

from __future__ import annotations

import os
from pathlib import Path

from .config import GVISOR

_LIBSECCOMP = "Install libseccomp: `apt-get install libseccomp2` (or your distribution's package)."
_DAEMON_FILTER = "Use a daemon that applies filters: `docker info` lists seccomp among its security options."
_UNTIL_THEN = "Until then a watchdog checks, and can be late."
_CGROUPS_OF_ROOT = (
    "Mount /sys/fs/cgroup so that this process may write there; for a container: `--privileged`, or "
    "`-v /sys/fs/cgroup:/sys/fs/cgroup:rw`."
)
_CGROUPS_OF_SYSTEMD = (
    "Run the engine where it may make control groups: as root, in a service with `Delegate=yes`, or with "
    "`systemd-run --user --scope -p Delegate=yes supdist-engine ...`."
)
_CGROUPS_OF_USER = (
    "Run the engine as root, or on a machine with systemd, which lets users make control groups."
)
_OLD_OVERLAYS = "Boot Linux 5.11 or newer, which has overlays in user namespaces; folders are bound instead."
_NO_OVERLAYS = (
    "The folder's file system refuses one more overlay, as in a container: nothing is wrong, the folder is "
    "bound instead. On a plain file system it is an overlay."
)
_LANDLOCK = "Boot a kernel with Landlock (CONFIG_SECURITY_LANDLOCK, `lsm=landlock,...`), Linux 6.7 or newer."
_LANDLOCK_OFF = (
    "Add `landlock` to the kernel's parameter `lsm=` (/sys/kernel/security/lsm lists what is on). In a "
    "container, its filter of system calls must allow it, too."
)
DOCKER_MOUNTS = "Docker shows its containers, in their mounts, where its data lies."
OWN_KERNEL = "Under gVisor its own kernel answers, not the host's."
_DOCKER_LIMITS = "Let the daemon apply the limits: `docker info` warns of those that it cannot apply."
GVISOR_LIMITS = "Let the runtime apply the limits: configure runsc without `--ignore-cgroups`."
REPORT = (
    "This should hold wherever a sandbox starts; please report it with the output of "
    "`supdist-engine doctor --json`."
)


def filter_remedy(backend: str, *, has_filter: bool) -> str:
    """Return what to do about a system call that was not refused."""
    if has_filter:
        return REPORT
    return _LIBSECCOMP if backend == "process" else _DAEMON_FILTER


def overlay_remedy(release: tuple[int, int]) -> str:
    """Return what to do about a folder that is bound, on a kernel of this release."""
    return _OLD_OVERLAYS if release < (5, 11) else _NO_OVERLAYS


def landlock_remedy(release: tuple[int, int]) -> str:
    """Return what to do about TCP rules that do not hold, on a kernel of this release."""
    return _LANDLOCK if release < (6, 7) else _LANDLOCK_OFF


def limits_remedy(backend: str) -> str:
    """Return what to do where sandboxes of a backend have no control group."""
    if backend == "process":
        return cgroup_remedy(is_root=os.geteuid() == 0, has_systemd=has_systemd())
    return GVISOR_LIMITS if backend == GVISOR else _DOCKER_LIMITS


def cgroup_remedy(*, is_root: bool, has_systemd: bool) -> str:
    """Return what to do where the process backend has no control group."""
    remedy = _CGROUPS_OF_ROOT if is_root else _CGROUPS_OF_SYSTEMD if has_systemd else _CGROUPS_OF_USER
    return f"{remedy} {_UNTIL_THEN}"


def has_systemd() -> bool:
    """Return whether systemd runs this machine."""
    # sd_booted(3)
    return Path("/run/systemd/system").is_dir()
