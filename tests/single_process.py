"""The ring without Ray: one worker, one shard and one learner in this process, taking turns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from amago_ray.agent.actor_critic import Agent, Multigammas
from amago_ray.agent.spec import AgentSpec
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import check_env
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.messages import LearnReport
from amago_ray.nets.actors import Actor
from amago_ray.nets.critics import NCritics
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker

# As in worker processes: small networks on several threads spend their time waiting for them.
torch.set_num_threads(1)


def small_agent_spec(
    make_env: Any,
    traj_encoder_type: Any,
    max_seq_len: int,
    width: int = 32,
    seed: int = 0,
    agent_type: type[Agent] = Agent,
    critic_type: Any = NCritics,
    **agent_settings: Any,
) -> AgentSpec:
    """An agent with heads and timestep encoder of one hidden layer. traj_encoder_type may be a partial."""
    obs_spec, action_spec, _ = check_env(make_env)
    return AgentSpec(
        obs_spec=obs_spec,
        action_spec=action_spec,
        max_seq_len=max_seq_len,
        tstep_encoder_type=partial(FFTstepEncoder, n_layers=1, d_hidden=width, d_output=width),
        traj_encoder_type=traj_encoder_type,
        agent_type=partial(
            agent_type,
            actor_type=partial(Actor, n_layers=1, d_hidden=width),
            critic_type=partial(critic_type, n_layers=1, d_hidden=width),
            **agent_settings,
        ),
        seed=seed,
    )


class SingleProcess:
    """Trains one agent: `epoch` collects, commits, learns and hands the weights back to the worker.

    steps_anneal: exploration's, in steps of one environment.
    """

    def __init__(
        self,
        make_env: Any,
        spec: AgentSpec,
        num_envs: int = 16,
        batch_size: int = 24,
        learning_rate: float = 2e-3,
        lr_warmup_steps: int = 20,
        steps_anneal: int = 500,
        seed: int = 0,
    ):
        self.make_env, self.spec, self.seed, self.num_envs = make_env, spec, seed, num_envs
        self.shard = ReplayShard(ReplayConfig(spec.max_seq_len, seed=seed), 0)
        handles = [LocalShard(self.shard)]
        self.writer = ReplayWriter(handles)
        explore = partial(EpsilonGreedy, steps_anneal=steps_anneal)
        rollout = RolloutConfig(make_env, num_envs, 0, seed, 8 * spec.max_seq_len, explore)
        self.worker = RolloutWorker(rollout, spec, write=self.writer.write, flush=self._flush)
        reader = ReplayReader(handles, batch_size, seed)
        config = LearnerConfig(learning_rate=learning_rate, lr_warmup_steps=lr_warmup_steps, seed=seed)
        self.learner = Learner(config, spec, reader)
        self.version = 0
        self._publish()

    def epoch(self, steps_per_env: int, batches: int) -> LearnReport:
        self.worker.collect(steps_per_env * self.num_envs)
        self.shard.commit()
        report = self.learner.train(batches)
        self._publish()
        return report

    def mean_return(self, episodes: int = 200, sample_actions: bool = True) -> float:
        """Mean return of the policy as it is, without exploration, in environments of its own."""
        weights = self.learner.publish(self.version)
        results = evaluate_policy(
            self.spec, weights, self.make_env, episodes, self.seed + 1, sample_actions, num_envs=min(episodes, 100)
        )
        return float(np.mean([result.total_reward for result in results]))

    def _publish(self) -> None:
        self.version += 1
        self.worker.set_weights(self.learner.publish(self.version))

    def _flush(self) -> float:
        self.writer.flush()
        return self.writer.wait_s


def with_gammas(*gammas: float) -> list[str]:
    """Bindings for gin: these auxiliary discount factors, for all kinds of actions."""
    return [f"{Multigammas.__name__}.{kind} = {list(gammas)}" for kind in ("discrete", "continuous")]
