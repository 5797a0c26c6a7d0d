"""A rollout that is looked at is the one that would have been played, and its values are those of the learner."""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from acting_cases import ACTION_SPACES, OBSERVATION_SPACES, Random, make_run
from gymnasium import spaces
from PIL import Image

from amago_ray.agent.policy import TrainingBatch
from amago_ray.envs.builtin import MetaFrozenLake
from amago_ray.rollout.acting import ActingPolicy, load_agent, load_policy
from amago_ray.rollout.inspection import MAX_PIXELS, ThinkingPolicy, inspect_rollout

STEPS = 20


def inspected(folder: Path, make_env: Any, encoder: str = "GRUTrajEncoder", **options: Any) -> list[dict[str, Any]]:
    root = make_run(folder, make_env, encoder).directory.root
    policy = ThinkingPolicy(*load_agent(root), **options)
    lines = list(inspect_rollout(policy, make_env, seed=3, max_steps=STEPS))
    json.dumps(lines, allow_nan=False)
    return lines


@pytest.mark.parametrize(
    "action, encoder", [*((action, "GRUTrajEncoder") for action in ACTION_SPACES), ("discrete", "TformerTrajEncoder")]
)
def test_looking_changes_nothing(action: str, encoder: str, tmp_path: Path) -> None:
    make_env = partial(Random, OBSERVATION_SPACES["nested"], ACTION_SPACES[action])
    lines = inspected(tmp_path, make_env, encoder, sample=True, seed=5)
    steps = lines[1:-1]
    policy: ActingPolicy = load_policy(tmp_path / "run", sample=True, seed=5)
    env = make_env()
    obs, _ = env.reset(seed=3)
    state, reward, total = None, None, 0.0
    for step in steps:
        taken, state = policy.act(obs, state, reward=reward)
        assert step["action"] == np.asarray(taken).tolist()
        obs, reward, terminated, truncated, _ = env.step(taken)
        total += float(reward)
        assert step["reward"] == reward and step["return"] == pytest.approx(total)
    assert (terminated or truncated) == (lines[-1]["ended"] != "cut") and lines[-1]["steps"] == len(steps)
    assert lines[0]["actions"]["kind"] == policy._action.spec.kind and not lines[0]["renders"]


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_values_are_those_of_the_whole_sequence(action: str, tmp_path: Path) -> None:
    make_env = partial(Random, OBSERVATION_SPACES["box"], ACTION_SPACES[action])
    lines = inspected(tmp_path, make_env)
    start, steps = lines[0], lines[1:-1]
    agent, _ = load_agent(tmp_path / "run")
    vectors = torch.tensor([step["vector"] for step in steps])
    rewards = torch.tensor([step["reward"] for step in steps])
    seen = torch.tensor([step["obs"]["observation"]["values"] for step in steps])
    num = len(steps) - 1  # transitions between what was seen
    before = torch.cat((torch.cat((torch.zeros(1), rewards[:-1])).unsqueeze(1), vectors.roll(1, 0)), dim=1)
    before[0] = 0.0
    batch = TrainingBatch(
        obs={"observation": seen.unsqueeze(0)},
        rl2=before.unsqueeze(0),
        time_idx=torch.arange(num + 1).unsqueeze(0),
        actions=vectors[:num].unsqueeze(0),
        rewards=rewards[:num].unsqueeze(0),
        terminated=torch.zeros(1, num),
        mask=torch.ones(1, num, dtype=torch.bool),
    )
    expected = agent.get_values(batch)
    q = np.array([step["q"] for step in steps[:num]]) * agent.reward_multiplier
    np.testing.assert_allclose(q, expected["q"][0].numpy(), rtol=1e-4, atol=1e-5)
    assert len(start["gammas"]) == q.shape[1]
    if action == "discrete":
        values = np.array([step["value"] for step in steps[:num]]) * agent.reward_multiplier
        np.testing.assert_allclose(values, expected["value"][0].numpy(), rtol=1e-4, atol=1e-5)
        for step in steps:
            smoothing = 0.02 * np.ptp(step["q_actions"])  # a stored action enters its Q with a little of all others
            assert step["q_actions"][int(np.argmax(step["vector"]))] == pytest.approx(step["q"][-1], abs=smoothing)
            mean = np.dot(step["probs"], step["q_actions"])
            assert mean == pytest.approx(step["value"][-1], rel=1e-4, abs=1e-6), "V is the mean of Q"
            assert sum(step["probs"]) == pytest.approx(1.0)
    else:
        assert steps[0]["probs"] is None and steps[0]["q_actions"] is None and len(steps[0]["mode"]) == 3


def test_an_environment_that_draws_itself_is_seen(tmp_path: Path) -> None:
    lines = inspected(tmp_path, partial(MetaFrozenLake, size=3, k_episodes=2))
    assert lines[0]["renders"]
    for line in lines[1:]:
        picture = Image.open(io.BytesIO(base64.b64decode(line["frame"])))
        assert max(picture.size) <= MAX_PIXELS


class Plain(MetaFrozenLake):
    """It could draw itself, but its constructor takes no render_mode."""

    def __init__(self) -> None:
        super().__init__(size=3, k_episodes=2)


def test_a_registered_environment_that_takes_no_render_mode_is_played_without_pictures(tmp_path: Path) -> None:
    gym.register("Plain-v0", Plain)
    try:
        start, *steps, end = inspected(tmp_path, "Plain-v0")
    finally:
        del gym.registry["Plain-v0"]
    assert start["env"] == "Plain-v0" and not start["renders"]
    assert len(steps) == end["steps"] > 0 and all(line["frame"] is None for line in (*steps, end))


class Screen(gym.Env):
    """Its observations are pictures, and numbers that are too many to list; it never ends."""

    observation_space = spaces.Dict(
        picture=spaces.Box(0, 255, (16, 12, 1), np.uint8), many=spaces.Box(-1.0, 1.0, (100,)), one=spaces.Discrete(3)
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, False, False, {}


def test_observations_of_any_size_and_a_rollout_that_is_cut(tmp_path: Path) -> None:
    lines = inspected(tmp_path, Screen)
    obs = lines[1]["obs"]
    assert Image.open(io.BytesIO(base64.b64decode(obs["picture"]["image"]))).size == (12, 16)
    assert obs["many"] == {"shape": [100], "values": None} and obs["one"]["values"] is not None
    assert lines[-1] == {"kind": "end", "frame": None, "steps": STEPS, "return": float(STEPS), "ended": "cut"}
    assert lines[1]["frame"] is None and len(lines) == STEPS + 2
