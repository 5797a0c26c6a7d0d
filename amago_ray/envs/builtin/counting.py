"""Counting: an environment whose every row says what it is, to prove that nothing is lost, repeated or misaligned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.action_spaces import make_action_space
from amago_ray.envs.builtin.arguments import check_flag, check_integer
from amago_ray.messages import ACTION, REWARD, TERMINATED
from amago_ray.specs import OBS_PREFIX, ActionKind

MAX_ID = 2**31 - 1
MAX_REWARD = 2**24  # above it float32 no longer tells one integer from the next


def reward_of(rollout: int, step: int, episode_length: int) -> float:
    """The reward of a rollout's transition number `step` (1, 2, ...): another integer for each, exact in float32."""
    return float(rollout * (episode_length + 1) + step)


@gin.configurable
class Counting(gym.Env[dict[str, Any], Any]):
    """Observations that count, rewards that tell which transition they belong to, and actions that are echoed.

    Observation, a dict. "step": transitions made in this rollout. "rollout": resets since the environment was seeded
    (0 for the reset that seeds it). "env_id": who this is. "length": transitions that this rollout will have; each
    int64 (1,). "last_action": the action that led here, in the action space, zeros after `reset`.
    Reward: `reward_of(rollout, step, episode_length)` with the step of the observation that comes with it.
    `misaligned` checks a table of stored rows against these rules.

    episode_length: transitions in a rollout. random_lengths: uniform in 1..episode_length instead, drawn per rollout.
    env_id: 0..2^31 - 1; None draws one at each seeding, so that copies of one environment differ by their seeds.
    action, action_size: kind and size of the action space, as in `make_action_space`.
    terminate: rollouts end by termination, else by truncation.
    Raises ValueError for an argument out of range, an action outside the space, and (in `reset`) after so many rollouts
    that rewards would no longer be exact.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        episode_length: int = 10,
        env_id: int | None = None,
        action: ActionKind = "discrete",
        action_size: int = 3,
        terminate: bool = True,
        random_lengths: bool = False,
    ) -> None:
        self.episode_length = check_integer("episode_length", episode_length, at_least=1)
        if env_id is not None and check_integer("env_id", env_id, at_least=0) > MAX_ID:
            raise ValueError(f"env_id={env_id!r}: must be at most {MAX_ID}")
        self.env_id = env_id
        self.terminate = check_flag("terminate", terminate)
        self.random_lengths = check_flag("random_lengths", random_lengths)
        self.action_space = make_action_space(action, action_size)
        count = spaces.Box(0, MAX_ID, shape=(1,), dtype=np.int64)
        self.observation_space = spaces.Dict(
            {"step": count, "rollout": count, "env_id": count, "length": count, "last_action": self.action_space}
        )
        self._rollout: int | None = None

    @property
    def env_name(self) -> str:
        return "Counting"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The next rollout, or with a seed the first one again. `options` are not used."""
        super().reset(seed=seed)
        if seed is not None or self._rollout is None:
            self._rollout = 0
            self._env_id = int(self.np_random.integers(MAX_ID)) if self.env_id is None else self.env_id
        else:
            self._rollout += 1
        if reward_of(self._rollout, self.episode_length, self.episode_length) > MAX_REWARD:
            raise ValueError(
                f"episode_length={self.episode_length!r}: rewards of rollout {self._rollout} would exceed "
                f"{MAX_REWARD} and not be exact in float32; use shorter or fewer rollouts"
            )
        self._length = self.episode_length
        if self.random_lengths:
            self._length = int(self.np_random.integers(1, self.episode_length + 1))
        self._step = 0
        self._last_action = self._as_stored(np.zeros(self.action_space.shape or (), dtype=self.action_space.dtype))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action={action!r}: must be in {self.action_space}")
        assert self._rollout is not None, "step before reset"
        self._step += 1
        self._last_action = self._as_stored(action)
        over = self._step == self._length
        reward = reward_of(self._rollout, self._step, self.episode_length)
        return self._observe(), reward, over and self.terminate, over and not self.terminate, {}

    def _as_stored(self, action: Any) -> Any:
        """A copy of `action` in the dtype of the space: a numpy scalar for Discrete, else an array."""
        return np.array(action, dtype=self.action_space.dtype)[()]

    def _observe(self) -> dict[str, Any]:
        counts = {"step": self._step, "rollout": self._rollout, "env_id": self._env_id, "length": self._length}
        observation: dict[str, Any] = {key: np.array([value], dtype=np.int64) for key, value in counts.items()}
        observation["last_action"] = self._as_stored(self._last_action)
        return observation


def misaligned(
    columns: Mapping[str, NDArray[Any]], first_time_idx: int, episode_length: int, terminate: bool = True
) -> list[str]:
    """What is wrong with a piece of a Counting rollout: one line per broken rule, none if every row is right.

    columns: rows as in `messages`: "obs.<key>", "action", "reward" and "terminated", each with n rows that follow
    one another in one rollout. first_time_idx: index of row 0 in the rollout. episode_length, terminate: as in
    `Counting`. Actions may differ by 1e-6, which rescaling a continuous action may cost; all else is compared exactly.
    """
    num_rows = len(columns[REWARD])
    step, rollout, env_id, length = (
        np.asarray(columns[OBS_PREFIX + key]).reshape(num_rows) for key in ("step", "rollout", "env_id", "length")
    )
    action = np.asarray(columns[ACTION], dtype=np.float64).reshape(num_rows, -1)
    echoed = np.asarray(columns[OBS_PREFIX + "last_action"], dtype=np.float64).reshape(num_rows, -1)
    if action.shape != echoed.shape:
        return [f"actions have {action.shape[1]} entries, their echo has {echoed.shape[1]}"]
    reward = np.where(step == 0, 0, rollout * (episode_length + 1) + step)
    terminated = (step == length) if terminate else np.zeros(num_rows, dtype=bool)
    right = {
        "step follows step": step == first_time_idx + np.arange(num_rows),
        "step is within the rollout": step <= length,
        "one rollout": rollout == rollout[0],
        "one environment": env_id == env_id[0],
        "one length": length == length[0],
        "reward belongs to its row": np.asarray(columns[REWARD]).reshape(num_rows) == reward,
        "terminated belongs to its row": np.asarray(columns[TERMINATED]).reshape(num_rows) == terminated,
        "action belongs to its row": np.abs(action - echoed).max(axis=1) <= 1e-6,
    }
    return [f"not so in row {int(np.argmin(rows))}: {rule}" for rule, rows in right.items() if not rows.all()]
