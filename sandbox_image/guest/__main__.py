"""The guest as a container's first process: ``python -I -m supdist.sandbox_image.guest [BYTES]``, frames on stdin and stdout.

BYTES is what a process may have of memory. It is no limit of the container's own, since a runtime that still has a
filter of system calls to make would come up against it.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
from typing import NoReturn

from ..linux import set_undumpable
from .init import Relay, Stream

_LINGER_SECONDS = 2.0
"""A container's control group goes with its first process; the shim reads it before that."""

_HIGH = 10


def main() -> NoReturn:
    """Move the stream out of the way of whatever else is printed or read, and be init. Never returns."""
    reader, writer = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in (0, 1))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    for fd in (reader, writer):
        os.set_blocking(fd, True)
    set_undumpable()
    if len(sys.argv) > 1:
        most = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    # An isolated interpreter does not read it; what lies there was put there for the code that is to run.
    sys.path += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    # The first process of a namespace gets no signal that it has no handler for, and Python has one for this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Relay(Stream(reader, writer), linger=_LINGER_SECONDS).relay()


if __name__ == "__main__":
    main()
