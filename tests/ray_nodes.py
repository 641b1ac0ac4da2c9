"""A Ray cluster of three nodes on this machine, as a program: it prints its address, and kills a node for each line that it
reads.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any


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
        cluster.remove_node(others.pop(), allow_graceful=False)
        sys.stdout.write("killed\n")
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
