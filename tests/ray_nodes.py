"""A Ray cluster of three nodes on this machine, as a program.

It prints its address, and kills a node for each line that it reads. Like a lost machine, a node takes all its
processes with it; ``remove_node`` alone leaves workers that may still answer.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from typing import Any

import psutil


def main() -> None:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on 127.0.0.1 alone
    cluster_utils: Any = import_module("ray.cluster_utils")
    small = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=small)
    others = [cluster.add_node(num_cpus=2, object_store_memory=80 << 20) for _ in range(2)]
    cluster.wait_for_nodes()
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        node = others.pop()
        own = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos]
        started = [child for process in own for child in process.children(recursive=True)]
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        cluster.remove_node(node, allow_graceful=False)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive, f"still there: {alive}"
        sys.stdout.write("killed\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
