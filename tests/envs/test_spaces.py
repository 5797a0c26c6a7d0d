"""Spaces become flat arrays and come back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from amago_ray.envs.amago_env import AMAGOEnv, env_name_of
from amago_ray.envs.spaces import ActionConverter, ObsConverter, action_spec, obs_spec, sample_actions

few = settings(max_examples=50, deadline=None)
seeds = st.integers(0, 2**31 - 1)
shapes = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)
starts = st.integers(-300, 300)


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    dtype = draw(st.sampled_from(["float16", "float32", "float64", "uint8", "int64"]))
    low, size = draw(st.integers(0, 40)), draw(st.integers(1, 60))
    return spaces.Box(low, low + size, draw(shapes), np.dtype(dtype).type)


@st.composite
def multi_discretes(draw: st.DrawFn) -> spaces.MultiDiscrete:
    shape = draw(shapes.filter(len))
    rng = np.random.default_rng(draw(seeds))
    return spaces.MultiDiscrete(rng.integers(1, 400, shape), start=rng.integers(-300, 300, shape))


discretes = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 100_000), starts)
multi_binaries = st.builds(spaces.MultiBinary, st.lists(st.integers(1, 3), min_size=1, max_size=3))
leaves = st.one_of(boxes(), discretes, multi_discretes(), multi_binaries)
any_space = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: spaces.Tuple(parts)),
    ),
    max_leaves=6,
)


def expected(space: gym.Space, obs: Any, name: str) -> dict[str, np.ndarray]:
    """The flat arrays, written down in the most obvious way."""
    match space:
        case spaces.Dict() | spaces.Tuple():
            keys = space.spaces if isinstance(space, spaces.Dict) else range(len(space.spaces))
            parts = [expected(space[key], obs[key], f"{name}/{key}".lstrip("/")) for key in keys]
            return {key: value for part in parts for key, value in part.items()}
        case spaces.Discrete() | spaces.MultiDiscrete():
            return {name: np.ravel(obs - space.start)[0 if isinstance(space, spaces.Discrete) else slice(None)]}
        case _:
            return {name: obs}


@few
@given(any_space, seeds)
def test_observations_round_trip(space: gym.Space, seed: int) -> None:
    space.seed(seed)
    converter = ObsConverter(space)
    samples = [space.sample() for _ in range(3)]
    rows, batch = converter.empty(3), converter.empty(3)
    for index, obs in enumerate(samples):
        converter.write(rows, index, obs)
    batched = gym.vector.utils.create_empty_array(space, 3)
    converter.write_batch(batch, gym.vector.utils.concatenate(space, samples, batched))
    for index, obs in enumerate(samples):
        flat = converter.flatten(obs)
        wanted = expected(space, obs, "" if isinstance(space, spaces.Dict) else "observation")
        assert list(flat) == list(wanted) == list(obs_spec(space))
        for name, spec in obs_spec(space).items():
            assert flat[name].shape == spec.shape and flat[name].dtype == spec.dtype
            np.testing.assert_array_equal(flat[name], np.asarray(wanted[name]).astype(spec.dtype))
            np.testing.assert_array_equal(rows[name][index], flat[name])
            np.testing.assert_array_equal(batch[name][index], flat[name])
            assert not spec.nvec or (flat[name] < np.reshape(spec.nvec, spec.shape)).all()


def test_names_dtypes_and_categories() -> None:
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (2, 3), np.uint8),
        body=spaces.Dict(speed=spaces.Box(-1, 1, (2,), np.float64), gear=spaces.Discrete(300, start=-1)),
        hands=spaces.Tuple([spaces.MultiBinary((2, 2)), spaces.MultiDiscrete([[2, 3], [4, 256]])]),
    )
    spec = {name: (array.shape, array.dtype, array.nvec) for name, array in obs_spec(space).items()}
    assert spec == {
        "camera": ((2, 3), "uint8", ()),
        "body/speed": ((2,), "float32", ()),
        "body/gear": ((), "int16", (300,)),
        "hands/0": ((2, 2), "int8", ()),
        "hands/1": ((4,), "uint8", (2, 3, 4, 256)),
    }
    assert list(obs_spec(spaces.Tuple([spaces.Discrete(2)]))) == ["observation/0"]
    assert obs_spec(spaces.Discrete(100_000))["observation"].dtype == "int32"


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (spaces.Box(0, 1, (4,)), np.zeros(1), "shape"),
        (spaces.Box(0, 255, (2,), np.uint8), np.full(2, 0.5), "dtype float64"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, -1]), "outside its space: -1 is not between 0 and 255"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([256, 0]), "256 is not between"),
        (spaces.Box(0, 255, (), np.uint8), 256, "256 is not between"),
        (spaces.Box(-9, 9, (2,), np.int8), np.array([0, 128], np.uint8), "128 is not between -128 and 127"),
        (spaces.Box(0, 9, (1,), np.int64), np.array([2**63], np.uint64), "9223372036854775808 is not between"),
        (spaces.Box(0, 1, (2,), bool), np.array([0, 2]), "2 is not between 0 and 1"),
        (spaces.MultiBinary(2), np.array([0, 2], np.int8), "2 is not between 0 and 1"),
        (spaces.Dict(a=spaces.Box(0, 255, (1,), np.uint8)), {"a": np.array([-1])}, "'a' is outside"),
        (spaces.Discrete(4, start=1), 0, "outside its space: 0"),
        (spaces.Discrete(4), 1.0, "dtype float64"),
        (spaces.MultiDiscrete([2, 2]), np.array([0, 2]), "outside its space"),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": -1}, "'a' is outside"),
    ],
)
def test_a_wrong_observation_is_named(space: gym.Space, obs: Any, message: str) -> None:
    converter = ObsConverter(space)
    with pytest.raises(ValueError, match=message):
        converter.write(converter.empty(1), 0, obs)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), "Text.*at 'observation' is not supported: use Box"),
        (spaces.Dict(a=spaces.Tuple([spaces.Text(3)])), "at 'a/0'"),
        (spaces.Dict(), "empty"),
        (spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict(b=spaces.Discrete(2))}), "same name"),
        ("nothing", "of builtins"),
    ],
)
def test_unsupported_observation_spaces(space: gym.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        obs_spec(space)


@few
@given(leaves, seeds)
def test_actions_reach_the_environment(space: gym.Space, seed: int) -> None:
    converter = ActionConverter(space)
    stored = sample_actions(converter.spec, 4, np.random.default_rng(seed))
    assert stored.shape == (4, *converter.spec.shape) and stored.dtype == converter.spec.dtype
    batch = converter.to_env(stored)
    for one, from_batch in zip(stored, batch, strict=True):
        action = converter.to_env(one)
        assert space.contains(np.asarray(action)) and np.asarray(action).dtype == space.dtype
        np.testing.assert_array_equal(action, from_batch)
        if not isinstance(space, spaces.Box):
            np.testing.assert_array_equal(np.ravel(action - getattr(space, "start", 0)), np.ravel(one))
    assert not np.shares_memory(stored, batch)


@few
@given(boxes())
def test_box_actions_reach_their_bounds(space: spaces.Box) -> None:
    converter = ActionConverter(space)
    ones = np.ones(converter.spec.shape, np.float32)
    np.testing.assert_array_equal(converter.to_env(ones), space.high)
    np.testing.assert_array_equal(converter.to_env(-ones), space.low)


def test_box_actions_are_rescaled_entry_by_entry() -> None:
    space = spaces.Box(np.array([[0, -1], [-2, 10]]), np.array([[4, 1], [2, 20]]), dtype=np.float64)
    action = ActionConverter(space).to_env(np.array([0.5, 0.25, 0, -0.5], np.float32))
    np.testing.assert_array_equal(action, [[3, 0.25], [0, 12.5]])


def test_action_specs() -> None:
    assert action_spec(spaces.Discrete(1000, start=5)).vector_size == 1000
    many = action_spec(spaces.MultiDiscrete([[2, 3], [4, 5]]))
    assert (many.kind, many.shape, many.vector_size, many.nvec) == ("multidiscrete", (4,), 14, (2, 3, 4, 5))
    binary = action_spec(spaces.MultiBinary((2, 3)))
    assert (binary.kind, binary.shape, binary.vector_size) == ("multibinary", (6,), 6)


def test_integers_that_fit_are_taken_whatever_their_dtype() -> None:
    converter = ObsConverter(spaces.Box(0, 255, (3,), np.uint8))
    out = converter.empty(2)
    for dtype in (np.int8, np.int64, np.uint64, bool):
        converter.write(out, 0, np.array([0, 1, 1], dtype))
        converter.write_batch(out, np.array([[0, 1, 1]] * 2, dtype))
        assert out["observation"].tolist() == [[0, 1, 1]] * 2
    with pytest.raises(ValueError, match="-1 is not between"):
        converter.write_batch(out, np.array([[0, 1, 2], [0, -1, 2]]))
    assert ObsConverter(spaces.Box(0, 1, (1,), np.float32)).flatten(np.array([0.3]))["observation"][0] == np.float32(
        0.3
    )


@pytest.mark.parametrize(
    ("space", "remedy"),
    [
        (spaces.Text(3), "MissionTokens.*FilterObservation"),
        (gym.Space(dtype=str), "MissionTokens.*make_minigrid"),
        (spaces.Sequence(spaces.Discrete(2)), "pad it to a fixed length"),
        (spaces.Graph(spaces.Discrete(2), None), "pad nodes and edges"),
        (spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1)]), "a Dict of a Discrete choice"),
    ],
)
def test_a_refused_space_comes_with_its_remedy(space: gym.Space, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as of_observations:
        obs_spec(space)
    with pytest.raises(ValueError, match="is not supported") as of_actions:
        action_spec(space)
    assert "gymnasium.wrappers.TransformAction(env, func, space)" in str(of_actions.value)
    assert "Observation" not in str(of_actions.value)
    assert "\n" not in str(of_observations.value) + str(of_actions.value)


def test_actions_without_a_shape_are_arrays_of_their_space() -> None:
    for space in (spaces.Box(-2, 3, ()), spaces.Box(0, 5, (), np.int32)):
        converter = ActionConverter(space)
        for action in (*converter.each_to_env(np.zeros((2, 1), np.float32)), converter.to_env(np.ones(1, np.float32))):
            assert isinstance(action, np.ndarray) and action.shape == () and space.contains(action)
    number = next(iter(ActionConverter(spaces.Discrete(3)).each_to_env(np.zeros(2, np.int64))))
    assert {number: "an index of a dict"}


def test_actions_of_a_million_categories_are_refused_and_observations_are_not() -> None:
    with pytest.raises(ValueError, match="1000000 categories.*100000 are the most; split it into the digits"):
        action_spec(spaces.Discrete(1_000_000))
    with pytest.raises(ValueError, match="120000 categories"):
        action_spec(spaces.MultiDiscrete([60_000, 60_000]))
    assert obs_spec(spaces.Discrete(1_000_000))["observation"].dtype == "int32"


def test_unsupported_action_spaces() -> None:
    largest = float(np.finfo(np.float32).max)
    for low, high in ((-np.inf, 1), (-largest, largest), (0, largest), (-1e30, 1)):
        with pytest.raises(ValueError, match="no finite bounds.*TransformAction"):
            action_spec(spaces.Box(low, high, (2,)))
    with pytest.raises(ValueError, match="Dict.*not supported"):
        action_spec(spaces.Dict(a=spaces.Discrete(2)))


def test_names_of_environments() -> None:
    env = gym.make("CartPole-v1")
    assert env_name_of(env) == "CartPole-v1"
    assert env_name_of(type(env.unwrapped)()) == "CartPoleEnv"
    names = iter(["first", "second"])
    named = gym.wrappers.TimeLimit(AMAGOEnv(env, lambda: next(names)), 5)
    current = next(names)
    named = gym.wrappers.TimeLimit(AMAGOEnv(env, lambda: current), 5)
    assert env_name_of(named) == "first"
    current = next(names)
    assert env_name_of(named) == "second"
    assert env_name_of(AMAGOEnv(env, "fixed")) == "fixed"
