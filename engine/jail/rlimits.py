"""Set the kernel's limits of a guest process (getrlimit(2))."""

from __future__ import annotations

import resource

from ...sandbox_image.protocol import ResourceLimits

# Address space of a process without a control group: 512 bytes that were read take one byte of page tables.
# Allocators and compilers reserve gigabytes. Each thread has a stack and an arena (malloc(3)).
_RESERVED_BYTES = 8 << 30
_RESERVED_FOR_MEMORY = 16
_THREAD_RESERVED_BYTES = 72 << 20
# A control group reports that its limit on processes was reached. This limit does not, so it is higher.
_SPARE_PROCESSES = 64
# Timers count too (timer_create(2)). The host's limit is for all processes of the engine's user.
_QUEUED_SIGNALS = 1024
# The kernel counts descriptors in flight by user, against the sender's limit (unix(7)). So the limits of shim
# and init must be above the guest's.
_SENDERS_PART = 2


def apply(limits: ResourceLimits, *, has_cgroup: bool) -> None:
    """Set them for this process. A lower limit of the engine's own stays."""
    wanted = {
        # Writable memory.
        resource.RLIMIT_DATA: limits.memory_bytes,
        # No core file (core(5)).
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_SIGPENDING: _QUEUED_SIGNALS,
        resource.RLIMIT_NPROC: limits.pids + (_SPARE_PROCESSES if has_cgroup else 1),
    }
    if not has_cgroup:
        wanted[resource.RLIMIT_AS] = (
            _RESERVED_BYTES
            + _RESERVED_FOR_MEMORY * limits.memory_bytes
            + _THREAD_RESERVED_BYTES * limits.pids
        )
    for kind, value in wanted.items():
        held = _lower(value, resource.getrlimit(kind)[1])
        resource.setrlimit(kind, (held, held))
    # Only the soft limit: init lowers the hard one for the repl.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_lower(limits.open_files, most // _SENDERS_PART), most))


def unmet(limits: ResourceLimits) -> list[str]:
    """Return what this process may not give to a guest, because its own hard limits are lower.

    Each is a text with the name and value in ``SandboxConfig``, the option of ``ulimit``, and in its unit
    what is needed and what it is.
    """
    files, scratch = limits.open_files, limits.file_bytes // 2
    # ulimit counts these in KiB.
    kib = 1 << 10
    wanted = (
        ("open_files", files, "n", resource.RLIMIT_NOFILE, files * _SENDERS_PART, 1),
        ("pids", limits.pids, "u", resource.RLIMIT_NPROC, limits.pids + 1, 1),
        ("memory", limits.memory_bytes, "d", resource.RLIMIT_DATA, limits.memory_bytes, kib),
        ("memory", limits.memory_bytes, "v", resource.RLIMIT_AS, limits.memory_bytes, kib),
        ("scratch", scratch, "f", resource.RLIMIT_FSIZE, scratch, kib),
        ("cpu_seconds", limits.cpu_seconds, "t", resource.RLIMIT_CPU, limits.cpu_seconds, 1),
    )
    found: list[str] = []
    for name, asked, option, kind, value, unit in wanted:
        most = resource.getrlimit(kind)[1]
        if _lower(value, most) < value:
            needed = -(-value // unit)
            found.append(f"{name}={asked} needs `ulimit -H{option}` {needed}, but it is {most // unit}")
    return found


def _lower(value: int, most: int) -> int:
    return value if most == resource.RLIM_INFINITY else min(value, most)
