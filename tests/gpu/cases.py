"""What the tests on a device share: where they run, small agents, batches, and the numbers of a CPU to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from agent_cases import ACTION_SPECS, OBS_SPEC, L, actor, bin_critics, critics, ff, gru, make_batch, tformer
from agent_cases import tstep_encoder as ff_tstep
from torch.utils._pytree import tree_map

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.learner.graphed import Gradients
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.nets.traj_encoders import MambaTrajEncoder
from amago_ray.specs import ObsSpec

AGENTS = {"Agent": (Agent, critics), "MultiTaskAgent": (MultiTaskAgent, bin_critics)}
ENCODERS = {
    "feed-forward": ff,
    "gru": gru,
    "transformer": partial(tformer, n_layers=2),
    "mamba": partial(MambaTrajEncoder, d_model=16, d_state=4, n_layers=1),
}
# Every test runs on the CPU too, so that it is known to be right before it meets a GPU.
on_devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
    ],
)


class NoBatches:
    """A source for learners whose updates are called one by one."""

    def batches(self, num: int, first: int, mixture: object = None) -> Any:
        return iter(())

    def update_priorities(self, batches: object, priorities: object) -> None:
        raise AssertionError("nothing was sampled")


def agent_spec(
    agent: str = "Agent",
    kind: str = "discrete",
    encoder: Any = gru,
    tstep_encoder: Any = ff_tstep,
    obs_spec: ObsSpec = OBS_SPEC,
    action_mask_key: str | None = None,
    max_seq_len: int = L,
    **settings: Any,
) -> AgentSpec:
    agent_type, critic_type = AGENTS[agent]
    made = partial(agent_type, **{"actor_type": actor, "critic_type": critic_type, **settings})
    return AgentSpec(obs_spec, ACTION_SPECS[kind], max_seq_len, tstep_encoder, encoder, made, 0, action_mask_key)


def make_learner(spec: AgentSpec, device: str, **config: Any) -> Learner:
    config = {"learning_rate": 1e-3, "lr_warmup_steps": 1} | config
    return Learner(LearnerConfig(device=device, **config), spec, NoBatches())


def prepared_batch(kind: str, device: torch.device | str = "cpu", **changes: Any) -> TrainingBatch:
    """As a learner's prefetching thread hands it over."""
    batch = make_batch(kind)
    batch = dataclasses.replace(batch, real_rows=batch.mask.flatten().nonzero().squeeze(1), **changes)
    return to(batch, device)


def to(batch: TrainingBatch, device: torch.device | str) -> TrainingBatch:
    """The batch on a device; packings stay where they are."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return TrainingBatch(**tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, fields))


class PlainRecorder:
    """A CPU's: calls the function again, and puts what it returns where it was. recorded: how often it was asked to."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self._like = function()
        return self._like

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        places = [None if x is None else torch.empty_like(x) for x in _results(self._like)]
        result = Gradients({}, *places) if isinstance(self._like, Gradients) else places[0]

        def replay() -> None:
            for place, value in zip(places, _results(function()), strict=True):
                if place is not None:
                    place.copy_(value)

        return replay, result

    def forget(self) -> None:
        pass


def _results(done: Gradients | torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (done.priority, done.norm) if isinstance(done, Gradients) else (done,)
