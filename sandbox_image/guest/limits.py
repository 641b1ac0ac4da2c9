"""Make the kernel apply the guest's limits to the repl."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource

from .procfs import read, write

_ARENA_BYTES = 64 << 20
_ARENAS_PER_CPU = 8


def prefer_for_oom_kill() -> None:
    """Let the kernel kill this process first when memory runs out."""
    # oom_score_adj in proc(5). Best effort: it only decides which process is killed first.
    with contextlib.suppress(OSError):
        write("/proc/self/oom_score_adj", "1000")


def apply_gvisor_limits() -> None:
    """Set the limits that gVisor counts differently."""
    # gVisor counts processor time from the moment when the process itself sets the limit.
    resource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU))
    _, data_bytes = resource.getrlimit(resource.RLIMIT_DATA)
    if data_bytes == resource.RLIM_INFINITY:
        return
    # Linux counts a private writable mapping towards RLIMIT_DATA (getrlimit(2)); gVisor does not.
    try:
        mmap.mmap(-1, data_bytes + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return
    limit = data_bytes + _address_space_besides_data()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# What RLIMIT_AS counts and RLIMIT_DATA does not.
def _address_space_besides_data() -> int:
    lines = read("/proc/self/status").splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Vm"))
    size, data = (int(fields[name].split()[0]) << 10 for name in ("VmSize", "VmData"))
    # glibc reserves an arena for each thread, at most 8 for each processor (malloc(3)).
    arenas = _ARENAS_PER_CPU * (os.cpu_count() or 1)
    processes = (count for count in resource.getrlimit(resource.RLIMIT_NPROC) if count >= 0)
    return size - data + min(arenas, *processes) * _ARENA_BYTES
