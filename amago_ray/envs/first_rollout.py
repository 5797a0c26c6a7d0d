"""What an environment gave while it was tried, as a run would store it: for those who have to try something on rows."""

from __future__ import annotations

import numpy as np

from amago_ray.envs.pool import Transition
from amago_ray.messages import ACTION, REWARD, TERMINATED
from amago_ray.specs import OBS_PREFIX


class FirstRollout:
    """The first rollout of the first environment that `check_env` steps, as far as it goes there.

    rollout = FirstRollout()
    check_env(make_env, rollout=rollout)
    rollout.columns
    """

    def __init__(self) -> None:
        self._obs: list[dict[str, np.ndarray]] = []
        self._led_to: list[tuple[np.ndarray, float, bool]] = []  # action, reward and terminated, of all rows but 0
        self._over = False

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to go on from: not before `begin`, nor after a failure in the first step."""
        return bool(self._obs)

    def begin(self, obs: dict[str, np.ndarray]) -> None:
        """Take the observations (N, ...) that rollouts begin with; another environment's are passed over."""
        self._over = self.has_begun
        if not self._over:
            self._keep(obs)

    def step(self, actions: np.ndarray, transition: Transition) -> None:
        """Take what stored `actions` (N, ...) led to. Where that was a failure, what came before is all of it."""
        if self._over:
            return
        if transition.failed[0]:
            self._over = bool(self._led_to)
            if not self._over:
                self._obs.clear()
            return
        self._keep(transition.obs)
        terminated = bool(transition.terminated[0])
        self._led_to.append((np.copy(actions[0]), float(transition.rewards[0]), terminated))
        self._over = terminated or bool(transition.truncated[0])

    def _keep(self, obs: dict[str, np.ndarray]) -> None:
        self._obs.append({name: np.copy(column[0]) for name, column in obs.items()})

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The table, as in `messages.Trajectory`, of what there was. At least one step must have been taken."""
        actions, rewards, terminated = zip(*self._led_to, strict=True)
        return {OBS_PREFIX + name: np.stack([obs[name] for obs in self._obs]) for name in self._obs[0]} | {
            ACTION: np.stack([np.zeros_like(actions[0]), *actions]),
            REWARD: np.array([0.0, *rewards], np.float32),
            TERMINATED: np.array([False, *terminated]),
        }
