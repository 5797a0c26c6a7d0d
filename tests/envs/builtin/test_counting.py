"""The rules of Counting, and that its checker sees every kind of damage to a table of rows."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amago_ray.envs.builtin.counting import Counting, misaligned, reward_of
from amago_ray.specs import ActionKind

KINDS = get_args(ActionKind)


def rollout_table(env: Counting, seed: int | None = None) -> dict[str, np.ndarray]:
    """One rollout of random actions as rows of `amago_ray.messages`."""
    observation, _ = env.reset(seed=seed)
    zero = np.zeros(env.action_space.shape or (), dtype=env.action_space.dtype)
    rows = [(observation, zero, 0.0, False)]
    over = False
    while not over:
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, reward, terminated))
        over = terminated or truncated
    columns = {f"obs.{key}": np.stack([row[0][key] for row in rows]) for key in observation}
    columns["action"] = np.stack([row[1] for row in rows])
    columns["reward"] = np.array([row[2] for row in rows], dtype=np.float32)
    columns["terminated"] = np.array([row[3] for row in rows])
    return columns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terminate", [True, False])
@pytest.mark.parametrize("random_lengths", [True, False])
def test_rollouts_follow_their_own_rules(kind: ActionKind, terminate: bool, random_lengths: bool) -> None:
    env = Counting(12, action=kind, terminate=terminate, random_lengths=random_lengths)
    env.action_space.seed(0)
    lengths = []
    for rollout in range(20):
        columns = rollout_table(env, seed=0 if rollout == 0 else None)
        assert misaligned(columns, 0, 12, terminate) == []
        assert set(columns["obs.rollout"].ravel()) == {rollout}
        assert columns["reward"][1:].tolist() == [
            reward_of(rollout, step, 12) for step in range(1, len(columns["reward"]))
        ]
        lengths.append(len(columns["reward"]) - 1)
        piece = {name: column[-1:] for name, column in columns.items()}
        assert misaligned(piece, lengths[-1], 12, terminate) == []
    assert set(lengths) <= set(range(1, 13)) and len(set(lengths)) > 5 if random_lengths else set(lengths) == {12}


def test_rewards_tell_every_transition_apart() -> None:
    rewards = {np.float32(reward_of(rollout, step, 7)) for rollout in range(100) for step in range(1, 8)}
    assert len(rewards) == 700 and 0 not in rewards


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda c: {k: np.delete(v, 4, axis=0) for k, v in c.items()}, "step follows step"),
        (lambda c: {k: np.insert(v, 4, v[4], axis=0) for k, v in c.items()}, "step follows step"),
        (lambda c: {k: v[1:] for k, v in c.items()}, "step follows step"),
        (lambda c: c | {"reward": np.roll(c["reward"], 1)}, "reward belongs to its row"),
        (lambda c: c | {"action": np.roll(c["action"], 1, axis=0)}, "action belongs to its row"),
        (lambda c: c | {"terminated": np.roll(c["terminated"], 1)}, "terminated belongs to its row"),
        (lambda c: c | {"obs.rollout": c["obs.rollout"] + (np.arange(11) > 5)[:, None]}, "one rollout"),
        (lambda c: c | {"obs.env_id": c["obs.env_id"] + (np.arange(11) > 5)[:, None]}, "one environment"),
        (lambda c: c | {"obs.length": c["obs.length"] + (np.arange(11) > 5)[:, None]}, "one length"),
        (lambda c: c | {"obs.length": c["obs.length"] - 1}, "step is within the rollout"),
        (lambda c: c | {"action": np.zeros((11, 2))}, "actions have 2 entries"),
    ],
)
def test_checker_sees_damage(damage: Any, rule: str) -> None:
    env = Counting(10, action="continuous")
    env.action_space.seed(0)
    columns = rollout_table(env, seed=0)
    assert misaligned(columns, 0, 10) == []
    assert any(rule in line for line in misaligned(damage(columns), 0, 10))


def test_same_seed_same_rollouts_and_other_seeds_other_ids() -> None:
    def lengths_and_id(seed: int) -> list[int]:
        env = Counting(50, random_lengths=True)
        observations = [env.reset(seed=seed)[0], *(env.reset()[0] for _ in range(5))]
        assert [o["rollout"].item() for o in observations] == [*range(6)]
        assert len({o["env_id"].item() for o in observations}) == 1
        return [o["length"].item() for o in observations] + [observations[0]["env_id"].item()]

    assert lengths_and_id(1) == lengths_and_id(1) != lengths_and_id(2)
    assert Counting(env_id=5).reset(seed=1)[0]["env_id"].tolist() == [5]


def test_seeding_starts_the_count_of_rollouts_again() -> None:
    env = Counting()
    for seed, rollout in [(None, 0), (None, 1), (3, 0), (None, 1)]:
        assert env.reset(seed=seed)[0]["rollout"].item() == rollout


def test_stops_before_rewards_lose_precision() -> None:
    env = Counting(2**20)
    for _ in range(15):
        env.reset()
    with pytest.raises(ValueError, match="episode_length=1048576: rewards of rollout 15 would exceed 16777216"):
        env.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_follows_gymnasium(kind: ActionKind) -> None:
    check_env(Counting(5, action=kind), skip_render_check=True)


def test_name() -> None:
    assert Counting().env_name == "Counting"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("episode_length", 0),
        ("env_id", -1),
        ("env_id", 2**31),
        ("action", "vector"),
        ("terminate", 1),
        ("random_lengths", "x"),
    ],
)
def test_bad_arguments(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*must be"):
        Counting(**{name: value})


def test_bad_actions() -> None:
    env = Counting()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action=3: must be in Discrete"):
        env.step(3)
