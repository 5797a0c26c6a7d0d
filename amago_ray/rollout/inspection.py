"""One rollout, looked at step by step: what a policy saw, what it thought of its actions, and what they earned."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from PIL import Image
from torch import Tensor

from amago_ray.agent.actor_critic import Agent
from amago_ray.agent.transitions import Transitions
from amago_ray.envs.makers import MakeEnv
from amago_ray.envs.pool import close_env, closing_env
from amago_ray.envs.tasks import build, entries_of, entry_name
from amago_ray.rollout.acting import ActingPolicy
from amago_ray.rollout.evaluate import renderable

MAX_PIXELS = 420  # of the longer side of a picture; larger ones are made smaller
MIN_IMAGE_PIXELS = 8  # of either side of an observation of bytes that is shown as a picture
MAX_NUMBERS = 64  # of an observation that are listed
MAX_LISTED_ACTIONS = 32  # that are given a value each


class ThinkingPolicy(ActingPolicy):
    """An `ActingPolicy` that takes the same actions, and says of each what it was taken from and what it is worth.

    agent: with its critics. All else is as of `ActingPolicy`.
    thought: of the last action, of one environment; see `inspect_rollout` for what is in it.
    """

    def __init__(self, agent: Agent, spaces: tuple[gym.Space, gym.Space], **options: Any):
        super().__init__(agent.policy, *spaces, **options)
        self.agent = agent.eval()
        self.thought: dict[str, Any] = {}

    def _choose(self, obs: dict[str, Tensor], rl2: Tensor, time_idx: Tensor, memory: Any) -> tuple[Tensor, Any]:
        with torch.inference_mode():
            state, memory = self.policy.step(obs, rl2, time_idx, memory)
            vector = self.policy.choose(state, obs, self.sample)
            with torch.random.fork_rng(devices=[]):  # values may be drawn too; actions must not depend on it
                self.thought = {
                    "obs": {name: _shown(array[0].numpy()) for name, array in obs.items()},
                    "vector": vector[0].tolist(),
                    **self._about_actions(state, obs),
                    **(self._values(state, obs, vector) if self.agent.uses_critics else {}),
                }
        return vector, memory

    def _about_actions(self, state: Tensor, obs: dict[str, Tensor]) -> dict[str, Any]:
        dist, legal = self.policy.acting_distribution(state, obs, self.sample), self.policy.legal_actions(obs)
        probs = None if self._action.spec.kind == "continuous" else dist.probs[0].tolist()
        return {
            "probs": probs,
            "mode": dist.mode[0].tolist(),
            "entropy": dist.entropy()[0].item(),
            "legal": None if legal is None else legal[0].tolist(),
        }

    def _values(self, state: Tensor, obs: dict[str, Tensor], vector: Tensor) -> dict[str, Any]:
        agent, policy, state_1ND = self.agent, self.policy, state.unsqueeze(0)
        legal = policy.legal_actions(obs)
        legal_1NA = None if legal is None else legal.unsqueeze(0)
        seen = {name: array.unsqueeze(0) for name, array in policy.actor_obs(obs).items()}
        dist = policy.actor(state_1ND, seen, legal_1NA)
        real = Transitions(state_1ND, state_1ND, vector.unsqueeze(0), dist, legal_1NA)
        q_1NCGO, value_K1NCG1 = agent.judge(real)
        q_G = agent.returns(agent.scalars(q_1NCGO)).mean(dim=2)[0, 0, :, 0] / agent.reward_multiplier
        value_G = agent.returns(value_K1NCG1).mean(dim=(0, 3))[0, 0, :, 0] / agent.reward_multiplier
        return {"q": q_G.tolist(), "value": value_G.tolist(), "q_actions": self._value_of_each(state_1ND)}

    def _value_of_each(self, state_1ND: Tensor) -> list[float] | None:
        """Q of every single action by the main gamma; None where they cannot be listed."""
        spec, agent = self._action.spec, self.agent
        if spec.kind != "discrete" or spec.vector_size > MAX_LISTED_ACTIONS:
            return None
        each_K111A = torch.eye(spec.vector_size)[:, None, None, None]
        q = agent.scalars(agent.critics.values(agent.critics.prepare(state_1ND), each_K111A))
        return (agent.returns(q).mean(dim=3)[:, 0, 0, -1, 0] / agent.reward_multiplier).tolist()


def inspect_rollout(policy: ThinkingPolicy, make_env: MakeEnv, seed: int, max_steps: int) -> Iterator[dict[str, Any]]:
    """One rollout in an environment of the first entry of `make_env`, as it is played: plain values, for JSON.

    First {"kind": "start", "env", "actions" (their kind and sizes), "gammas" (the last one acts; none without critics),
    "renders"}. Then per action {"kind": "step", "t", "frame", "action" (as the environment takes it), "reward",
    "return" (so far, with this reward), "obs" (array by array, as it is encoded), "vector", "probs", "mode", "entropy",
    "legal"} and, with critics, "q" (of the action) and "value" (of the state), per gamma, in units of reward, and
    "q_actions", of every action. Last {"kind": "end", "frame", "steps", "return", "ended" ("terminated", "truncated",
    or "cut" after max_steps)}. Pictures are PNGs in base 64; where the environment does not draw itself, None.
    Raises ValueError for a VectorEnv, and for what building raises.
    """
    with closing_env(_make(make_env)) as env:
        renders = env.render_mode == "rgb_array"
        action_spec = policy._action.spec
        yield {
            "kind": "start",
            "env": entry_name(entries_of(make_env)[0]),
            "actions": {"kind": action_spec.kind, "sizes": list(action_spec.nvec) or [action_spec.vector_size]},
            "gammas": [float(name) for name in policy.agent.gamma_names] if policy.agent.uses_critics else [],
            "renders": renders,
        }
        obs, _ = env.reset(seed=seed)
        state, reward, total, ended, steps = None, None, 0.0, "cut", 0
        for steps in range(1, max_steps + 1):
            frame = _picture(np.asarray(env.render())) if renders else None
            action, state = policy.act(obs, state, reward=reward)
            obs, reward, terminated, truncated, _ = env.step(action)
            reward = float(reward)
            total += reward
            taken = np.asarray(action).tolist()
            step = {"kind": "step", "t": steps - 1, "frame": frame, "action": taken, "reward": reward, "return": total}
            yield step | policy.thought
            if terminated or truncated:
                ended = "terminated" if terminated else "truncated"
                break
        last = _picture(np.asarray(env.render())) if renders else None
        yield {"kind": "end", "frame": last, "steps": steps, "return": total, "ended": ended}


def _make(make_env: MakeEnv) -> gym.Env:
    """An environment that draws itself if it can."""
    try:
        return renderable(make_env)
    except ValueError:
        env = build(entries_of(make_env)[0])
        if isinstance(env, VectorEnv):
            close_env(env)
            raise
        return env


def _shown(array: np.ndarray) -> dict[str, Any]:
    """An observation: {"image"} where it looks like one, else {"shape", "values"}, None if there are too many."""
    if array.dtype == np.uint8 and array.ndim in (2, 3):
        channels = array[..., None] if array.ndim == 2 else array
        if channels.shape[2] in (1, 3) and min(channels.shape[:2]) >= MIN_IMAGE_PIXELS:
            return {"shape": list(array.shape), "image": _picture(np.broadcast_to(channels, (*channels.shape[:2], 3)))}
    values = array.astype(np.float64).ravel().tolist() if array.size <= MAX_NUMBERS else None
    return {"shape": list(array.shape), "values": values}


def _picture(pixels: np.ndarray) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    content = io.BytesIO()
    image.save(content, "png")
    return base64.b64encode(content.getvalue()).decode("ascii")
