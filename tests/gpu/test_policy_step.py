"""Steps of a policy that are recorded act as launched ones do: on a GPU as CUDA graphs, on a CPU called again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import ACTION_SPECS, OBS_SPEC, L, tformer
from gpu.cases import ENCODERS, PlainRecorder, agent_spec, on_devices
from small_agents import small_agent_spec

from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.agent.policy import Policy
from amago_ray.agent.spec import AgentSpec
from amago_ray.cuda_graphs import CannotRecord, CudaRecorder
from amago_ray.messages import Trajectory, Weights
from amago_ray.nets.attention import ClippedSlidingSinkAttention, SlidingSinkAttention
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TformerTrajEncoder, TrajEncoder
from amago_ray.rollout import policy_step
from amago_ray.rollout.policy_step import GraphedPolicyStep, PolicyStep, make_policy_step
from amago_ray.rollout.random_stream import TorchRandomStream
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker
from amago_ray.specs import ArraySpec

N = 5
MORE_ENCODERS = {
    **ENCODERS,
    "sinks": partial(tformer, attention_type=partial(SlidingSinkAttention, window_size=3, sink_size=1)),
    "rescored": partial(
        tformer, attention_type=partial(ClippedSlidingSinkAttention, window_size=3, sink_size=1, logit_clip=5.0)
    ),
    "rope": partial(tformer, pos_emb="rope"),
}


def policy_of(spec: AgentSpec, device: str) -> Policy:
    return laid_out_for_acting(spec.build().policy.to(device).eval())


def decided(policy: Policy, seed: int) -> Policy:
    """With an actor whose action depends on what is seen, which a fresh one's hardly does."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.normal_(generator=random) if parameter.dim() > 1 else parameter.zero_()
    return policy


def graphed(policy: Policy, kind: str, device: str, sample: bool, recorder: Any = None) -> GraphedPolicyStep:
    recorder = recorder or (CudaRecorder() if device == "cuda" else PlainRecorder())
    return GraphedPolicyStep(policy, ACTION_SPECS[kind], N, device, sample, recorder)


class Rollouts:
    """Observations of N rollouts that end now and then, in the same way for everyone."""

    def __init__(self, kind: str):
        self.random, self.width = np.random.default_rng(0), 1 + ACTION_SPECS[kind].vector_size
        self.time_idx = np.zeros(N, np.int64)

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Whose rollouts begin, and the arguments of a step."""
        while True:
            fresh = self.random.random(N) < 0.1
            self.time_idx[fresh] = 0
            obs = {name: self._observed(x) for name, x in OBS_SPEC.items()}
            yield fresh, obs, self.random.normal(size=(N, self.width)).astype(np.float32), self.time_idx.copy()
            self.time_idx += 1

    def _observed(self, spec: ArraySpec) -> np.ndarray:
        shape = (N, *spec.shape)
        values = self.random.integers(spec.nvec[0], size=shape) if spec.nvec else self.random.normal(size=shape)
        return values.astype(spec.dtype)


def act(step: PolicyStep, rollouts: Iterator[Any], timesteps: int) -> np.ndarray:
    actions = []
    for _ in range(timesteps):
        fresh, *arguments = next(rollouts)
        if fresh.any():
            step.begin(fresh)
        actions.append(step.act(*arguments).copy())
    return np.stack(actions)


@on_devices
@pytest.mark.parametrize("encoder", MORE_ENCODERS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_recorded_steps_act_alike(kind: str, encoder: str, device: str) -> None:
    """Past the length of training, with rollouts that begin in between, with new weights, and begun all anew."""
    spec = agent_spec(kind=kind, encoder=MORE_ENCODERS[encoder])
    policies = [policy_of(spec, device) for _ in range(2)]
    weights = [flatten_state(decided(spec.build().policy, seed)) for seed in range(2)]
    plain = PolicyStep(policies[0], ACTION_SPECS[kind], N, device, False)
    recorded = graphed(policies[1], kind, device, False)
    rollouts = [iter(Rollouts(kind)) for _ in range(2)]
    for phase, buffer in enumerate((weights[0], weights[1], weights[0])):
        actions = []
        for step, policy, its in zip((plain, recorded), policies, rollouts, strict=True):
            load_flat_state(policy, buffer)
            step.weights_changed()
            if phase != 1:
                step.begin_all()
            actions.append(act(step, its, 2 * L + 3))
        if kind == "continuous":
            np.testing.assert_allclose(*actions, rtol=1e-3, atol=1e-4)
        else:
            assert (actions[0] == actions[1]).mean() > 0.97  # two categories may be as good to many digits
            assert len(np.unique(actions[1])) > 1
    assert not recorded._failed and recorded._replay is not None


@on_devices
@pytest.mark.parametrize("kind", ACTION_SPECS)
def test_sampled_actions_are_drawn_anew_and_again_alike(kind: str, device: str) -> None:
    """By the worker's own random stream, whoever else draws."""
    policy = policy_of(agent_spec(kind=kind), device)
    _, *arguments = next(iter(Rollouts(kind)))
    runs = []
    for _ in range(2):
        step, stream = graphed(policy, kind, device, sample=True), TorchRandomStream(3, device)
        step.begin_all()
        actions = []
        for _ in range(12):
            torch.randn(7, device=device)
            with stream:
                actions.append(step.act(*arguments).copy())
        assert not step._failed and step._replay is not None
        runs.append(np.stack(actions))
    np.testing.assert_array_equal(*runs)
    assert len({row.tobytes() for row in runs[0][2:]}) > 5


class Refusing(PlainRecorder):
    def record(self, function: Callable[[], Any]) -> Any:
        raise CannotRecord("operation not permitted when stream is capturing\nand more")


def test_a_recording_that_fails_is_told_once_and_acting_goes_on() -> None:
    policy = policy_of(agent_spec(kind="continuous"), "cpu")
    plain = PolicyStep(policy, ACTION_SPECS["continuous"], N, "cpu", False)
    refused = graphed(policy, "continuous", "cpu", False, Refusing())
    with pytest.warns(UserWarning, match="acts without CUDA graphs: operation not permitted") as told:
        actions = []
        for step in (plain, refused):
            step.begin_all()
            rollouts = iter(Rollouts("continuous"))
            actions.append(act(step, rollouts, 6))
            step.weights_changed()
            actions[-1] = np.concatenate((actions[-1], act(step, rollouts, 6)))
    assert len(told) == 1 and "and more" not in str(told[0].message)
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-6)


class OnHost(TformerTrajEncoder):
    """As a user writes one that knows of no recordings: its memory counts on the host."""

    def recordable_memory(self, num_envs: int) -> Any:
        return self.initial_memory(num_envs)


def test_a_memory_on_the_host_is_not_recorded() -> None:
    """Its count would stand still."""
    spec = agent_spec(kind="continuous", encoder=partial(OnHost, d_model=16, n_heads=2, n_layers=1, d_ff=32))
    policy = policy_of(spec, "cpu")
    plain = PolicyStep(policy, ACTION_SPECS["continuous"], N, "cpu", False)
    step = graphed(policy, "continuous", "cpu", False)
    with pytest.warns(UserWarning, match="its memory holds a ndarray that is no tensor"):
        step.begin_all()
    plain.begin_all()
    actions = [act(x, iter(Rollouts("continuous")), 2 * L) for x in (plain, step)]
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-6)


class Remembering(TrajEncoder):
    """As a user writes one: what it sees is the last three timesteps, kept in one of several ways."""

    way = "shifted"

    @property
    def emb_dim(self) -> int:
        return 3 * self.tstep_dim

    def forward(self, seq_BLD: torch.Tensor, time_idx_BL: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def initial_memory(self, num_envs: int) -> Any:
        zeros = [torch.zeros(num_envs, self.tstep_dim) for _ in range(2)]
        return {
            "shifted": tuple(zeros),
            "counted": (*zeros, 0),
            "made by the first step": None,
            "growing": (zeros[0][:, None], zeros[0]),
            "views of one": torch.stack(zeros, dim=1),
        }[self.way]

    def step(self, seq_BD: torch.Tensor, time_idx_B: torch.Tensor, memory: Any) -> tuple[torch.Tensor, Any]:
        if self.way == "growing":
            seen = torch.cat((memory[0], seq_BD[:, None]), dim=1)
            return torch.cat((seq_BD, seen[:, -2], seen.mean(dim=1)), dim=-1), (seen, memory[1])
        if self.way == "views of one":
            return torch.cat((seq_BD, memory[:, 0], memory[:, 1]), dim=-1), torch.stack((seq_BD, memory[:, 0]), dim=1)
        one, two, *count = (seq_BD, seq_BD) if memory is None else memory
        scaled = seq_BD * (1 + count[0] if count else 1)
        return torch.cat((scaled, one, two), dim=-1), (seq_BD, one, *(n + 1 for n in count))

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        return memory


@pytest.mark.parametrize(
    ("way", "recorded"),
    [
        ("shifted", True),
        ("views of one", True),
        ("counted", False),
        ("made by the first step", False),
        ("growing", False),
    ],
)
def test_memories_of_others_act_as_they_would(way: str, recorded: bool) -> None:
    """Kept where they lie, or told that they cannot be."""
    policy = policy_of(agent_spec(kind="continuous", encoder=type("Own", (Remembering,), {"way": way})), "cpu")
    policy = decided(policy, 0)
    plain = PolicyStep(policy, ACTION_SPECS["continuous"], N, "cpu", False)
    step = graphed(policy, "continuous", "cpu", False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for x in (plain, step):
            x.begin_all()
        actions = [act(x, iter(Rollouts("continuous")), 9) for x in (plain, step)]
    np.testing.assert_allclose(*actions, rtol=1e-5, atol=1e-6)
    assert ["acts without CUDA graphs" in str(x.message) for x in told] == ([] if recorded else [True])


@pytest.mark.parametrize("kind", ACTION_SPECS)
def test_recorded_steps_draw_what_launched_ones_do(kind: str) -> None:
    """At a temperature, which changes on the way, and with illegal actions."""
    discrete = kind == "discrete"
    obs_spec = {**OBS_SPEC, "legal": ArraySpec((4,), "int8")} if discrete else OBS_SPEC
    spec = agent_spec(kind=kind, obs_spec=obs_spec, action_mask_key="legal" if discrete else None, temperature=0.5)
    policy = policy_of(spec, "cpu")
    plain = PolicyStep(policy, ACTION_SPECS[kind], N, "cpu", True)
    step, runs = graphed(policy, kind, "cpu", sample=True), []
    for x in (plain, step):
        policy.temperature = 0.5
        x.begin_all()
        drawn, random = [], np.random.default_rng(1)
        rollouts = iter(Rollouts(kind))
        with TorchRandomStream(3):
            for t in range(30):
                policy.temperature = 0.5 if t < 20 else 3.0
                _, obs, *more = next(rollouts)
                legal = random.integers(0, 2, (N, 4)).astype(np.int8)
                legal[:, 1] = 1
                drawn.append(x.act({**obs, "legal": legal} if discrete else obs, *more).copy())
                assert not discrete or legal[np.arange(N), drawn[-1]].all()
        runs.append(np.stack(drawn))
    np.testing.assert_allclose(*runs, rtol=1e-5, atol=1e-6)
    assert step._temperature == 3.0 and step._replay is not None


class OwnEncoder(GRUTrajEncoder):
    """Of somebody else's module."""


def test_who_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_step, "CudaRecorder", PlainRecorder)
    known, own = (agent_spec(encoder=x).build().policy for x in (GRUTrajEncoder, OwnEncoder))
    spec = ACTION_SPECS["discrete"]
    for policy, device, cuda_graphs, kind in (
        (known, "cpu", "always", PolicyStep),
        (known, "cuda", "auto", GraphedPolicyStep),
        (known, "cuda:1", "auto", PolicyStep),
        (known, "cuda", "never", PolicyStep),
        (own, "cuda", "auto", PolicyStep),
        (own, "cuda", "always", GraphedPolicyStep),
    ):
        assert type(make_policy_step(policy, spec, N, device, True, cuda_graphs)) is kind  # type: ignore[arg-type]


class Reach(gym.Env):
    """Rollouts of 3 to 9 steps; the reward is how near the action is to what is seen."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 10))
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return self._look(), -float(np.abs(action - self.seen).sum()), self.left == 0, False, {}

    def _look(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen


class Unpinned(policy_step.Input):
    def __init__(self, like: np.ndarray, device: str):
        self._host = torch.empty(like.shape, dtype=torch.from_numpy(like).dtype)
        self.place = torch.empty_like(self._host)


@on_devices
def test_a_worker_collects_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk with new weights, and in the two ways that `Experiment.cuda_graphs` names."""
    if device == "cpu":  # where nothing is recorded: as if it were a GPU
        monkeypatch.setattr(policy_step, "CudaRecorder", PlainRecorder)
        monkeypatch.setattr(policy_step, "_is_gpu", lambda device: True)
        monkeypatch.setattr(policy_step, "Input", Unpinned)
    spec = small_agent_spec(Reach, partial(TformerTrajEncoder, d_model=16, n_heads=2, n_layers=1, d_ff=32), 6, width=8)
    weights = [Weights(version, flatten_state(spec.build().policy)) for version in range(3)]
    collected: list[list[Trajectory]] = []
    for cuda_graphs in ("never", "auto"):
        written: list[Trajectory] = []
        config = RolloutConfig(
            Reach,
            N,
            0,
            0,
            16,
            None,
            sample_actions=False,
            device=device,
            cuda_graphs=cuda_graphs,  # type: ignore[arg-type]
        )
        worker = RolloutWorker(config, spec, write=written.append)
        assert isinstance(worker._policy_step, GraphedPolicyStep) == (cuda_graphs == "auto")
        for given in weights:
            worker.set_weights(given)
            worker.collect(10 * N)
        worker.close()
        collected.append(written)
    assert len(collected[0]) == len(collected[1]) > N
    for one, other in zip(*collected, strict=True):
        assert one.id == other.id
        assert one.columns.keys() == other.columns.keys()
        for name, column in one.columns.items():
            np.testing.assert_allclose(column, other.columns[name], rtol=1e-3, atol=1e-4, err_msg=name)
