"""The code in docs/extending.md runs as printed: each section trains for a moment, and one run goes through the CLI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import TESTS, TINY_NETWORKS
from gymnasium import spaces
from ring_cases import as_batch, sample
from watch.test_callbacks import PlayedRun

from amago_ray import Experiment, config
from amago_ray.agent.spec import AgentSpec
from amago_ray.driver.probe import probe
from amago_ray.envs.builtin import Identity
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.single_process import SingleProcess
from amago_ray.watch import callbacks
from amago_ray.watch.metrics import AVERAGE_RETURN

EXTENDING = (TESTS.parent / "docs" / "extending.md").read_text(encoding="utf-8")
MODULE = "my_extensions"


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def sections() -> dict[str, list[str]]:
    """Title -> gin blocks, of every section that has any."""
    parts = re.split(r"^## (.+)\n", EXTENDING, flags=re.MULTILINE)
    return {title: blocks("gin", text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


class Shown(gym.Env):
    """Rollouts of 5 steps in which nothing matters, with the spaces that are wanted. Observations are random."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space | None = None):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        return self.observation_space.sample(), 0.0, self._time == 5, False, {}


class Masked(gym.Env):
    """Four actions, of which another one is legal at every step. A reward of -1 for each illegal action."""

    observation_space = spaces.Dict(x=spaces.Box(-1, 1, (2,)), action_mask=spaces.MultiBinary(4))
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._time = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        reward = 0.0 if action == self._legal else -1.0
        return self._observe(), reward, self._time == 5, False, {}

    def _observe(self) -> dict[str, np.ndarray]:
        self._legal = int(self.np_random.integers(4))
        return {"x": np.zeros(2, np.float32), "action_mask": (np.arange(4) == self._legal).astype(np.int8)}


IMAGE_AND_VECTOR = spaces.Dict(image=spaces.Box(0, 255, (5, 5, 3), np.uint8), vector=spaces.Box(-1, 1, (2,)))
GOALS = spaces.Dict({n: spaces.Box(-1, 1, (2,)) for n in ("observation", "achieved_goal", "desired_goal")})
ENVIRONMENTS = {
    "A timestep encoder": partial(Identity, "discrete", 3),
    "An encoder of an image and a vector": partial(Shown, IMAGE_AND_VECTOR),
    "A goal-conditioned encoder": partial(Shown, GOALS, spaces.Box(-1, 1, (2,))),
    "A sequence model": partial(Identity, "multidiscrete", 3),
    "An agent": partial(Identity, "discrete", 3),
    "Further networks, another optimiser": partial(Identity, "discrete", 3),
    "Exploration": partial(Identity, "discrete", 3),
    "A family of action distributions": partial(Identity, "continuous", 2),
    "An actor head": partial(Identity, "multibinary", 3),
    "Action masks": Masked,
    "A critic head": partial(Identity, "continuous", 2),
    "Relabelling in hindsight": partial(Shown, GOALS, spaces.Box(-1, 1, (2,))),
    "Callbacks": partial(Identity, "discrete", 3),
}
BLOCKS = [(title, text) for title, texts in sections().items() for text in texts]


@pytest.fixture(scope="module")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a module made of all Python blocks, which can be imported by name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / f"{MODULE}.py").write_text("\n\n".join(blocks("python", EXTENDING)))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def configured(folder: Path, title: str, text: str) -> tuple[Experiment, AgentSpec]:
    """The experiment and the agent of one section's gin block, on small networks."""
    lines = [f"import {MODULE}", *TINY_NETWORKS, "Experiment.traj_encoder_type = @GRUTrajEncoder", text]
    (folder / "my.gin").write_text("\n".join(lines))
    config.load([folder / "my.gin"])
    experiment = Experiment(run_name="docs", make_train_env=ENVIRONMENTS[title], max_seq_len=6)
    return experiment, probe(experiment)


def test_every_section_is_tried() -> None:
    assert sections().keys() == ENVIRONMENTS.keys()
    assert all(sections().values())


@pytest.mark.parametrize(("title", "text"), BLOCKS, ids=[f"{t} {i}" for i, (t, _) in enumerate(BLOCKS)])
def test_each_block_trains_and_acts(extensions: Path, title: str, text: str) -> None:
    experiment, spec = configured(extensions, title, text)
    relabeler = experiment.relabeler_type and experiment.relabeler_type()
    single = SingleProcess(ENVIRONMENTS[title], spec, num_envs=4, batch_size=4, relabeler=relabeler)
    report = single.epoch(steps_per_env=24, batches=3)
    assert np.isfinite(report.metrics["Total Loss"]) and report.metrics["Gradient Norm"] > 0
    assert np.isfinite(single.mean_return(episodes=8))
    in_use = {type(module).__name__ for module in single.learner.agent.modules()}
    others = (
        single.learner.agent.optimizer_type,
        experiment.exploration_wrapper_type,
        experiment.relabeler_type,
        getattr(relabeler, "reward_fn", None),
    )
    in_use |= {getattr(part, "__name__", "None") for part in others}
    in_use |= {type(callback).__name__ for callback in experiment.callbacks}
    named = set(re.findall(r"@(\w+)", text))
    assert named <= in_use
    assert named or spec.action_mask_key == "action_mask", "a block says something"


def test_settings_of_an_agent_and_of_its_subclass(extensions: Path) -> None:
    (text, _) = sections()["An agent"]
    agent = configured(extensions, "An agent", text)[1].build()
    assert float(agent.gammas[-1]) == pytest.approx(0.9)
    assert len(agent.critics.inp_layer.weight) == 3


def test_the_sequence_model_agrees_with_its_steps(extensions: Path) -> None:
    (text,) = sections()["A sequence model"]
    encoder = configured(extensions, "A sequence model", text)[1].build().policy.traj_encoder
    sequence, time_idx = torch.randn(2, 6, encoder.tstep_dim), torch.arange(6).expand(2, -1)
    whole, memory = encoder(sequence, time_idx), encoder.initial_memory(2)
    for t in range(6):
        state, memory = encoder.step(sequence[:, t], time_idx[:, t], memory)
        torch.testing.assert_close(state, whole[:, t])
    memory = encoder.reset_memory(memory, np.array([True, False]))
    state, _ = encoder.step(sequence[:, 0], time_idx[:, 0], memory)
    torch.testing.assert_close(state[0], whole[0, 0])
    assert not torch.allclose(state[1], whole[1, 0])


def test_the_late_imitator_leaves_out_the_start(extensions: Path) -> None:
    (_, text) = sections()["An agent"]
    _, spec = configured(extensions, "An agent", text)
    single = SingleProcess(ENVIRONMENTS["An agent"], spec, num_envs=4, batch_size=4)
    masks: list[np.ndarray] = []
    actor_mask = single.learner.agent.actor_mask
    single.learner.agent.actor_mask = lambda batch: masks.append(actor_mask(batch).numpy()) or actor_mask(batch)
    single.epoch(steps_per_env=24, batches=1)
    assert masks[0].shape[0] == 4
    assert not masks[0][:, 0].any() and masks[0][:, 1:].all(), (
        "rollouts of this task start in step 0 and have two steps"
    )


def test_random_starts(extensions: Path) -> None:
    (text,) = sections()["Exploration"]
    experiment, spec = configured(extensions, "Exploration", text)
    explore = experiment.exploration_wrapper_type(1000, spec.action_spec, 0)
    policy = np.zeros(1000, np.int64)
    for time_idx, changed in ((0, True), (1, True), (2, False)):
        assert (explore(policy, np.full(1000, time_idx)) != policy).any() == changed


def test_masked_actions_are_never_taken(extensions: Path) -> None:
    (text,) = sections()["Action masks"]
    _, spec = configured(extensions, "Action masks", text)
    single = SingleProcess(Masked, spec, num_envs=4, batch_size=4)
    single.epoch(steps_per_env=24, batches=2)
    weights = single.learner.publish(9)
    for sample_actions in (True, False):
        results = evaluate_policy(spec, weights, Masked, episodes=200, sample_actions=sample_actions)
        assert all(result.total_reward == 0.0 for result in results)


def test_an_unmasked_actor_does_take_them(extensions: Path) -> None:
    """The environment above notices."""
    _, spec = configured(extensions, "Action masks", "")
    weights = SingleProcess(Masked, spec, num_envs=4, batch_size=4).learner.publish(9)
    assert any(result.total_reward < 0.0 for result in evaluate_policy(spec, weights, Masked, episodes=20))


def test_near_goals_are_reached(extensions: Path) -> None:
    title = "Relabelling in hindsight"
    experiment, spec = configured(extensions, title, sections()[title][0])
    assert experiment.relabeler_type is not None
    single = SingleProcess(ENVIRONMENTS[title], spec, num_envs=4, relabeler=experiment.relabeler_type())
    single.epoch(steps_per_env=24, batches=1)
    batch = as_batch(sample(single.shard, 100))
    assert set(batch.lengths.tolist()) == {1, 2, 3}
    rows = (batch.rows(name) for name in ("obs.achieved_goal", "obs.desired_goal", "reward", "terminated"))
    for achieved, desired, reward, terminated in zip(*rows, strict=True):
        assert (desired == achieved[-1]).all()
        assert np.flatnonzero(reward).tolist() == np.flatnonzero(terminated).tolist() == [len(reward) - 1]


def test_elsewhere_is_played_until_it_is_solved(
    extensions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = sections()["Callbacks"]
    callback = configured(extensions, "Callbacks", text)[0].callbacks[0]
    assert isinstance(callback, callbacks.Callback)
    run, returns = PlayedRun(tmp_path), iter([0.25, 0.95])
    asked: list[Any] = []

    def evaluate(*args: Any, **options: Any) -> dict[str, float]:
        asked.append((args, options))
        return {AVERAGE_RETURN: next(returns)}

    monkeypatch.setattr(run, "evaluate", evaluate)
    run.play(callback, 0)
    assert run.stop_reason is None
    run.play(callback, 1)
    assert run.stop_reason == "return 0.95 elsewhere"
    assert (run.directory.root / "elsewhere.csv").read_text() == "0,100,0.25\n1,200,0.95\n"
    assert asked == [(("amago_ray/TMaze-v0",), {"episodes": 20})] * 2


def test_the_tables_of_callbacks_are_complete() -> None:
    shown = set(re.findall(r"^\| `(\w+)\(", EXTENDING, re.MULTILINE))
    base = callbacks.Callback
    places = {name for name in vars(base) if not name.startswith("_")} - {"check"}
    shipped = {c.__name__ for c in base.__subclasses__() if c.__module__ == callbacks.__name__}
    assert shown == places | shipped and len(shipped) == 4


@pytest.mark.processes
def test_a_run_with_a_module_of_ones_own(tmp_path: Path) -> None:
    """As a user does it: the module beside the gin file, one command to train, and one to evaluate the run."""
    introduction = blocks("gin", EXTENDING)[0]
    assert introduction.startswith(f"import {MODULE}\n")
    (tmp_path / f"{MODULE}.py").write_text("\n\n".join(blocks("python", EXTENDING)))
    chosen = ("A timestep encoder", "A sequence model", "Exploration", "An actor head", "A critic head", "Callbacks")
    lines = [introduction, *TINY_NETWORKS, *(sections()[title][0] for title in chosen)]
    for name, value in (
        ("run_name", "'own'"),
        ("make_train_env", "'amago_ray/TMaze-v0'"),
        ("max_seq_len", 4),
        ("parallel_actors", 2),
        ("train_timesteps_per_epoch", 70),
        ("train_batches_per_epoch", 2),
        ("batch_size", 4),
        ("epochs", 1),
        ("replay_capacity_gb", 0.02),
    ):
        lines.append(f"Experiment.{name} = {value}")
    (tmp_path / "my.gin").write_text("\n".join(lines))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "amago_ray.train", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert re.search(r"epoch 1/1 ", run("--config", "my.gin", "--no-final-test"))
    text = (tmp_path / "runs" / "own" / "config.txt").read_text()
    assert f"import {MODULE}" in text and "RunningMean" in text
    assert (tmp_path / "runs" / "own" / "elsewhere.csv").read_text().startswith("0,140,")
    assert "Average Total Return" in run("evaluate", "runs/own", "--episodes", "2")


@pytest.mark.processes
def test_a_class_of_the_script_itself_is_refused(tmp_path: Path) -> None:
    lines = [
        *blocks("python", EXTENDING),
        "from amago_ray import Experiment",
        "settings = dict(run_name='own', make_train_env='amago_ray/TMaze-v0', max_seq_len=4)",
        "Experiment(**settings, agent_type=HuberAgent).start()",
    ]
    (tmp_path / "script.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "Experiment.agent_type" in done.stderr and "define it in a module of its own" in done.stderr
    assert not (tmp_path / "runs").exists()
