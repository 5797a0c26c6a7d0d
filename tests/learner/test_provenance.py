"""An update that is not finite is not made: learning stops with the origin of its batch, and good weights are kept."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState, GradientState
from agent_cases import state_of
from small_agents import small_agent_spec
from torch import Tensor, nn

from amago_ray.agent.spec import AgentSpec
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.learner.provenance import NAMED, NonFiniteUpdate, describe, origin
from amago_ray.nets.traj_encoders import FFTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.datasets import Episode, RowLayout
from amago_ray.replay.readers import EpisodeDataset
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.single_process import SingleProcess

BATCH_SIZE = 6
SPACES = (gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2))
HUGE = -1e18


@pytest.fixture(autouse=True)
def an_accelerator_of_its_own() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Line(gym.Env):
    """Five steps of reward 0; `punish` is the reward of the third step of every seventh rollout."""

    observation_space, action_space = SPACES
    rollouts = 0

    def __init__(self, punish: float = 0.0):
        self.punish = punish

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.rollouts = 0, self.rollouts + 1
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        reward = self.punish if self.rollouts % 7 == 0 and self.t == 3 else 0.0
        return np.zeros(2, np.float32), reward, self.t == 5, False, {}


def episodes(num: int = 20, **wrong: float) -> list[Episode]:
    """Rollouts of 6 steps; `wrong` rewards by name "e<episode>"."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(num):
        rewards = rng.uniform(size=6)
        rewards[4] = wrong.get(f"e{i}", rewards[4])
        made.append(Episode(rng.uniform(-1, 1, (7, 2)), rng.integers(2, size=6), rewards, True))
    return made


def agent_spec(tstep_encoder: Any = None, traj_encoder: Any = FFTrajEncoder) -> AgentSpec:
    spec = small_agent_spec(Line, partial(traj_encoder, n_layers=1), max_seq_len=6, width=16)
    return spec if tstep_encoder is None else AgentSpec(**(vars(spec) | {"tstep_encoder_type": tstep_encoder}))


def make_learner(
    data: Sequence[Episode], spec: AgentSpec | None = None, rank: int = 0, world_size: int = 1, **config: Any
) -> Learner:
    """Learns from episodes as a run with a data set alone would."""
    source = EpisodeDataset(data).source(RowLayout(*SPACES), 0, 1)
    reader = ReplayReader(
        [LocalShard(ReplayShard(ReplayConfig(6), 0, [source]))], BATCH_SIZE, 0, rank, batches_per_request=1
    )
    settings = {"learning_rate": 1e-2, "lr_warmup_steps": 1} | config
    return Learner(LearnerConfig(**settings), spec or agent_spec(), reader, rank, world_size)


def train_to_the_end(learner: Learner, num_batches: int = 40) -> tuple[dict[str, Tensor], str]:
    """The weights before the last update that was made, one batch at a time, and what stopped it."""
    for _ in range(num_batches):
        kept = state_of(learner.agent.policy.tstep_encoder) | state_of(learner.agent.critics)
        try:
            learner.train(1, (0.0, 1.0))
        except NonFiniteUpdate as error:
            return kept, str(error)
    raise AssertionError("learned from it without a word")


def assert_kept(learner: Learner, kept: dict[str, Tensor]) -> None:
    now = dict(learner.agent.policy.tstep_encoder.named_parameters()) | dict(learner.agent.critics.named_parameters())
    for name, value in now.items():
        assert torch.equal(value, kept[name]), name
    assert all(value.isfinite().all() for value in learner.agent.parameters())


def test_a_huge_reward_of_a_data_set_stops_learning_before_the_update(tmp_path: Path) -> None:
    learner = make_learner(episodes(e13=HUGE))
    good = str(tmp_path / "policy.pt")
    learner.save_agent(good)
    kept, why = train_to_the_end(learner)
    assert "reward -1e+18 at timestep 4 of trajectory 13 (shard 0, dataset 1)" in why and "\n" not in why
    assert f"at batch {learner.batches_done - 1};" in why
    assert_kept(learner, kept)
    before = Path(good).read_bytes()
    for use in (partial(learner.publish, 3), partial(learner.save_agent, good), partial(learner.save_state, "")):
        with pytest.raises(NonFiniteUpdate, match="timestep 4 of trajectory 13"):
            use()
    assert Path(good).read_bytes() == before and learner.weight_version != 3
    learner.load_agent(good)
    assert np.isfinite(learner.publish(4).buffer).all()


def test_a_huge_reward_of_an_environment_stops_learning_before_the_update() -> None:
    ring = SingleProcess(partial(Line, HUGE), agent_spec(), num_envs=4)
    published = ring.learner.publish(ring.version)
    with pytest.raises(NonFiniteUpdate, match=r"reward -1e\+18 at timestep 2 of trajectory 0/0/\d+ \(shard 0\)"):
        ring.epoch(steps_per_env=40, batches=40)
    assert np.isfinite(published.buffer).all()
    assert all(value.isfinite().all() for value in ring.learner.agent.parameters())


class Rooted(nn.Module):
    """A loss that is finite with a gradient that is not: the slope of a root at 0, once a number is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (0.0 * x).abs().sqrt()


class RootedEncoder(FFTstepEncoder):
    """An encoder of a user's own that is wrong from its third call on in training."""

    calls = 0

    def encode(self, *args: Any, **kwargs: Any) -> Tensor:
        out = super().encode(*args, **kwargs)
        self.calls += self.training
        return Rooted()(out) if self.training and self.calls > 3 else out


@pytest.mark.parametrize("batches_per_update", [1, 2])
def test_a_gradient_that_is_not_finite_stops_learning(batches_per_update: int) -> None:
    encoder = partial(RootedEncoder, n_layers=1, d_hidden=16, d_output=16)
    learner = make_learner(episodes(), agent_spec(encoder), batches_per_update=batches_per_update)
    kept, why = train_to_the_end(learner)
    assert "encoders and losses of your own" in why
    assert_kept(learner, kept)
    assert learner.batches_done == 4 and "at batch 3;" in why


def test_every_batch_of_an_accumulated_update_is_named() -> None:
    """The NaN is in the first of two batches; only after the second is there an update to leave out."""
    learner = make_learner(episodes(num=400, e13=HUGE), batches_per_update=2)
    batches = list(learner._batches.batches(60, 0, (0.0, 1.0)))
    first = next(i for i, batch in enumerate(batches) if 13 in batch.gather("ids")[:, 2])
    with pytest.raises(NonFiniteUpdate, match="trajectory 13") as stopped:
        learner.train(60, (0.0, 1.0))
    update = batches[first // 2 * 2 : first // 2 * 2 + 2]
    assert describe([origin(batch) for batch in update]) in str(stopped.value)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("fused", [True, False])
def test_on_a_device_that_is_not_waited_for_no_later_update_is_made_either(fused: bool) -> None:
    """As on a GPU, where the host learns of it at the next look: updates are called here, and nothing asks."""
    learner = make_learner(episodes(e3=HUGE))
    if not fused:
        settings = {"lr": 1e-2, "weight_decay": 0.0, "momentum": 0.0}
        learner._optimizer.optimizer = torch.optim.SGD(learner._trainable, **settings)
    good, bad = make_batches(learner)
    learner.update(good)
    kept = state_of(learner.agent.policy.tstep_encoder) | state_of(learner.agent.critics)
    for batch in (bad, good, good):
        learner.update(batch)
        learner.batches_done += 1
    assert_kept(learner, kept)
    with pytest.raises(NonFiniteUpdate, match="at batch 0;"):
        learner.publish(1)


def make_batches(learner: Learner) -> tuple[Any, Any]:
    """One without and one with the huge reward, as tensors."""
    from amago_ray.learner.batches import training_batch

    found = {}
    for batch in learner._batches.batches(40, 0, (0.0, 1.0)):
        found[3 in batch.gather("ids")[:, 2]] = training_batch(batch, learner._action_spec, learner.device)
    return found[False], found[True]


def test_a_loss_scale_that_has_shrunk_to_nothing_stops_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are left out while the scale adapts are no reason to stop; that it never adapts is."""
    learner = make_learner(episodes())
    learner.train(3, (0.0, 1.0))
    for scale, stops in ((65536.0, False), (2.0**-10, False), (2.0**-15, True)):
        scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
        monkeypatch.setattr(learner._accelerator, "scaler", scaler)
        if stops:
            with pytest.raises(NonFiniteUpdate, match="at batch 2; .* weight versions 0 to 0"):
                learner.publish(1)
        else:
            learner.publish(1)


def test_long_lists_are_cut() -> None:
    learner = make_learner(episodes(num=200))
    batches = [origin(batch) for batch in learner._batches.batches(5, 0, (0.0, 1.0))]
    numbers = {n for batch in batches for n in batch.gather("ids")[:, 2].tolist()}
    assert f" and {len(numbers) - NAMED} more" in describe(batches)


def one_of_two(rank: int, port: int, made: Callable[[], list[Episode]], folder: Path) -> None:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # what the process that this one is a copy of had chosen
    GradientState._reset_state()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
    }
    # The wrong reward is in the data of the second alone: the first learns of it by the gradient.
    learner = make_learner(made() if rank else episodes(), agent_spec(), rank, world_size=2)
    _, why = train_to_the_end(learner)
    good = all(value.isfinite().all() for value in learner.agent.parameters())
    (folder / str(rank)).write_text(f"{learner.batches_done} {good} {why}")


@pytest.mark.processes
def test_all_learners_of_a_group_stop_at_the_same_update(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(one_of_two, (port, partial(episodes, e13=HUGE), tmp_path), nprocs=2, start_method="spawn")
    reports = [(tmp_path / str(rank)).read_text().split(" ", 2) for rank in range(2)]
    assert reports[0][:2] == reports[1][:2] and reports[0][1] == "True"
    assert "reward -1e+18" in reports[1][2] and "reward -1e+18" not in reports[0][2]
