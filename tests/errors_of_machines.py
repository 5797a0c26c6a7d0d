"""What can be wrong with clusters, disks and memory."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import ray
import torch
from error_case import Case, Provoke, with_settings
from error_scene import MACHINE, Outcome, Scene, learner_with_data
from fake_topology import FakeTopology

from amago_ray.driver.out_of_memory import naming_what_to_lower
from amago_ray.driver.placement import Cluster, Node, Resources
from amago_ray.run_directory import RunDirectory

# ---------------------------------------------------------------- machines


def on_cluster(*bindings: str, cluster: Cluster = MACHINE) -> Provoke:
    return with_settings(*bindings, cluster=cluster)


def _nobody_there(scene: Scene) -> Outcome:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scene.real_connect = True
    with scene.patch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)  # other tests share one with this process
        return with_settings(f"Experiment.ray_address = '127.0.0.1:{port}'")(scene)


def _no_permission(scene: Scene) -> Outcome:
    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    config = scene.config()
    with scene.patch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        return scene.command("--config", config)


def _disk_full(scene: Scene) -> Outcome:
    config, fsync = scene.config(), os.fsync

    def refuse(descriptor: int) -> None:
        if os.path.isfile(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    scene.cluster = MACHINE
    with scene.patch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        return scene.command("--config", config)


def _port_in_use(scene: Scene) -> Outcome:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        return scene.command("board", scene.run, "--port", taken.getsockname()[1])


def _two_at_once(scene: Scene) -> Outcome:
    config = scene.config()
    scene.runs.mkdir()
    with RunDirectory(scene.runs, "run").locked():
        return scene.command("--config", config)


class OutOfMemoryTopology(FakeTopology):
    """Its learner asks for more memory than any machine has."""

    def train(self, num_batches: int, mixture: Any) -> list[Any]:
        def answer() -> None:
            with naming_what_to_lower(self.plan, 0):
                torch.empty(1 << 60, dtype=torch.uint8)

        return [self._call("train", num_batches, answer)]


class OutOfGpuTopology(FakeTopology):
    """What PyTorch raises where a GPU has too little."""

    def train(self, num_batches: int, mixture: Any) -> list[Any]:
        def answer() -> None:
            with naming_what_to_lower(self.plan, 0):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

        return [self._call("train", num_batches, answer)]


class NonFiniteTopology(FakeTopology):
    """Its learner's weights are not numbers, and so is every loss."""

    def train(self, num_batches: int, mixture: Any) -> list[Any]:
        def answer() -> None:
            learner = learner_with_data(self.plan)
            for parameter in learner.agent.parameters():
                parameter.data.fill_(float("nan"))
            learner.train(1)

        return [self._call("train", num_batches, answer)]


def training_with(topology: type[FakeTopology], *bindings: str, cluster: Cluster = MACHINE) -> Provoke:
    def provoke(scene: Scene) -> Outcome:
        scene.topology = topology
        return with_settings(*bindings, cluster=cluster)(scene)

    return provoke


def _disk_full_later(scene: Scene) -> Outcome:
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: len(data) // 2]) if data.startswith(b'{"section"') else write(descriptor, data)

    with scene.patch.context() as patch:
        patch.setattr(os, "write", half)
        return training_with(FakeTopology)(scene)


def _read_only_later(scene: Scene) -> Outcome:
    """The disk of the run's folder, after the first epoch."""
    write, fsync, unlink = os.write, os.fsync, os.unlink
    rows: list[bytes] = []

    def refused(path: Any = None) -> None:
        if rows:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path and str(path))

    def row(descriptor: int, data: bytes) -> int:
        if data.startswith(b'{"section": "train", "epoch": 1'):
            rows.append(data)
        refused()
        return write(descriptor, data)

    with scene.patch.context() as patch:
        patch.setattr(os, "write", row)
        patch.setattr(os, "fsync", lambda descriptor: (refused(), fsync(descriptor))[1])
        patch.setattr(os, "unlink", lambda path, **more: (refused(path), unlink(path, **more))[1])
        return training_with(FakeTopology, "Experiment.ckpt_interval = 1")(scene)


GPUS = Cluster(4, (Node("10.0.0.1", Resources(4, 2, 8e9), Resources(4, 2, 8e9)),))

MACHINES = (
    Case(
        "more learners than GPUs", on_cluster("Experiment.num_learners = 3", cluster=GPUS), ("num_learners=3", "are 2")
    ),
    Case(
        "a GPU where there is none",
        on_cluster("Experiment.learner_device = 'cuda'"),
        ("num_learners=1", "needs a GPU of its own and there are 0"),
    ),
    Case(
        "more cores than a machine has",
        on_cluster("Experiment.learner_cpus = 99"),
        ("1 of 1 learners, which need 99 CPUs each", "lower Experiment.num_learners or learner_cpus"),
    ),
    Case(
        "more memory than a machine has",
        on_cluster("Experiment.replay_capacity_gb = 1000.0", "Experiment.replay_durable = False"),
        ("replay shard", "lower Experiment.num_replay_shards or replay_capacity_gb"),
    ),
    Case(
        "workers on nodes that there are not",
        on_cluster("Experiment.rollout_nodes = {'pool': 'rollout'}"),
        ("rollout worker", "labelled pool=rollout", "Experiment.rollout_nodes"),
    ),
    Case(
        "more processes than any cluster has",
        with_settings("Experiment.num_replay_shards = 1000000000"),
        ("num_replay_shards=1000000000", "at most"),
    ),
    Case("an address where no Ray answers", _nobody_there, ("Experiment.ray_address=", "no Ray cluster answers there")),
    Case(
        "an address with a password",
        with_settings("Experiment.ray_address = 'ray://me:hunter2@head:10001'"),
        ("Experiment.ray_address holds", "write host:port"),
    ),
    Case("a port in use", _port_in_use, ("--port", "something else is served there", "0 for any that is free")),
    Case("an address that is none", with_settings("Experiment.ray_address = 5"), ("ray_address=5", "text")),
    Case(
        "a folder that may not be written", _no_permission, ("ckpt_base_dir=", "cannot be written: Permission denied")
    ),
    Case(
        "a file where a folder should be",
        lambda scene: scene.command("--config", scene.config(f"Experiment.ckpt_base_dir = {scene.file('file')!r}")),
        ("ckpt_base_dir=", "file", "cannot be written"),
    ),
    Case("two runs in one folder at a time", _two_at_once, ("this run is at work already", "another run_name")),
    Case("a disk that is full at the start", _disk_full, ("ckpt_base_dir=", "No space left on device")),
    Case(
        "a disk that is full after an epoch", _disk_full_later, ("metrics.jsonl", "No space left on device"), began=True
    ),
    Case(
        "a disk that becomes read-only",
        _read_only_later,
        ("metrics.jsonl", "Read-only file system; make it writable again, then --resume auto", "of epoch 1"),
        began=True,
    ),
    Case(
        "a learner that runs out of memory",
        training_with(OutOfMemoryTopology),
        ("learner 0 ran out of memory", "tried to allocate", "lower Experiment.batch_size=4", "max_seq_len=8"),
        began=True,
    ),
    Case(
        "a learner that runs out of a GPU's memory",
        training_with(OutOfGpuTopology, cluster=GPUS),
        ("learner 0 ran out of the memory of its GPU", "20.00 MiB", "batch_size=4", "set mixed_precision='bf16'"),
        began=True,
    ),
    Case(
        "a loss that is not a number",
        training_with(NonFiniteTopology),
        ("is not a number at batch 0; that update is not made", "lower Experiment.learning_rate"),
        began=True,
    ),
)
