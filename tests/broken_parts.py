"""Environments and data with one thing wrong, as modules of users have them: `import broken_parts` in gin."""

from __future__ import annotations

from typing import Any

import gin
import gymnasium as gym
import numpy as np

from amago_ray.envs.builtin import Counting
from amago_ray.replay.datasets.dataset import Episode, RLDataset

PLAIN = gym.spaces.Box(-1.0, 1.0, (2,))


class Sick(gym.Env):
    """An environment of which `wrong` says what is: a space, an observation, a reward, or what `step` raises."""

    def __init__(self, **wrong: Any):
        self.wrong = wrong
        self.observation_space = wrong.get("observation_space", PLAIN)
        self.action_space = wrong.get("action_space", gym.spaces.Discrete(2))

    def _observation(self) -> np.ndarray:
        return np.zeros(getattr(self.observation_space, "shape", None) or (), self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if "reset" in self.wrong:
            raise self.wrong["reset"]
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        if "step" in self.wrong:
            raise self.wrong["step"]
        return self.wrong.get("obs", self._observation()), self.wrong.get("reward", 0.0), False, False, {}


def _sick(name: str, **wrong: Any) -> None:
    def make() -> gym.Env:
        return Sick(**wrong)

    make.__name__ = make.__qualname__ = name
    globals()[name] = gin.external_configurable(make, name, module="broken_parts")


_sick("pictures", observation_space=gym.spaces.Box(0, 255, (36, 36, 3), np.uint8))
_sick("nan_observation", obs=np.array([0.0, np.nan], np.float32))
_sick("observation_of_wrong_shape", obs=np.zeros(3, np.float32))
_sick("infinite_reward", reward=float("inf"))
_sick("reward_of_wrong_shape", reward=np.zeros(3))
_sick("raises_in_reset", reset=RuntimeError("no licence"))
_sick("raises_in_step", step=KeyError("joint_7"))
_sick("text_observations", observation_space=gym.spaces.Text(5))
_sick("text_actions", action_space=gym.spaces.Text(5))
_sick("unbounded_actions", action_space=gym.spaces.Box(-np.inf, np.inf, (1,)))
_sick("no_actions", action_space=gym.spaces.Box(-1.0, 1.0, (0,)))
_sick("other_actions", action_space=gym.spaces.Discrete(5))


@gin.configurable(module="broken_parts")
def cannot_be_built() -> Any:
    raise OSError("the simulator is not installed")


@gin.configurable(module="broken_parts")
def no_environment() -> Any:
    return {"step": None}


@gin.configurable(module="broken_parts")
def with_key(api_key: str = "", other: int = 0) -> gym.Env:
    return Sick()


ONE = Counting(6)


@gin.configurable(module="broken_parts")
def always_the_same() -> gym.Env:
    return ONE


class Data(RLDataset):
    """Two episodes of CartPole, made of zeros, but for what is wrong with the second."""

    def __init__(self, **wrong: Any):
        self.wrong = wrong

    def __len__(self) -> int:
        return 2

    def episode(self, index: int) -> Episode:
        right: dict[str, Any] = {
            "observations": np.zeros((4, 4), np.float32),
            "actions": np.zeros(3, np.int64),
            "rewards": np.ones(3),
            "terminated": True,
        }
        if index == 1 and "raises" in self.wrong:
            raise self.wrong["raises"]
        return Episode(**(right | (self.wrong if index == 1 else {})))


def _data(name: str, **wrong: Any) -> None:
    def init(self: Data) -> None:
        Data.__init__(self, **wrong)

    made = type(name, (Data,), {"__init__": init, "__module__": __name__})
    globals()[name] = gin.external_configurable(made, name)


_data("NanData", observations=np.full((4, 4), np.nan, np.float32))
_data("InfiniteRewards", rewards=np.array([1.0, np.inf, 1.0]))
_data("ForeignActions", actions=np.array([0, 7, 0]))
_data("ShortRewards", rewards=np.ones(2))
_data("OtherObservations", observations=np.zeros((4, 9), np.float32))
_data("BrokenReader", raises=KeyError("episode_1"))
_data("FineData")
