"""Policies at work in this process: a random one, a saved one, and a picture of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from PIL import Image
from small_agents import small_agent_spec

from amago_ray.agent.flat_weights import flatten_state
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.builtin import Counting, Identity, TMaze
from amago_ray.envs.makers import EnvProcesses, check_env
from amago_ray.envs.tasks import fixed_num_envs
from amago_ray.messages import Weights
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.rollout.evaluate import (
    check_renderable,
    evaluate_policy,
    final_test,
    load_policy_weights,
    random_policy,
    record_gif,
)

TMAZE = partial(TMaze, 4)


def spec_of(make_env: Any = TMAZE, width: int = 16) -> AgentSpec:
    return small_agent_spec(
        make_env, partial(GRUTrajEncoder, d_hidden=width, n_layers=1, d_output=width), max_seq_len=8, width=width
    )


def returns(results: list[Any]) -> list[float]:
    return [result.total_reward for result in results]


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.pt"
    torch.save(spec_of().build().state_dict(), path)
    return path


def test_a_random_policy_does_as_the_docstrings_say() -> None:
    results = random_policy(partial(Identity, "discrete", 4), episodes=2000, seed=1)
    assert len(results) == 2000
    assert np.mean(returns(results)) == pytest.approx(1 / 4, abs=0.05)
    assert {result.length for result in results} == {2} and {r.env_name for r in results} == {"Identity-discrete"}
    assert returns(random_policy(TMAZE, 20, seed=1)) == returns(random_policy(TMAZE, 20, seed=1))
    assert returns(random_policy(TMAZE, 20, seed=1)) != returns(random_policy(TMAZE, 20, seed=2))


def test_an_evaluation_depends_on_its_seed_alone(weights_file: Path) -> None:
    spec = spec_of()
    weights = load_policy_weights(spec, weights_file)
    first = evaluate_policy(spec, weights, TMAZE, episodes=20, seed=1)
    torch.manual_seed(5)  # what others draw does not matter
    assert evaluate_policy(spec, weights, TMAZE, episodes=20, seed=1) == first
    assert evaluate_policy(spec, weights, TMAZE, episodes=20, seed=2) != first
    assert len(first) == 20
    assert len(evaluate_policy(spec, weights, TMAZE, episodes=3, seed=1)) == 3


def test_the_mode_of_the_policy_is_one_action(weights_file: Path) -> None:
    """All rollouts look the same until the junction, and the cue is the only thing that the mode can depend on."""
    spec = spec_of()
    weights = load_policy_weights(spec, weights_file)
    sampled = evaluate_policy(spec, weights, TMAZE, episodes=40, sample_actions=True)
    greedy = evaluate_policy(spec, weights, TMAZE, episodes=40, sample_actions=False)
    assert len(set(returns(greedy))) <= 2 < len(set(returns(sampled)))


def test_weights_are_those_of_the_file(weights_file: Path) -> None:
    spec = spec_of()
    agent = spec.build()
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 1
    torch.save(agent.state_dict(), weights_file)
    np.testing.assert_array_equal(load_policy_weights(spec, weights_file).buffer, flatten_state(agent.policy))


def test_weights_that_do_not_fit(weights_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pt: there is no such file of policy weights"):
        load_policy_weights(spec_of(), tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"policy\.pt does not fit this configuration: \S+ was \(.*, now ") as error:
        load_policy_weights(spec_of(width=24), weights_file)
    assert "\n" not in str(error.value)


def test_a_gif_has_a_frame_per_timestep(weights_file: Path, tmp_path: Path) -> None:
    spec = spec_of()
    weights = load_policy_weights(spec, weights_file)
    for make_env in (TMAZE, "amago_ray/TMaze-v0", [TMAZE, TMAZE]):
        out = record_gif(spec, weights, make_env, tmp_path / "new folder" / "out.gif", seed=3)
        (result,) = evaluate_policy(spec, weights, make_env, episodes=1, seed=3)
        with Image.open(out) as picture:
            assert picture.format == "GIF"
            assert sum(frame_ms(picture)) == 120 * (result.length + 1)


def frame_ms(picture: Any) -> list[int]:
    """How long each picture is shown; equal ones in a row are stored as one that stays longer."""
    durations = []
    for i in range(picture.n_frames):
        picture.seek(i)
        durations.append(picture.info["duration"])
    return durations


class WithoutPictures(gym.Wrapper):
    def __init__(self) -> None:
        super().__init__(Counting(3))


@pytest.mark.parametrize("make_env", [partial(Counting, 3), WithoutPictures], ids=["partial", "class"])
def test_an_environment_that_does_not_render(make_env: Any, tmp_path: Path) -> None:
    spec = spec_of(make_env)
    weights = Weights(1, flatten_state(spec.build().policy))
    with pytest.raises(ValueError, match=r".* does not render: it must take render_mode='rgb_array'"):
        check_renderable(make_env)
    with pytest.raises(ValueError, match=r".* does not render: it must take render_mode='rgb_array'"):
        record_gif(spec, weights, make_env, tmp_path / "out.gif")
    assert not (tmp_path / "out.gif").exists()


class Plain(Counting):
    """Its constructor takes no render_mode."""

    def __init__(self, length: int = 3) -> None:
        if length < 1:
            raise TypeError(f"no rollout lasts {length} steps")
        super().__init__(length)


class Textual(Counting):
    """Asserts that it knows a render_mode, as gymnasium's tutorial has it."""

    def __init__(self, render_mode: str | None = None) -> None:
        assert render_mode is None or render_mode == "ansi"
        super().__init__(3)


class Bare(gym.Env):
    """It has no constructor of its own."""

    observation_space, action_space, render_mode = gym.spaces.Discrete(2), gym.spaces.Discrete(2), None


def through_gym_make(**kwargs: Any) -> gym.Env:
    return gym.make("Plain-v0", **kwargs)


def bare_through_gym_make(**kwargs: Any) -> gym.Env:
    return gym.make("Bare-v0", **kwargs)


@pytest.fixture
def registered() -> Iterator[None]:
    gym.register("Plain-v0", Plain)
    gym.register("Textual-v0", Textual)
    gym.register("Bare-v0", Bare)
    yield
    for name in ("Plain-v0", "Textual-v0", "Bare-v0"):
        del gym.registry[name]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "make_env",
    ["Plain-v0", "Textual-v0", ("Plain-v0", {"length": 4}), through_gym_make, "Bare-v0", bare_through_gym_make, Bare],
)
def test_a_registered_environment_that_takes_no_render_mode_does_not_render(make_env: Any) -> None:
    with pytest.raises(ValueError, match=r"^\S.* does not render: it must take render_mode='rgb_array'$"):
        check_renderable(make_env)


@pytest.mark.usefixtures("registered")
def test_what_else_a_constructor_refuses_is_told_as_it_is() -> None:
    with pytest.raises(TypeError, match="no rollout lasts 0 steps"):
        check_renderable(("Plain-v0", {"length": 0}))


def test_what_renders_is_found_to() -> None:
    for make_env in (TMAZE, "amago_ray/TMaze-v0", "CartPole-v1", [TMAZE]):
        check_renderable(make_env)
    with pytest.raises(ValueError, match="makes a VectorEnv, of which no single rollout can be rendered"):
        check_renderable(five_at_once)


class Paying(gym.Env):
    """Pays 100000.1 at each of 45 steps, which float32 has not."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = 45
        return 0, {}

    def step(self, action: int) -> Any:
        self.left -= 1
        return 0, 100_000.1, self.left == 0, False, {}


def two_paying() -> SyncVectorEnv:
    return SyncVectorEnv([Paying] * 2)


@pytest.mark.parametrize(
    ("make_env", "processes"),
    [(Paying, None), (two_paying, None), pytest.param(Paying, EnvProcesses(), marks=pytest.mark.processes)],
    ids=["plain", "vector", "processes"],
)
def test_returns_are_sums_of_what_the_environments_gave(make_env: Any, processes: EnvProcesses | None) -> None:
    results = random_policy(make_env, episodes=2, num_envs=2, env_processes=processes)
    assert returns(results) == [sum([100_000.1] * 45)] * 2


class Mixed(gym.Env):
    """Half of the rollouts last 1 step and return 0, half of them 40 and return 1."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.long, self.t = bool(self.np_random.integers(2)), 0
        return int(self.long), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        end = self.t == (40 if self.long else 1)
        return int(self.long), float(end and self.long), end, False, {}


def five_at_once() -> SyncVectorEnv:
    return SyncVectorEnv([Mixed] * 5)


@pytest.mark.parametrize("make_env", [Mixed, five_at_once], ids=["plain", "VectorEnv of a fixed size"])
@pytest.mark.parametrize("limit", [{}, {"max_timesteps": 8 * 200}], ids=["by rollouts", "in timesteps"])
def test_short_rollouts_count_as_often_as_long_ones(make_env: Any, limit: dict[str, int]) -> None:
    spec = spec_of(Mixed)
    weights = Weights(1, flatten_state(spec.build().policy))
    random = [returns(random_policy(make_env, 100, seed=seed, **limit)) for seed in range(4)]
    policy = [returns(evaluate_policy(spec, weights, make_env, 100, seed, **limit)) for seed in range(4)]
    for found in (random, policy):
        if not limit:
            assert [len(each) for each in found] == [100] * 4
        totals = [total for each in found for total in each]
        assert abs(np.mean(totals) - 0.5) < 4 * 0.5 / np.sqrt(len(totals))


def test_a_vector_env_of_a_fixed_size_is_found() -> None:
    assert fixed_num_envs(five_at_once) == 5
    for make_env in ("CartPole-v1", [TMAZE], TMAZE, lambda num_envs: SyncVectorEnv([Mixed] * num_envs)):
        assert fixed_num_envs(make_env) is None


def test_the_size_that_the_check_before_the_start_has_seen_is_known() -> None:
    built: list[int] = []

    def make() -> SyncVectorEnv:
        built.append(1)
        return five_at_once()

    check_env(make)
    before = len(built)
    assert fixed_num_envs(make) == 5 and len(built) == before


class Endless(Mixed):
    def step(self, action: Any) -> Any:
        return 0, 1.0, False, False, {}


def test_rollouts_without_end() -> None:
    spec = spec_of(Endless)
    weights = Weights(1, flatten_state(spec.build().policy))
    for play in (
        lambda **limits: random_policy(Endless, 4, **limits),
        lambda **limits: evaluate_policy(spec, weights, Endless, 4, **limits),
    ):
        with pytest.raises(ValueError, match=r"environment Endless: a rollout has not ended .* and 0\.1 s"):
            play(rollout_limit_s=0.1)
        assert play(max_timesteps=40, rollout_limit_s=0.0) == []


def test_the_final_test_is_bounded_for_both_policies() -> None:
    asked: list[dict[str, Any]] = []

    def evaluate_test(make_env: Any, **limits: Any) -> dict[str, float]:
        asked.append(limits)
        return {"Total Episodes": 7.0}

    trained, random = final_test(evaluate_test, Mixed, 200, 1000, seed=3, num_envs=10)
    assert trained == {"Total Episodes": 7.0} and asked == [{"timesteps": 100, "episodes": 200}]
    assert 20 < len(random) < 200 and sum(result.length for result in random) <= 1000 + 10 * 40
    assert len(final_test(evaluate_test, Mixed, 30, None, seed=3, num_envs=10)[1]) == 30


def test_a_gif_of_a_rollout_without_end_has_its_beginning(tmp_path: Path) -> None:
    make_env = partial(gym.make, "Pendulum-v1", max_episode_steps=-1)
    spec = spec_of("Pendulum-v1")
    weights = Weights(1, flatten_state(spec.build().policy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amago_ray.rollout.evaluate.MAX_GIF_FRAMES", 10)
        with Image.open(record_gif(spec, weights, make_env, tmp_path / "out.gif")) as picture:
            assert sum(frame_ms(picture)) == 120 * 10
