"""Run the guest in a container: ``python -I -m supdist.sandbox_image.guest [MEMORY_BYTES]``."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
from typing import NoReturn

from .. import linux
from ..environment import COMMANDS
from . import relay
from .streams import Stream

# A container's control group is removed with its first process. The shim reads it before that.
_LINGER_SECONDS = 2.0

_FIRST_FREE_FD = 10


def main() -> NoReturn:
    """Move the stream to high descriptors, and run init."""
    reader, writer = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for fd in (0, 1))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    for fd in (reader, writer):
        os.set_blocking(fd, True)
    # Guest code must not open the stream through /proc/1/fd.
    linux.set_undumpable()
    if len(sys.argv) > 1:
        # Not a limit of the container: a runtime that still compiles a seccomp filter would reach it.
        memory_bytes = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # `python -I` ignores PYTHONPATH, but these packages are there for the guest.
    folders = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path += [each for each in folders if each != COMMANDS]
    # Not in the image's own variables: pip works while other images are built on it.
    for name, paths in (
        ("PATH", os.environ.get("PATH", os.defpath).split(os.pathsep)),
        ("PYTHONPATH", folders),
    ):
        os.environ[name] = os.pathsep.join(paths if COMMANDS in paths else [COMMANDS, *paths])
    # PID 1 gets only signals that it has a handler for, and Python has one for SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    relay.main(Stream(reader, writer), linger=_LINGER_SECONDS)


if __name__ == "__main__":
    main()
