"""A run on a cluster that begins too small, grows, has a node drained and loses others: a script, since it needs a Ray
of its own.

Prints what the run says, a line where nobody is left on the drained node and, last of all, what was seen, in JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
from conftest import TINY_NETWORKS
from ray.cluster_utils import Cluster
from system.processes import wait_until

from amago_ray import Experiment, config
from amago_ray.envs.builtin import Counting
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.watch.metrics import read_metrics

WORKERS = 3
# A node that does not answer is given up after 5 seconds in place of 15: what is tried is what comes after that.
SOON_GIVEN_UP = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}


def node_of(actor: Any) -> str:
    return ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()), timeout=60)


def wait_until_gone(actors: list[Any]) -> None:
    """Wait until calls to these actors fail: a node's processes go on for a moment after its raylet was killed."""

    def are() -> bool:
        for actor in actors:
            done, _ = ray.wait([ping := actor.__ray_ready__.remote()], timeout=10)
            if not done:
                return False
            try:
                ray.get(ping)
            except ray.exceptions.RayActorError:
                continue
            return False
        return True

    wait_until(are, f"{len(actors)} processes of a lost node still answer", 120)


def drain(cluster: Cluster, node: Any) -> None:
    words = ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address, *words]
    subprocess.run([*command, "--deadline-remaining-seconds", "3600"], check=True, timeout=300)


def has_looked(experiment: Any) -> bool:
    """Whether the driver, which looks every five seconds, has found what is to move."""
    leaving = experiment._ring.leaving
    leaving.look()
    return bool(leaving._known)


def small_experiment(folder: str) -> Experiment:
    config.load([], TINY_NETWORKS)
    return Experiment(
        run_name="grows",
        ckpt_base_dir=folder,
        make_train_env=Counting,
        traj_encoder_type=GRUTrajEncoder,
        max_seq_len=8,
        parallel_actors=6,
        num_rollout_workers=WORKERS,
        num_replay_shards=2,
        train_timesteps_per_epoch=24,
        train_batches_per_epoch=4,
        batch_size=4,
        epochs=6,
        val_interval=1,
        ckpt_interval=1,
        replay_capacity_gb=0.02,
        schedule="alternate",
        learner_device="cpu",
        call_timeout_s=60.0,
    )


def at_work(experiment: Experiment, num: int) -> int:
    """Wait until so many workers are up."""
    presence = experiment._ring._liveness

    def are() -> bool:
        presence.look()
        return len(presence.here) == num

    wait_until(are, f"{num} workers are not at work", 120)
    return len(presence.here)


def main(folder: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": SOON_GIVEN_UP})
    learning = cluster.add_node(num_cpus=1, labels={"pool": "learner"})
    first = cluster.add_node(num_cpus=1, labels={"pool": "rollout"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    experiment = small_experiment(folder)
    seen: dict[str, Any] = {"here": []}
    with experiment:
        experiment.start()
        topology = experiment._ring._topology
        seen["here"].append(at_work(experiment, 1))
        experiment.learn(until=1)
        second = cluster.add_node(num_cpus=2, labels={"pool": "rollout"})
        seen["here"].append(at_work(experiment, WORKERS))
        experiment.learn(until=2)
        seen["nodes"] = {
            "learner": [node_of(learner) for learner in topology._learners],
            "shard": [node_of(shard) for shard in topology._shards],
            "worker": sorted(node_of(worker) for worker in topology._workers),
        }
        seen["learning"], seen["rollout"] = learning.node_id, sorted([first.node_id, second.node_id])
        moved = [worker for worker in topology._workers if node_of(worker) == second.node_id]
        third = cluster.add_node(num_cpus=2, labels={"pool": "rollout"})
        drain(cluster, second)
        wait_until(lambda: has_looked(experiment), "nobody sees that the node is drained")
        experiment.learn(until=3)
        at_work(experiment, WORKERS)
        seen["moved"], seen["third"] = [node_of(worker) for worker in moved], third.node_id
        print("--- the drained node is left", flush=True)
        cluster.remove_node(third, allow_graceful=False)
        wait_until_gone(moved)
        experiment.learn(until=5)
        seen["here"].append(at_work(experiment, 1))
        cluster.add_node(num_cpus=1, labels={"pool": "learner"})
        cluster.remove_node(learning, allow_graceful=False)
        wait_until_gone(topology._learners)
        experiment.learn()
    seen["frames"] = [
        row["total_frames"] for row in read_metrics(experiment.directory.root) if row["section"] == "collect"
    ]
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
