"""Turns a failed setup step and its errno into an error that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import EngineError, SandboxUnavailable, TaskError

_STEPS = {
    "processor": "The system calls of this processor are not known",
    "fork": "A process for the sandbox cannot be started",
    "user_namespace": "User namespaces cannot be created",
    "namespaces": "Mount, pid, network, ipc, uts and cgroup namespaces cannot be created",
    "id_map": "User ids cannot be mapped into a user namespace",
    "mounts": "File systems cannot be mounted in a user namespace",
    "proc": "A /proc of its own cannot be mounted",
    "pivot_root": "The root directory cannot be changed",
    "identity": "The sandbox cannot take its own identity",
    "capabilities": "Capabilities cannot be given up",
    "rlimits": "Resource limits cannot be set",
    "landlock": "The Landlock rules cannot be applied",
    "seccomp": "The system-call filter cannot be installed",
    "cgroup": "The sandbox's control group cannot be set up",
    "zygote_root": "A mount namespace for the sandboxes cannot be built",
    "exec": "The interpreter cannot be started in the sandboxes' view of the machine",
}


def setup_error_for(step: str, code: int, packages: str | None) -> EngineError:
    """Return the error for a failed step, in a sandbox with these packages."""
    # The folder is the user's, so the task is wrong and not the machine.
    if step == "packages":
        return TaskError(
            f"packages: {packages!r} cannot be read in the sandbox ({os.strerror(code)}). Where the engine "
            "is root, a sandbox runs as another user: `chmod -R a+rX` on the folder lets every user read it"
        )
    return sandbox_unavailable_for(step, code)


def sandbox_unavailable_for(step: str, code: int) -> SandboxUnavailable:
    """Return the error for a failed step."""
    what = _STEPS.get(step, "The sandbox cannot be built")
    reason = os.strerror(code) if code else "no reason given"
    return SandboxUnavailable(f"{what} ({reason})", _remedy(step, code))


def _remedy(step: str, code: int) -> str:
    match step, code:
        case "processor", _:
            return "Run on x86_64 or aarch64."
        case _, errno.ENOMEM:
            return "The machine has no memory left for a sandbox: close other sandboxes, or other programs."
        case _, errno.EMFILE | errno.ENFILE:
            return "No more files can be opened here: raise the limit (`ulimit -n`, or `sysctl fs.file-max`)."
        case "fork", _:
            return (
                "No more processes are allowed here: close other sandboxes, or raise the limit of the user "
                "(`ulimit -u`), of the unit (`TasksMax=`) or of the container (`--pids-limit`)."
            )
        case _, errno.ENOSYS:
            return "The kernel is too old: Linux 5.12 or newer is needed."
        case "user_namespace", errno.ENOSPC:
            return (
                "The limit on namespaces is reached: raise it with `sysctl -w "
                "user.max_user_namespaces=10000`."
            )
        case "namespaces" | "zygote_root", errno.ENOSPC:
            return (
                "A limit on namespaces is reached: `sysctl -a --pattern user.max_.*_namespaces` shows "
                "them all; raise the one that is low."
            )
        case "zygote_root", errno.EINVAL:
            return (
                "This process probably runs in a chroot, whose root is no mount: enter it with pivot_root "
                "instead (`unshare --mount`, a container, or systemd-nspawn)."
            )
        case "cgroup", _:
            return (
                "The engine found control groups when it started, and cannot make or set one now: check "
                "whether another program changes them."
            )
        case _:
            return _remedy_here()


def _remedy_here() -> str:
    # The kernel says only "not permitted": these settings of the machine are the known reasons.
    if _is_one("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"):
        return (
            "AppArmor forbids user namespaces to ordinary users: allow them with "
            "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or run as root."
        )
    if Path("/proc/sys/kernel/unprivileged_userns_clone").exists() and not _is_one(
        "/proc/sys/kernel/unprivileged_userns_clone"
    ):
        return (
            "User namespaces are switched off for ordinary users: `sudo sysctl -w "
            "kernel.unprivileged_userns_clone=1`."
        )
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return (
            "This is a container that may not make namespaces: start it with `--privileged`, or with "
            "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN`."
        )
    return (
        "Run on a Linux host that allows user namespaces (`unshare --user --map-root-user true` must work)."
    )


def _is_one(path: str) -> bool:
    try:
        return Path(path).read_text().strip() == "1"
    except OSError:
        return False
