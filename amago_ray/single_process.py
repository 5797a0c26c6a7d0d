"""The whole system in one process and on one page: a worker, a shard and a learner that take turns, without Ray.

`driver/` does the same with each of them in processes of their own, many at once, and with what that needs: pacing,
placement, failures. To read the code, begin here.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from amago_ray.agent import AgentSpec
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import MakeEnv, env_spaces
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.learner.precision import MixedPrecision
from amago_ray.messages import LearnReport
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.sampling.relabeling import Relabeler, categories_of
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.rollout.evaluate import evaluate_policy
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker


class SingleProcess:
    """Trains one agent: `epoch` collects, commits, learns and hands the weights back to the worker.

        run = SingleProcess(TMaze, spec)
        for _ in range(20):
            run.epoch(steps_per_env=50, batches=30)
        print(run.mean_return())

    spec: says how to build the agent. num_envs: environments of the worker. batch_size: sequences per update.
    lr_warmup_steps: in updates. steps_anneal: exploration's, in steps of one environment. relabeler: changes
        trajectories as they are sampled.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        spec: AgentSpec,
        num_envs: int = 16,
        batch_size: int = 24,
        learning_rate: float = 2e-3,
        lr_warmup_steps: int = 20,
        steps_anneal: int = 500,
        mixed_precision: MixedPrecision = "no",
        relabeler: Relabeler | None = None,
        seed: int = 0,
    ):
        self.make_env, self.spec, self.seed, self.num_envs = make_env, spec, seed, num_envs
        if relabeler is not None:
            relabeler.check_spaces(env_spaces(make_env)[0])
        categories = categories_of(spec.obs_spec, spec.action_spec)
        replay = ReplayConfig(spec.max_seq_len, relabeler=relabeler, categories=categories, seed=seed)
        self.shard = ReplayShard(replay, 0)
        handles = [LocalShard(self.shard)]
        self.writer = ReplayWriter(handles)
        explore = partial(EpsilonGreedy, steps_anneal=steps_anneal)
        rollout = RolloutConfig(
            make_env, num_envs, 0, seed, 8 * spec.max_seq_len, explore, action_mask_key=spec.action_mask_key
        )
        self.worker = RolloutWorker(rollout, spec, write=self.writer.write, flush=self._flush)
        reader = ReplayReader(handles, batch_size, seed)
        config = LearnerConfig(
            learning_rate=learning_rate, lr_warmup_steps=lr_warmup_steps, mixed_precision=mixed_precision, seed=seed
        )
        self.learner = Learner(config, spec, reader)
        self.version = 0
        self._publish()

    def epoch(self, steps_per_env: int, batches: int) -> LearnReport:
        """Make `steps_per_env` steps in each environment, then learn from `batches` batches."""
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
