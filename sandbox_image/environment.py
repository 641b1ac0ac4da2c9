"""What every guest finds around it, with any backend."""

from __future__ import annotations

import math
import os

# The uid and gid that a guest sees as its own (nobody).
GUEST_ID = 65534

SECCOMP_PROFILE = os.path.join(os.path.dirname(__file__), "seccomp.json")

# `python` and `python3` of the sandbox's own version; and what stands in for pip, uv and conda.
COMMANDS = "/opt/commands"
INSTALLERS = ("pip", "pip3", "uv", "conda", "mamba")

# Nothing of the host's environment is passed on. The Dockerfile repeats these; a test compares them.
VARIABLES = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",  # matplotlib finds no screen
    "MPLCONFIGDIR": "/tmp/matplotlib",
    "PATH": f"{COMMANDS}:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": COMMANDS,  # for `python -m pip`
    "TMPDIR": "/tmp",
    "USER": "sandbox",
}

# These files describe the host or its kernel (proc(5)). An ordinary user cannot open most of the first.
# Those that libraries read stay open: cpuinfo, filesystems, loadavg, meminfo, stat, uptime, vmstat.
MASKED_PROC_FILES = (
    "config.gz", "interrupts", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg",
    "latency_stats", "modules", "pagetypeinfo", "sched_debug", "slabinfo", "sysrq-trigger", "timer_list",
    "timer_stats", "vmallocinfo",
    # They tell one machine from another.
    "sys/kernel/random/boot_id", "cmdline", "consoles", "devices", "diskstats", "misc", "mtrr", "partitions",
    "swaps", "version",
    # What the whole machine does.
    "buddyinfo", "cgroups", "schedstat", "softirqs", "zoneinfo",
)  # fmt: skip
# These folders describe the host's devices; the last is its load.
MASKED_PROC_FOLDERS = ("acpi", "asound", "bus", "driver", "fs", "irq", "scsi", "pressure")


def packages_variables(folder: str, cpus: float, pids: int) -> dict[str, str]:
    """Return the variables of a guest that imports from ``folder``."""
    # By default BLAS and OpenMP start a thread for each processor of the host. Each counts towards `pids`.
    threads = str(max(1, min(math.ceil(cpus), pids // 4)))
    return {
        "PYTHONPATH": f"{folder}:{COMMANDS}",
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
    }
