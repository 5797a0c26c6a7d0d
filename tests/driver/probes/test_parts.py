"""Parts of a policy that are not what they promise are refused before anything starts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from agent_cases import ACTION_SPECS, OBS_SPEC
from conftest import TINY_NETWORKS
from gpu.cases import agent_spec
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray import config
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.probe import probe
from amago_ray.driver.probes import parts
from amago_ray.driver.probes.inputs import timesteps
from amago_ray.driver.probes.parts import check_parts
from amago_ray.envs.builtin import Identity
from amago_ray.experiment import Experiment
from amago_ray.nets.actors import Actor, ActorHead, ResidualActor
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.mixed_encoder import MixedTstepEncoder
from amago_ray.nets.policy_outputs import GMM, Beta, PolicyOutput
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder, TstepEncoder
from amago_ray.specs import ArraySpec, Bounds


class Linear(TstepEncoder):
    def __init__(self, obs_spec: Any, rl2_dim: int):
        super().__init__(obs_spec, rl2_dim)
        self.size = sum(spec.num_features for spec in obs_spec.values()) + rl2_dim
        self.norm, self.linear = nn.BatchNorm1d(self.size), nn.Linear(self.size, 8)

    @property
    def emb_dim(self) -> int:
        return 8

    def flat(self, obs: Any, rl2: Tensor) -> Tensor:
        return torch.cat([*(obs[n].float().reshape(*rl2.shape[:2], -1) for n in sorted(obs)), rl2], dim=-1)

    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        x = self.flat(obs, rl2)
        return self.linear(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


class OverTime(Linear):
    def __init__(self, obs_spec: Any, rl2_dim: int):
        super().__init__(obs_spec, rl2_dim)
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return self.rnn(super().encode(obs, rl2, mask))[0]


class OverBatch(Linear):
    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        x = super().encode(obs, rl2, mask)
        return x - x.mean(dim=0)


class WithoutTime(Linear):
    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return super().encode(obs, rl2, mask)[:, -1]


class OfAnotherWidth(Linear):
    emb_dim = 7  # type: ignore[assignment]


class OfDoubles(Linear):
    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return super().encode(obs, rl2, mask).double()


class OfArrays(Linear):
    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Any:
        return super().encode(obs, rl2, mask).detach().numpy()


class OfNothing(Linear):
    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return super().encode(obs, rl2, mask) * torch.nan


class Unfinished(TstepEncoder):
    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return rl2


class TakesDoubles(FFTrajEncoder):
    """A sequence model that makes of an embedding what it needs."""

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return super().forward(seq_BLD.float(), time_idx_BL)


class Head(ActorHead):
    def __init__(self, state_dim: int, action_spec: Any, num_gammas: int, policy_output_type: Any = None):
        super().__init__(state_dim, action_spec, num_gammas, policy_output_type)
        self.num = self.policy_output.num_params
        self.linear = nn.Linear(state_dim, num_gammas * self.num)

    def params(self, state: Tensor, main_gamma_only: bool, obs: Any) -> Tensor:
        params = self.linear(state)
        return params[..., -self.num :] if main_gamma_only else params


class FirstGamma(Head):
    def params(self, state: Tensor, main_gamma_only: bool, obs: Any) -> Tensor:
        params = self.linear(state)
        return params[..., : self.num] if main_gamma_only else params


class EveryGamma(Head):
    def params(self, state: Tensor, main_gamma_only: bool, obs: Any) -> Tensor:
        return self.linear(state)


class AlwaysDrops(Head):
    def params(self, state: Tensor, main_gamma_only: bool, obs: Any) -> Tensor:
        return super().params(F.dropout(state, 0.5), main_gamma_only, obs)


class Gaussian(ActionDistribution):
    """Of tanh, when it is right."""

    def __init__(self, params: Tensor):
        self.loc, raw = params.chunk(2, dim=-1)
        self.base = torch.distributions.Normal(self.loc, F.softplus(raw) + 1e-3)

    @property
    def mean(self) -> Tensor:
        return self.loc.tanh()

    def sample(self) -> Tensor:
        return self.base.sample().tanh()

    def rsample(self) -> Tensor:
        return self.base.rsample().tanh()

    def log_prob_dims(self, action: Tensor) -> Tensor:
        action = action.clamp(-0.99, 0.99)
        return self.base.log_prob(action.atanh()) - torch.log1p(-action.square())

    def entropy(self) -> Tensor:
        return self.base.entropy().sum(dim=-1, keepdim=True)


class UnboundedSamples(Gaussian):
    def sample(self) -> Tensor:
        return self.base.sample()


class UnboundedMode(Gaussian):
    mode = property(lambda self: self.loc)  # type: ignore[assignment]


class NoNumbers(Gaussian):
    def sample(self) -> Tensor:
        return super().sample() * torch.nan


class OneNumber(Gaussian):
    def sample(self) -> Tensor:
        return super().sample()[..., :1]


class SummedLogProb(Gaussian):
    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_prob_dims(action).sum(dim=-1)


class EntropyOfParts(Gaussian):
    def entropy(self) -> Tensor:
        return self.base.entropy()


class Family(PolicyOutput):
    kinds = ("continuous",)

    def __init__(self, action_spec: Any, distribution: type[Gaussian] = Gaussian):
        super().__init__(action_spec)
        self.distribution = distribution

    @property
    def num_params(self) -> int:
        return 2 * self.action_spec.vector_size

    def forward(self, params: Tensor) -> ActionDistribution:
        return self.distribution(params)


class Probabilities(ActionDistribution):
    """Whose mode is its mean, as it is unless stated."""

    def __init__(self, probs: Tensor):
        self.probs = probs

    @property
    def mean(self) -> Tensor:
        return self.probs

    def sample(self) -> Tensor:
        return F.one_hot(self.probs.argmax(-1), self.probs.shape[-1]).float()

    def log_prob_dims(self, action: Tensor) -> Tensor:
        return (self.probs.log() * action).sum(dim=-1, keepdim=True)

    def entropy(self) -> Tensor:
        return -(self.probs * self.probs.log()).sum(dim=-1, keepdim=True)


class Categories(PolicyOutput):
    kinds = ("discrete", "multidiscrete")
    is_discrete = True

    @property
    def num_params(self) -> int:
        return self.action_spec.vector_size

    def forward(self, params: Tensor) -> ActionDistribution:
        return Probabilities(params.softmax(dim=-1))


class OneOfAll(Probabilities):
    mode = property(lambda self: self.sample())  # type: ignore[assignment]


class CategoriesOfAll(Categories):
    """A single category, also where several are to be chosen."""

    def forward(self, params: Tensor) -> ActionDistribution:
        return OneOfAll(params.softmax(dim=-1))


def of_head(output: Any, actor: Any = Head) -> Any:
    return partial(actor, policy_output_type=output)


def of_family(distribution: type[Gaussian]) -> Any:
    return of_head(partial(Family, distribution=distribution))


def try_it(spec: AgentSpec) -> None:
    random = torch.get_rng_state()
    agent = spec.build()
    check_parts(agent, spec)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", ACTION_SPECS)
@pytest.mark.parametrize("tstep_encoder", [FFTstepEncoder, Linear])
def test_parts_as_they_should_be(tstep_encoder: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This package's own, which is why they are not tried before each run, and a user's."""
    monkeypatch.setattr(parts, "is_own", lambda part: True)
    for actor in (Actor, ResidualActor, Head):
        try_it(agent_spec(kind=kind, tstep_encoder=tstep_encoder, actor_type=actor))


@pytest.mark.parametrize("tstep_encoder", [CNNTstepEncoder, MixedTstepEncoder])
def test_this_packages_encoders_of_images(tstep_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "is_own", lambda part: True)
    try_it(agent_spec(tstep_encoder=tstep_encoder, obs_spec={"image": ArraySpec((16, 16, 3), "uint8")}))


@pytest.mark.parametrize("output", [GMM, Beta, Family])
def test_families_of_continuous_actions(output: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "is_own", lambda part: True)
    try_it(agent_spec(kind="continuous", actor_type=of_head(output), online_coeff=0.0))


def test_one_category_of_one() -> None:
    try_it(agent_spec(kind="discrete", actor_type=of_head(CategoriesOfAll)))


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (OverTime, "must encode each timestep alone"),
        (OverBatch, "must encode each timestep alone"),
        (WithoutTime, r"an embedding of shape \(2, 8\) .* with emb_dim=8 it must be \(2, 3, 8\)"),
        (OfAnotherWidth, r"an embedding of shape \(2, 3, 8\) .* with emb_dim=7 it must be \(2, 3, 7\)"),
        (OfDoubles, "`encode` made an embedding of torch.float64; it must be torch.float32"),
        (OfArrays, "`encode` returned a numpy.ndarray; it must return a tensor"),
        (OfNothing, "`encode` made nan of numbers that are finite"),
    ],
)
def test_timestep_encoders_that_are_not_as_they_should_be(encoder: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{encoder.__name__}: .*{said}"):
        try_it(agent_spec(tstep_encoder=encoder))


@pytest.mark.parametrize(
    ("actor", "said"),
    [
        (FirstGamma, "main_gamma_only=True must be the last 4 .* is .* off"),
        (EveryGamma, r"main_gamma_only=True returned shape \(2, \d+\) .*; it must be \(2, 4\)"),
        (AlwaysDrops, "evaluation mode, in which it must draw nothing"),
    ],
)
def test_actors_that_act_otherwise_than_they_are_trained(actor: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{actor.__name__}: .*{said}"):
        try_it(agent_spec(actor_type=actor))


@pytest.mark.parametrize(
    ("kind", "actor", "said"),
    [
        ("continuous", of_family(UnboundedSamples), r"Family: sample\(\) of its UnboundedSamples is as far as"),
        ("continuous", of_family(UnboundedMode), "Family: mode of its UnboundedMode is as far as"),
        ("continuous", of_family(NoNumbers), r"Family: sample\(\) of its NoNumbers is not finite"),
        (
            "continuous",
            of_family(OneNumber),
            r"Family: sample\(\) of its OneNumber is of shape \(64, 1\); .*64, 2",
        ),
        ("continuous", of_family(SummedLogProb), r"Family: log_prob of its SummedLogProb is of shape \(64,\)"),
        ("continuous", of_family(EntropyOfParts), r"Family: entropy of its EntropyOfParts is of shape \(64, 2\)"),
        ("discrete", of_head(Categories), r"Categories: mode of its Probabilities holds 0\.\d+; discrete action"),
        ("discrete", of_head(Categories, Actor), r"Categories: mode of its Probabilities holds 0\.\d+"),
        ("multidiscrete", of_head(CategoriesOfAll), r"sample\(\) of its OneOfAll chooses another number of"),
    ],
)
def test_families_that_make_no_actions(kind: str, actor: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        try_it(agent_spec(kind=kind, actor_type=actor))


def test_observations_are_within_their_spaces() -> None:
    far = Bounds((), (5.0,), (7.0,))
    spec = {**OBS_SPEC, "far": ArraySpec((2,), "float32", (), far), "bytes": ArraySpec((2, 2), "uint8")}
    obs, rl2 = timesteps({**spec, "legal": ArraySpec((4,), "int8")}, 5, 2, 3, legal_key="legal")
    assert rl2.shape == (2, 3, 5) and obs["bytes"].shape == (2, 3, 2, 2) and obs["bytes"].dtype == torch.uint8
    assert (obs["far"] == 5).all() and (obs["legal"] == 1).all()
    assert set(obs["n"].flatten().tolist()) <= {0, 1, 2, 3} and obs["x"].std() > 0


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (OverTime, "the parts of the policy: ValueError: OverTime: `encode` must encode each"),
        (OfAnotherWidth, "OfAnotherWidth: `encode` made an embedding of shape"),
        (OfDoubles, "the parts of the policy: ValueError: OfDoubles: `encode` made an embedding of torch.float64"),
        (Unfinished, "Unfinished: a subclass has to define emb_dim, which it does not$"),
    ],
)
def test_it_is_told_in_one_line(encoder: Any, said: str) -> None:
    """And before a step of all networks together, in which PyTorch says what it makes of it."""
    config.load([], [*TINY_NETWORKS, "Experiment.traj_encoder_type = @GRUTrajEncoder", "Agent.num_critics = 2"])
    make_env = partial(Identity, "discrete", 3)
    with pytest.raises(ValueError, match=f"^{said}"):
        probe(Experiment(run_name="a", make_train_env=make_env, max_seq_len=8, tstep_encoder_type=encoder))


def test_an_embedding_that_the_sequence_model_takes() -> None:
    make_env = partial(Identity, "discrete", 3)
    types = {"tstep_encoder_type": OfDoubles, "traj_encoder_type": TakesDoubles}
    probe(Experiment(run_name="a", make_train_env=make_env, max_seq_len=8, **types))
