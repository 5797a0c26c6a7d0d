"""Networks that could not be trained are refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small_agents import small_agent_spec
from torch import Tensor, nn

from amago_ray.agent import Agent, AgentSpec, MultiTaskAgent
from amago_ray.driver.probe import check_settings, probe
from amago_ray.driver.probes.networks import check_has_sizes, check_loss
from amago_ray.envs.builtin import Counting
from amago_ray.experiment import Experiment
from amago_ray.nets.actors import Actor
from amago_ray.nets.critics import NCritics, NCriticsTwoHot
from amago_ray.nets.policy_outputs import GMM
from amago_ray.nets.traj_encoders import FFTrajEncoder, GRUTrajEncoder
from amago_ray.nets.tstep_encoders import TstepEncoder


class AddsANumber(Agent):
    def extra_loss(self, real: Any, batch: Any) -> Any:
        return 1.5


class AddsMany(Agent):
    def extra_loss(self, real: Any, batch: Any) -> Any:
        return real.state.square()


class Raises(Agent):
    def critic_error(self, q_BLCGO: Tensor, target_BLG: Tensor) -> Tensor:
        raise KeyError("my critics")


class MasksTimesteps(Agent):
    def actor_mask(self, batch: Any) -> Tensor:
        return batch.time_idx[:, :-1] >= 1


class Imitator(Agent):
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **{**settings, "actor_type": partial(Actor, continuous_dist_type=GMM)})


class OnTheHost(FFTrajEncoder):
    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(seq_BLD.numpy()), time_idx_BL)


def spec_of(encoder: Any = FFTrajEncoder, max_seq_len: int = 8, **settings: Any) -> AgentSpec:
    return small_agent_spec(partial(Counting, action="continuous"), encoder, max_seq_len, **settings)


@pytest.mark.parametrize("max_seq_len", [1, 8])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])
def test_a_loss_that_can_be_computed(agent_type: type[Agent], packed: bool, max_seq_len: int) -> None:
    critic = NCritics if agent_type is Agent else NCriticsTwoHot
    spec = spec_of(GRUTrajEncoder, max_seq_len, agent_type=agent_type, critic_type=critic)
    before = torch.get_rng_state()
    check_loss(agent := spec.build(), spec, packed)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in agent.parameters())


@pytest.mark.parametrize(
    ("settings", "packed", "said"),
    [
        (
            {"agent_type": AddsANumber},
            False,
            "AddsANumber.extra_loss: it returned a float; it must return a tensor, of",
        ),
        ({"agent_type": AddsMany}, False, "AddsMany: its loss is of shape .* one number with gradient"),
        ({"agent_type": Raises}, False, "my critics"),
        ({"agent_type": MasksTimesteps}, True, r"actor_mask: its mask .* must be torch.bool of shape \(B, L\)"),
        ({"encoder": OnTheHost}, False, "Can't call numpy"),
        ({"agent_type": Imitator}, False, "GMM.*online_coeff"),
    ],
    ids=["a float", "no scalar", "raises", "a mask of timesteps", "on the host", "no gradient"],
)
def test_a_loss_that_cannot(settings: dict[str, Any], packed: bool, said: str) -> None:
    spec = spec_of(**settings)
    with pytest.raises(Exception, match=said):
        check_loss(spec.build(), spec, packed)


def experiment_of(agent_type: type[Agent]) -> Experiment:
    return Experiment(
        run_name="a",
        make_train_env=partial(Counting, action="continuous"),
        max_seq_len=8,
        traj_encoder_type=FFTrajEncoder,
        agent_type=agent_type,
    )


def test_it_is_told_in_one_line() -> None:
    with pytest.raises(ValueError, match="^a first loss of the networks: KeyError: 'my critics'$"):
        probe(experiment_of(Raises))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: spec_of(agent_type=Agent, critic_type=NCriticsTwoHot).build(), "Agent.critic_type=NCriticsTwoHot: "),
        (lambda: spec_of(agent_type=MultiTaskAgent).build(), "MultiTaskAgent.critic_type=NCritics: "),
        (lambda: spec_of(tau=1.5).build(), "Agent.tau=1.5: "),
        (lambda: spec_of(online_coeff=-1.0).build(), "Agent.online_coeff=-1.0: "),
        (lambda: spec_of(offline_coeff=float("nan")).build(), "Agent.offline_coeff=nan: "),
        (lambda: spec_of(num_actions_for_value_in_actor_loss=0).build(), "num_actions_for_value_in_actor_loss=0: "),
    ],
)
def test_settings_of_an_agent_that_cannot_be(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


def test_packed_batches_are_not_compiled() -> None:
    settings = {"compile_learning": "always", "batch_layout": "packed"}
    with pytest.raises(ValueError, match="compile_learning='always': with batch_layout='packed'"):
        check_settings(Experiment(run_name="a", make_train_env=Counting, max_seq_len=8, **settings))


class Lazy(TstepEncoder):
    def __init__(self, obs_spec: Any, rl2_dim: int):
        super().__init__(obs_spec, rl2_dim)
        self.linear = nn.LazyLinear(8)

    @property
    def emb_dim(self) -> int:
        return 8

    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return self.linear(rl2)


def test_networks_without_sizes() -> None:
    settings = {"tstep_encoder_type": Lazy, "traj_encoder_type": FFTrajEncoder}
    with pytest.raises(ValueError, match=r"policy\.tstep_encoder\.linear\.weight has no size until a first batch"):
        probe(Experiment(run_name="a", make_train_env=Counting, max_seq_len=8, **settings))
    check_has_sizes(spec_of().build())
