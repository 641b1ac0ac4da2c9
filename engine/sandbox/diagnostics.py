"""Turns a failed setup step and its errno into an error that says what to do."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import EngineError, SandboxUnavailable, TaskError
from .refusals import REPORT, kernel_release, read_privileges, remedy_for_refusal

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


_NO_MEMORY = (
    "No memory is left for a sandbox: close other sandboxes or programs, or raise the limit of this process "
    "(`ulimit -v`), of the unit (`MemoryMax=`) or of the container (`--memory`)."
)
_NO_PROCESS = (
    "No more processes are allowed here: close other sandboxes, or raise the limit of the user "
    "(`ulimit -u`), of the unit (`TasksMax=`) or of the container (`--pids-limit`)."
)
_NO_DESCRIPTOR = "No more files can be opened here: raise the limit (`ulimit -n`, or `sysctl fs.file-max`)."
_TMPDIR = "Let TMPDIR name a folder that exists and can be written."
_OLDEST_KERNEL = (5, 12)
_SHORTAGES = {
    errno.ENOMEM: _NO_MEMORY,
    errno.EMFILE: _NO_DESCRIPTOR,
    errno.ENFILE: _NO_DESCRIPTOR,
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`).",
}
# What Python and the dynamic linker write when memory runs out. The last two are of a SystemError: there was
# no memory for the MemoryError.
_NO_MEMORY_WORDS = (
    "MemoryError",
    "Cannot allocate memory",
    "failed to map segment",
    "without exception set",
    "without setting an exception",
)


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


def did_not_start(cause: str) -> SandboxUnavailable:
    """Return the error for a zygote that ended before it was ready, by what it wrote or how it ended."""
    is_short = any(word in cause for word in _NO_MEMORY_WORDS)
    return SandboxUnavailable(
        f"The process that forks sandboxes did not start; it reports: {cause}",
        _NO_MEMORY if is_short else "`supdist-engine doctor` tests what it needs.",
    )


@contextmanager
def translate_shortage(what: str) -> Generator[None]:
    """Raise ``SandboxUnavailable`` for an error of the system; ``what`` failed.

    Raises:
        SandboxUnavailable: no descriptor, memory, process, thread or room was left.
    """
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        reason = f"{error.strerror or error}{place}"
        raise SandboxUnavailable(f"{what} ({reason})", _remedy_for(error)) from error
    except MemoryError as error:
        raise SandboxUnavailable(f"{what} (Cannot allocate memory)", _NO_MEMORY) from error
    except RuntimeError as error:
        # threading has no class of its own for this.
        if "start new thread" not in str(error):
            raise
        raise SandboxUnavailable(f"{what} ({error})", _NO_PROCESS) from error


def _remedy_for(error: OSError) -> str:
    match error.errno:
        case errno.EAGAIN:
            return _NO_PROCESS
        case errno.ENOSPC | errno.EDQUOT:
            return "Make room there (`df`, `quota`)."
        case errno.EROFS | errno.EACCES | errno.EPERM | errno.ENOENT | errno.ENOTDIR:
            return _remedy_for_path(error)
        case code:
            return _remedy("", code or 0)


def _remedy_for_path(error: OSError) -> str:
    path = error.filename
    # tempfile's own error has no path.
    if path is None and "temporary" in str(error):
        return _TMPDIR
    if isinstance(path, str):
        if path == sys.executable:
            return (
                "The engine's interpreter was removed or closed: install it again, and start a new process."
            )
        folders = (os.environ.get("TMPDIR"), tempfile.tempdir, "/tmp", "/var/tmp", "/dev/shm")
        if any(folder and path.startswith(folder.rstrip("/") + "/") for folder in folders):
            return _TMPDIR
    return "`supdist-engine doctor` tests what sandboxes need."


def named_signal(number: int) -> str:
    """Return a signal's number, and its name if it has one."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def describe_exit(status: int) -> str:
    """Say how a shim ended, by its wait status."""
    if os.WIFSIGNALED(status):
        return f"the sandbox's shim was killed by {named_signal(os.WTERMSIG(status))}"
    if status:
        return f"the sandbox's shim failed with exit status {os.waitstatus_to_exitcode(status)}"
    return "the sandbox ended"


def _remedy(step: str, code: int) -> str:
    if step == "processor":
        return "Run on x86_64 or aarch64."
    if code in _SHORTAGES:
        return _SHORTAGES[code]
    if step == "cgroup":
        return (
            "The engine found control groups when it started, and cannot make or set one now: check "
            "whether another program changes them."
        )
    if code in (errno.EPERM, errno.EACCES):
        return remedy_for_refusal(step, read_privileges())
    return _remedy_by_code(step, code)


def _remedy_by_code(step: str, code: int) -> str:
    match step, code:
        case "fork", errno.EAGAIN:
            return _NO_PROCESS
        case _, errno.ENOSYS:
            return no_such_call(kernel_release())
        case "seccomp", errno.EINVAL:
            return "Run a kernel with CONFIG_SECCOMP_FILTER."
        case "user_namespace", errno.ENOSPC:
            return (
                "The limit on namespaces is reached: raise it with `sysctl -w "
                "user.max_user_namespaces=10000`."
            )
        case "namespaces" | "zygote_root", errno.ENOSPC:
            return (
                "A limit on namespaces or mounts is reached: `sysctl -a --pattern "
                "'user.max_.*_namespaces|fs.mount-max'` shows them all; raise the one that is low."
            )
        case "zygote_root", errno.EINVAL:
            return (
                "This process probably runs in a chroot, whose root is no mount: enter it with pivot_root "
                "instead (`unshare --mount`, a container, or systemd-nspawn)."
            )
        case _:
            return REPORT


def no_such_call(release: tuple[int, int]) -> str:
    """Return what to do where a kernel of this release does not know a call (ENOSYS)."""
    if release < _OLDEST_KERNEL:
        return "The kernel is too old: Linux 5.12 or newer is needed."
    return (
        "A filter of system calls hides a call of this kernel: start the container with a newer runtime, or "
        "with `--security-opt seccomp=unconfined`."
    )
