"""Identity: show a target, hide it, ask for it. The smallest task that needs memory, for every kind of action."""

from __future__ import annotations

from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from amago_ray.envs.builtin.action_spaces import make_action_space
from amago_ray.envs.builtin.arguments import check_integer
from amago_ray.specs import ActionKind


@gin.configurable
class Identity(gym.Env[NDArray[np.float32], Any]):
    """A random target in the action space is shown once; `delay` steps later the action has to repeat it.

    A rollout has delay + 1 steps and ends by termination. Rewards are 0 but for the last, which is 1 - error:

    =============  ====================================  =====================  ========================
    action         error of the last action              random policy expects  no memory expects at best
    =============  ====================================  =====================  ========================
    discrete       1 unless it is the target             1 / size               1 / size
    multibinary    fraction of wrong entries             1 / 2                  1 / 2
    multidiscrete  fraction of wrong entries             mean of 1 / nvec       mean of 1 / nvec
    continuous     mean absolute difference, 0 to 2      1 / 3                  1 / 2 (by the action 0)
    =============  ====================================  =====================  ========================

    Observation, float32 (F + 1,) in [-1, 1]: F entries of the target at step 0 (one-hot for discrete, one-hots end to
    end for multidiscrete, -1 or 1 per entry for multibinary, the values for continuous), zeros at all others; then 1
    where the next action is the answer, else 0.

    action, size: kind and size of the action space, as in `make_action_space`.
    delay: steps between the target and the answer. 1 gives the two-step task; 0 shows the target as it is asked for.
    Raises ValueError for an argument out of range, and for an action outside the space.
    """

    metadata = {"render_modes": []}

    def __init__(self, action: ActionKind = "discrete", size: int = 3, delay: int = 1) -> None:
        self.action_space = make_action_space(action, size)
        self.kind = action
        self.delay = check_integer("delay", delay, at_least=0)
        space = self.action_space
        self._nvec = [space.n] if isinstance(space, spaces.Discrete) else getattr(space, "nvec", np.array([])).tolist()
        self._num_features = int(sum(self._nvec)) if self._nvec else size
        self.observation_space = spaces.Box(-1.0, 1.0, shape=(self._num_features + 1,), dtype=np.float32)

    @property
    def env_name(self) -> str:
        return f"Identity-{self.kind}"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new target, shown. `options` are not used."""
        super().reset(seed=seed)
        shape = self.action_space.shape
        self._target: NDArray[Any]
        if self.kind == "continuous":
            self._target = self.np_random.uniform(-1.0, 1.0, size=shape).astype(np.float32)
        elif self.kind == "multibinary":
            self._target = self.np_random.integers(2, size=shape)
        else:
            self._target = self.np_random.integers(np.array(self._nvec)).reshape(shape)
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action={action!r}: must be in {self.action_space}")
        terminated = self._step == self.delay
        reward = 1.0 - self._error(action) if terminated else 0.0
        self._step += 1
        return self._observe(), reward, terminated, False, {}

    def _error(self, action: Any) -> float:
        if self.kind == "continuous":
            return float(np.abs(np.asarray(action) - self._target).mean())
        return float(np.mean(np.asarray(action) != self._target))

    def _observe(self) -> NDArray[np.float32]:
        observation = np.zeros(self._num_features + 1, dtype=np.float32)
        if self._step == 0:
            observation[:-1] = self._shown_target()
        observation[-1] = self._step == self.delay
        return observation

    def _shown_target(self) -> NDArray[np.float32]:
        if self.kind == "continuous":
            return self._target
        if self.kind == "multibinary":
            return (2 * self._target - 1).astype(np.float32)
        entries = np.atleast_1d(self._target).tolist()
        return np.concatenate([np.eye(n, dtype=np.float32)[entry] for n, entry in zip(self._nvec, entries)])
