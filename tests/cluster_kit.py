"""A Ray cluster of several nodes on this machine, in a process of its own that does what lines on its input say.

python tests/cluster_kit.py CPUS...   one node a number, the first is the head. It answers each line with one of JSON:
`nodes` the living ones, `where CLASS` the node of an actor of that class, `kill NODE`, `drain NODE`, `add CPUS`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """The other side: starts such a process and talks to it."""

    def __init__(self, folder: Path, *cpus: int) -> None:
        self.env = {
            **os.environ,
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, *map(str, cpus)]
        self.process = subprocess.Popen(
            command,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address = self._answer()

    def ask(self, *words: object) -> Any:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        while line := self.process.stdout.readline():
            if line.startswith("="):
                return json.JSONDecoder().raw_decode(line[1:])[0]  # Ray may print behind it
        raise AssertionError(f"the cluster ended: {self.process.wait()}")

    def end(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.state import list_actors

    def answer(value: Any) -> None:
        sys.stdout.write(f"={json.dumps(value)}\n")  # at once: Ray's threads print in between
        sys.stdout.flush()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    memory = 80 * 2**20
    cpus = [int(a) for a in sys.argv[1:]]
    settings = {
        "num_cpus": cpus[0],
        "object_store_memory": memory,
        "_system_config": HEALTH,
        "include_dashboard": True,
        "dashboard_port": port,
    }
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    for count in cpus[1:]:
        cluster.add_node(num_cpus=count, object_store_memory=memory)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="error")
    answer(cluster.address)
    for line in sys.stdin:
        what, *more = line.split()
        by_id = {node.node_id: node for node in cluster.worker_nodes}
        if what == "nodes":
            answer([n["NodeID"] for n in ray.nodes() if n["Alive"]])
        elif what == "where":
            found = list_actors(
                cluster.address, filters=[("class_name", "=", more[0]), ("state", "=", "ALIVE")]
            )
            answer([a.node_id for a in found if a.node_id in by_id])
        elif what == "kill":
            cluster.remove_node(by_id[more[0]], allow_graceful=False)
            answer(True)
        elif what == "drain":
            from ray._private.worker import global_worker
            from ray.core.generated import autoscaler_pb2

            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline = int((time.time() + float(more[1])) * 1000)
            answer(bool(global_worker.gcs_client.drain_node(more[0], reason, "a test", deadline)[0]))
        elif what == "add":
            answer(cluster.add_node(num_cpus=int(more[0]), object_store_memory=memory).node_id)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
