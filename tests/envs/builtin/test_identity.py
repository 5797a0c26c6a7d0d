"""The rules of Identity, and that only memory solves it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amago_ray.envs.builtin.identity import Identity
from amago_ray.specs import ActionKind

KINDS = get_args(ActionKind)


def decode(env: Identity, shown: np.ndarray) -> Any:
    """The action that an observation of the target means."""
    features = shown[:-1]
    match env.kind:
        case "continuous":
            return features
        case "multibinary":
            return (features > 0).astype(np.int8)
        case "discrete":
            return np.int64(features.argmax())
    ends = np.cumsum(env.action_space.nvec)[:-1]  # type: ignore[attr-defined]
    return np.array([part.argmax() for part in np.split(features, ends)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_remembering_the_target_is_worth_exactly_one(kind: ActionKind, delay: int) -> None:
    env = Identity(kind, size=4, delay=delay)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(50):
        target = decode(env, observation)
        for step in range(delay + 1):
            assert env.observation_space.contains(observation)
            assert observation[:-1].any() == (step == 0)
            assert observation[-1] == (step == delay)
            action = target if step == delay else env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            assert (reward, terminated, truncated) == ((1.0, True, False) if step == delay else (0.0, False, False))
        observation, _ = env.reset()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("discrete", 1 / 4), ("multibinary", 1 / 2), ("multidiscrete", 19 / 48), ("continuous", 1 / 3)],
)
def test_random_policy_is_clearly_lower(kind: ActionKind, expected: float) -> None:
    env = Identity(kind, size=4)
    env.action_space.seed(0)
    env.reset(seed=0)
    rewards = []
    for _ in range(2000):
        env.reset()
        env.step(env.action_space.sample())
        rewards.append(env.step(env.action_space.sample())[1])
    assert np.mean(rewards) == pytest.approx(expected, abs=0.04)


def test_errors_count_by_entry() -> None:
    env = Identity("multibinary", size=4, delay=0)
    observation, _ = env.reset(seed=0)
    wrong = decode(env, observation)
    wrong[0] = 1 - wrong[0]
    assert env.step(wrong)[1] == 0.75
    env_c = Identity("continuous", size=2, delay=0)
    target = env_c.reset(seed=0)[0][:-1]
    assert env_c.step(np.zeros(2, dtype=np.float32))[1] == pytest.approx(1 - np.abs(target).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_targets(kind: ActionKind) -> None:
    def targets() -> list[list[float]]:
        env = Identity(kind)
        return [env.reset(seed=2)[0].tolist()] + [env.reset()[0].tolist() for _ in range(20)]

    assert targets() == targets()
    assert len({tuple(target) for target in targets()}) > 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(kind: ActionKind) -> None:
    check_env(Identity(kind), skip_render_check=True)


def test_name() -> None:
    assert Identity("multibinary").env_name == "Identity-multibinary"


@pytest.mark.parametrize(("name", "value"), [("action", "vector"), ("size", 1), ("size", 2.0), ("delay", -1)])
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        Identity(**{name: value})


def test_bad_actions() -> None:
    env = Identity()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action=3: must be in Discrete"):
        env.step(3)
