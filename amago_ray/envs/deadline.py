"""A deadline that is part of the task."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class DeadlineTerminates(gym.Wrapper):
    """Where the environment truncates, it terminates: its last step is the task's last, and nothing comes after it.

    Critics go on from the last state of a rollout that is truncated, as if the clock alone had stopped it. Where every
    rollout ends like this, they have never seen what such a state is worth, and a policy is told that what it failed to
    do in time is still to come. Source: Pardo et al. 2018, "Time Limits in Reinforcement Learning", arXiv 1712.00378.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info
