"""A run whose rollout workers' node is drained: a script, since it needs a Ray of its own.

Prints what the run says and, as its last line, what was seen, in JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from system.growing_cluster import at_work, node_of, small_experiment
from system.processes import wait_until

from amago_ray.watch.metrics import read_metrics


def drain(cluster: Cluster, node: Any) -> None:
    words = ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address, *words]
    subprocess.run([*command, "--deadline-remaining-seconds", "3600"], check=True, timeout=300)


def has_looked(experiment: Any) -> bool:
    """Whether the driver, which looks every five seconds, has found what is to move."""
    leaving = experiment._ring.leaving
    leaving.look()
    return bool(leaving._known)


def main(folder: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1, labels={"pool": "learner"})
    first = cluster.add_node(num_cpus=2, labels={"pool": "rollout"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    experiment = small_experiment(folder, workers=2)
    with experiment:
        experiment.start()
        topology = experiment._ring._topology
        before = [node_of(worker) for worker in topology._workers]
        second = cluster.add_node(num_cpus=2, labels={"pool": "rollout"})
        experiment.learn(until=1)
        drain(cluster, first)
        wait_until(lambda: has_looked(experiment), "nobody sees that the node is drained")
        experiment.learn()
        at_work(experiment, 2)
        after = [node_of(worker) for worker in topology._workers]
    rows = read_metrics(experiment.directory.root)
    seen = {
        "before": before,
        "after": after,
        "first": first.node_id,
        "second": second.node_id,
        "frames": [row["total_frames"] for row in rows if row["section"] == "collect"],
    }
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
