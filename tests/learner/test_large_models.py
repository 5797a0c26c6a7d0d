"""Learners of large models: micro batches and recomputation, alone and in a group, change memory and nothing else."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState
from agent_cases import actor, critics, every_critic, tformer, tstep_encoder
from ring_cases import make_shards, trajectory

from amago_ray.agent import Agent
from amago_ray.agent.spec import AgentSpec
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.specs import ActionSpec, ArraySpec

OBS_SPEC = {"from": ArraySpec((4,), "int16"), "pixels": ArraySpec((2, 2), "uint8")}
ACTION_SPEC = ActionSpec("discrete", (), "int64", 3, (3,))
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "pieces": {"micro_batch_size": 2},
    "pieces of packed": {"micro_batch_size": 2, "packed": True},
    "again": {"activation_checkpointing": True},
    "both": {"micro_batch_size": 3, "activation_checkpointing": True},
}
CLONES = {"fake_filter": True, "online_coeff": 0.0}  # critics take no gradient


def make_learner(rank: int = 0, world_size: int = 1, clones: bool = False, **settings: Any) -> Learner:
    """One that draws nothing at random but batches, which are the same whatever the settings."""
    (shard,) = make_shards(1, 8, mode="prioritized")
    shard.push(pack([trajectory(i, 2 + i % 7) for i in range(16)]))
    shard.commit()
    agent_type = partial(Agent, actor_type=actor, critic_type=critics, **(CLONES if clones else {}))
    spec = AgentSpec(OBS_SPEC, ACTION_SPEC, 8, tstep_encoder, tformer, agent_type, seed=0)
    reader = ReplayReader([LocalShard(shard)], 7, seed=0, rank=rank)
    config = LearnerConfig(learning_rate=1e-3, lr_warmup_steps=1, log_interval=2, **settings)
    learner = Learner(config, spec, reader, rank, world_size)
    learner.agent.td_ensemble = partial(every_critic, learner.agent)  # type: ignore[method-assign]
    return learner


def forget_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def learned(rank: int = 0, world_size: int = 1, **settings: Any) -> dict[str, torch.Tensor]:
    """Gradient, weights and statistics after some updates, and means of what was logged."""
    forget_accelerator()
    learner = make_learner(rank, world_size, **settings)
    report = learner.train(4)
    state = {name: value.clone() for name, value in learner.agent.state_dict().items()}
    logged = {name: torch.tensor(value) for name, value in report.metrics.items() if "Padding" not in name}
    assert report.updates == 4 // settings.get("batches_per_update", 1)
    return state | logged


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "whole"])
@pytest.mark.parametrize("batches_per_update", [1, 2])
def test_four_batches_teach_the_same(name: str, batches_per_update: int) -> None:
    whole = learned(batches_per_update=batches_per_update)
    parts = learned(batches_per_update=batches_per_update, **SETTINGS[name])
    assert_same(parts, whole)


def assert_same(parts: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        # A step of AdamW is as long for a gradient that is nearly 0, whose sign is that of rounding.
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-4, msg=name)


def one_of_two(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for number, name in enumerate(("whole", "both", "clones")):
        os.environ["MASTER_PORT"] = str(port + number)
        settings = {"clones": True} if name == "clones" else SETTINGS[name] | {"batches_per_update": 2}
        state = learned(rank, 2, **settings)
        torch.save(state, folder / f"{name}{rank}.pt")
        torch.distributed.destroy_process_group()


@pytest.mark.processes
def test_a_group_sums_the_gradients_of_whole_batches(tmp_path: Path) -> None:
    """Over gloo, with gradients of pieces and of batches accumulated before they are handed on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(one_of_two, (port, tmp_path), nprocs=2, start_method="spawn")
    whole, *others = (torch.load(tmp_path / f"{name}.pt") for name in ("whole0", "whole1", "both0", "both1"))
    weights = {name: value for name, value in whole.items() if name.startswith("policy.")}
    assert len(weights) > 5
    for other in others:
        assert_same({name: other[name] for name in weights}, weights)
    first, second = (torch.load(tmp_path / f"clones{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert any(not torch.equal(first[name], value) for name, value in weights.items())
