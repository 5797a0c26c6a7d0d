"""Steps of a policy that are recorded act as launched ones do: on a GPU as CUDA graphs, on a CPU called again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import ACTION_SPECS, OBS_SPEC, L
from gpu.cases import PlainRecorder, agent_spec, on_devices
from policy_step_cases import (
    MORE_ENCODERS,
    InTwoPlaces,
    N,
    OwnEncoder,
    Reach,
    Remembering,
    Rollouts,
    act,
    assert_same_trajectories,
    decided,
    policy_of,
)
from small_agents import small_agent_spec

from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.agent.policy import Policy
from amago_ray.cuda_graphs import CannotRecord, CudaRecorder
from amago_ray.messages import Trajectory, Weights
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TformerTrajEncoder, TrajEncoder
from amago_ray.rollout import policy_step
from amago_ray.rollout.policy_step import GraphedPolicyStep, PolicyStep, make_policy_step
from amago_ray.rollout.random_stream import TorchRandomStream
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker
from amago_ray.specs import ArraySpec


def graphed(policy: Policy, kind: str, device: str, sample: bool, recorder: Any = None) -> GraphedPolicyStep:
    recorder = recorder or (CudaRecorder() if device == "cuda" else PlainRecorder())
    return GraphedPolicyStep(policy, ACTION_SPECS[kind], N, device, sample, recorder)


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
    acts_alike(type("Own", (Remembering,), {"way": way}), recorded)


def test_a_memory_that_begins_with_one_tensor_in_two_places() -> None:
    acts_alike(InTwoPlaces, recorded=True)


def acts_alike(encoder: type[TrajEncoder], recorded: bool) -> None:
    policy = decided(policy_of(agent_spec(kind="continuous", encoder=encoder), "cpu"), 0)
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
        assert type(make_policy_step(policy, spec, OBS_SPEC, N, device, True, cuda_graphs)) is kind  # type: ignore[arg-type]


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
    assert len(collected[0]) > N
    assert_same_trajectories(*collected)
