"""`Experiment`: the driver. It starts the processes, paces the epochs and keeps what must be kept.

Only reports reach this process. Trajectories go worker -> replay -> learner, weights learner -> workers.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gin

from amago_ray import config
from amago_ray.atomic_files import write_atomically
from amago_ray.driver.cluster import connect, disconnect
from amago_ray.driver.jobs import (
    Collection,
    CollectJob,
    Evaluation,
    Learning,
    LearnJob,
    run_jobs,
)
from amago_ray.driver.liveness import MAX_DEATHS_IN_A_ROW, Presence
from amago_ray.driver.overview import overview
from amago_ray.driver.placement import WORKER, Cluster, check_fits, place
from amago_ray.driver.plan import deal_environments, plan, rate_limiter
from amago_ray.driver.preflight import check_folder, check_settings, is_begun, probe, weight_shapes
from amago_ray.driver.processes import TopologyConfig
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.schedule import EpochResult, make_schedule
from amago_ray.driver.topology import START_TIMEOUT_S, LearnerDied, Topology, check_sendable
from amago_ray.envs.makers import MakeEnv
from amago_ray.messages import EpisodeResult, ReplayReport, RolloutReport, Weights
from amago_ray.replay.datasets.dataset import mixture_of
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings, replay_folder, wandb_options
from amago_ray.watch.display import Display
from amago_ray.watch.metrics import AVERAGE_RETURN, MetricsLog, Progress, summarize_episodes

T = TypeVar("T")

ROOM_TIMEOUT_S = 20.0  # for the processes of an earlier run to give back what they had

SENT_TO_WORKERS = (
    "make_train_env",
    "make_val_env",
    "tstep_encoder_type",
    "traj_encoder_type",
    "agent_type",
    "exploration_wrapper_type",
    "dataset",
)


@gin.configurable
@config.accept_amago_arguments
@dataclass
class Experiment(ExperimentSettings):
    """Trains an agent on Ray: on this machine, or on the cluster that it is submitted to.

        with Experiment(run_name="lake", make_train_env="amago_ray/MetaFrozenLake-v0", max_seq_len=128) as experiment:
            experiment.learn()
            print(experiment.evaluate_test("amago_ray/MetaFrozenLake-v0", timesteps=1000))

    The settings are those of `settings.ExperimentSettings`; each can be given here or in gin
    (`Experiment.batch_size = 32`). A misspelt one is refused.
    """

    def __new__(cls, *args: Any, **settings: Any) -> Experiment:
        config.reject_unknown_arguments(cls.__init__, settings, "Experiment")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.make_val_env = self.make_val_env if self.make_val_env is not None else self.make_train_env
        check_settings(self)
        self.directory = RunDirectory(self.ckpt_base_dir, self.run_name)
        self.progress = Progress(epoch=-1)  # the last finished epoch
        self._topology: Topology | None = None
        self._metrics: MetricsLog | None = None
        self._display = Display(self.run_name, self.epochs, self.verbose)
        self._weights: RemoteCall[Weights] | None = None
        self._replay: list[ReplayReport] = []
        self._commits = 0
        self._shard_lives: dict[int, int] = {}
        self._damage_told: dict[int, int] = {}
        self._mixture = mixture_of(self.dataset)
        self._presence: Presence | None = None
        self._weight_version = 0
        self._incarnation = 0

    # ---------------------------------------------------------------- what users call

    def start(self, resume: bool = False, overwrite: bool = False) -> Experiment:
        """Check everything, then start the processes. `learn` and `evaluate_test` call it when it was not called.

        resume: go on from the newest complete training state of this run. overwrite: start anew over an earlier run.
        Raises ValueError or TypeError, before any process starts, for settings and environments that cannot work.
        """
        if self._topology is not None:
            return self
        check_sendable({name: getattr(self, name) for name in SENT_TO_WORKERS})
        self.agent_spec = probe(self)
        state = check_folder(self, self.directory, self.agent_spec, resume, overwrite)
        if state:
            # Unlike a count that is kept with the state, time tells two attempts to resume from one state apart.
            self._incarnation = time.time_ns()
        cluster, self._ray_started_here = connect(
            self.ray_address, lambda machine: plan(self, self.agent_spec, machine).num_cpus
        )
        try:
            topology = plan(self, self.agent_spec, cluster, self._incarnation)
            check_fits(topology.roles, cluster)
            self._open_directory(resume)
            self._start_processes(topology, cluster)
            self.commit()
            self._schedule = make_schedule(self.schedule, self, topology.learner.device, rate_limiter(self))
            if state:
                self._restore(state)
            self._metrics = MetricsLog(
                self.directory.root, resume=resume, wandb=wandb_options(self, state.get("wandb_run_id"))
            )
            if state:
                self._metrics.rewind(self.progress.epoch)
            self.publish()
        except BaseException:
            self.close()
            raise
        return self

    def learn(self, until: int | None = None) -> None:
        """Run the remaining epochs: collect, learn, publish, and keep what must be kept.

        until: stop before this epoch, to go on with the next call; None runs to the last one.
        """
        self.start()
        end = self.epochs if until is None else min(until, self.epochs)
        started = time.monotonic() - self.progress.wall_s
        with Display(self.run_name, self.epochs, self.verbose) as self._display:
            while self.progress.epoch + 1 < end:
                epoch = self.progress.epoch + 1
                self._display.start_epoch(epoch, self.frames_wanted(epoch), self.batches_wanted(epoch))
                result = self._despite_deaths(partial(self._schedule.run_epoch, epoch, last=epoch + 1 == self.epochs))
                self.progress.epoch, self.progress.wall_s = epoch, time.monotonic() - started
                summary = self._log_epoch(result)
                if self._is_due(epoch, self.val_interval):
                    validation = summarize_episodes(self.validate())
                    self._log("val", validation)
                    summary["val_return"] = validation.get(AVERAGE_RETURN, float("nan"))
                self._display.finish_epoch(summary)
                self._despite_deaths(self._save_latest)
                if self._is_due(epoch, self.ckpt_interval):
                    self._despite_deaths(partial(self._save, epoch))
        self._display = Display(self.run_name, self.epochs, self.verbose)

    def validate(self) -> list[EpisodeResult]:
        """Finished rollouts of the policy as it is, in the validation environments, without exploration."""
        self.start()
        self._display.update(status="validating")
        steps = self.val_timesteps_per_epoch
        weights, episodes = self._current_weights, None if steps else 1
        return self._evaluate(
            self._running.num_workers,
            lambda worker, share: self._running.validate(worker, share, weights, steps, episodes),
        )

    def evaluate_test(
        self,
        make_env: MakeEnv,
        timesteps: int | None = None,
        episodes: int | None = None,
        num_envs: int | None = None,
        sample_actions: bool | None = None,
    ) -> dict[str, float]:
        """Average results of the policy in environments of its own, by the names that validation is logged under.

        timesteps: steps of each environment. episodes: rollouts in all; where both are given, whichever comes first.
        num_envs: environments, by default as many as train, but no more than `episodes`.
        sample_actions: draw from the policy, else take its mode; by default as in validation.
        Raises ValueError when neither timesteps nor episodes is given, or nothing finished within `timesteps`.
        """
        if timesteps is None and episodes is None:
            raise ValueError("evaluate_test needs timesteps (per environment), episodes (in all), or both")
        self.start()
        num_envs = num_envs or min(self.parallel_actors, episodes or self.parallel_actors)
        num_workers = min(self._running.num_workers, num_envs)
        sample = self.sample_actions_val if sample_actions is None else sample_actions
        rollouts = deal_environments(self, make_env, num_envs, num_workers, self.seed + 2, sample, explore=False)
        weights, per_env = self._current_weights, None if episodes is None else -(-episodes // num_envs)
        finished = self._evaluate(
            len(rollouts),
            lambda worker, share: self._running.test(worker, rollouts[share], weights, timesteps, per_env),
        )
        if not finished:
            raise ValueError(f"evaluate_test: no rollout finished within timesteps={timesteps}; give it more")
        return summarize_episodes(finished)

    def save(self) -> Path:
        """The training state of the newest finished epoch, written unless it is there already; `--resume` starts there.

        Raises ValueError before the first epoch.
        """
        epoch = self.progress.epoch
        if epoch < 0:
            raise ValueError("save: no epoch is finished yet")
        if epoch not in self.directory.saved_epochs():
            self._despite_deaths(partial(self._save, epoch))
        return self.directory.training_state(epoch)

    @property
    def newest_metrics(self) -> dict[str, float]:
        """The last value of everything that was logged since `start`, by its name in `metrics.jsonl`."""
        return dict(self._metrics.newest) if self._metrics is not None else {}

    def load_policy(self, path: str | os.PathLike[str]) -> None:
        """Continue, or evaluate, from the weights in a `policy_epoch_n.pt` or `latest/policy.pt` file.

        Raises ValueError when the file is of another architecture.
        """
        self.start()
        try:
            self._running.on_learners("load_agent", str(Path(path).resolve()))
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit this configuration: {str(error).splitlines()[0]}") from error
        self.publish()

    def create_directory(self) -> None:
        """Make the run's folder, with the configuration that runs the same again. `start` does this too."""
        self.directory.create()
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        text = config.record("Experiment", settings | {"ckpt_base_dir": str(self.ckpt_base_dir)})
        write_atomically(self.directory.config, lambda path: path.write_text(text))

    def close(self) -> None:
        """End the processes of this run, and Ray where the run started it."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._topology is not None:
            self._topology.close()
            self._topology = None
        if getattr(self, "_ray_started_here", False):
            disconnect()
            self._ray_started_here = False

    def __enter__(self) -> Experiment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---------------------------------------------------------------- what the schedule calls

    def frames_wanted(self, epoch: int) -> int:
        """Timesteps to collect in an epoch, over all environments."""
        if epoch < self.start_collecting_at_epoch or not self._mixture.learns_from_replay:
            return 0
        return self.parallel_actors * self.train_timesteps_per_epoch

    def batches_wanted(self, epoch: int) -> int:
        """Batches of an epoch, for each learner."""
        return self.train_batches_per_epoch if epoch >= self.start_learning_at_epoch else 0

    def start_collecting(self, epoch: int) -> Collection | None:
        """The epoch's collection, started; None where it is not the time for one."""
        if not self.frames_wanted(epoch):
            return None
        steps_before = (epoch - self.start_collecting_at_epoch) * self.train_timesteps_per_epoch
        return self._collection(self.train_timesteps_per_epoch, steps_before)

    def open_collection(self) -> Collection:
        """A collection without a quota yet."""
        return self._collection(0, exploration_steps=0)

    def _collection(self, timesteps_per_env: int, exploration_steps: int) -> Collection:
        return Collection(
            self._running,
            self._at_work,
            timesteps_per_env,
            self._current_weights,
            exploration_steps=exploration_steps,
            timeout_s=self.call_timeout_s,
            message=self._say,
        )

    def start_learning(self, epoch: int) -> Learning | None:
        """The epoch's learning, started; None where it is not the time for it or nothing is stored yet."""
        batches = self.batches_wanted(epoch)
        if not batches:
            return None
        held = [sum(report.trajectories for report in self._replay), *(len(d) for d in self._mixture.datasets)]
        if not any(n and weight > 0 for n, weight in zip(held, self._mixture.weights_at(epoch), strict=True)):
            self._say(
                f"epoch {epoch + 1}: replay holds no finished rollout, so there is nothing to learn from; "
                "lower traj_save_len or raise train_timesteps_per_epoch to learn from the first epoch on"
                if not self._mixture.datasets
                else f"epoch {epoch + 1}: no source of data that has a weight holds a trajectory yet"
            )
            return None
        return self.learn_batches(batches, epoch)

    def learn_batches(self, num: int, epoch: int) -> Learning:
        """Learning from `num` batches, started."""
        mixture = self._mixture.weights_at(epoch) if self._mixture.datasets else None
        return Learning(self._running, num, self.call_timeout_s, self._say, mixture)

    def act_by_newest(self, collection: Collection) -> None:
        """Let a collection act by the weights that were published last, and explore as far as it has come."""
        steps = (self.progress.total_frames + collection.done) // self.parallel_actors
        collection.act_by(self._current_weights, steps)

    def run(self, collection: CollectJob | None, learning: LearnJob | None) -> None:
        """Drive what was started to its end, showing progress."""
        jobs: list[CollectJob | LearnJob] = [job for job in (collection, learning) if job is not None]
        started = time.monotonic()

        def tick() -> None:
            elapsed = max(time.monotonic() - started, 1e-3)
            if learning is not None:
                learning.poll_progress()
                self._display.update(learned=learning.done, updates_per_s=learning.done / elapsed)
            if collection is not None:
                self._display.update(collected=collection.done, frames_per_s=collection.done / elapsed)
            busy = [
                name for name, job in (("collecting", collection), ("learning", learning)) if job and not job.finished
            ]
            self._display.update(status=" and ".join(busy) or "publishing weights")

        run_jobs(jobs, tick)

    def commit(self) -> list[ReplayReport]:
        """Make what the workers stored visible to the learners."""
        self._commits += 1
        self._replay = self._running.commit(self.call_timeout_s, self._commits)
        for report in self._replay:
            if self._shard_lives.setdefault(report.shard, report.life) != report.life:
                kept = f"it has its {report.restored:,} trajectories" if report.restored else "what it held is lost"
                self._say(f"replay shard {report.shard} died and Ray restarted it: {kept}")
                self._shard_lives[report.shard] = report.life
            for damage in report.damage[self._damage_told.get(report.shard, 0) :]:
                self._say(f"replay shard {report.shard}: {damage}")
            self._damage_told[report.shard] = len(report.damage)
        return self._replay

    def publish(self) -> None:
        """Broadcast the learners' weights; workers fetch them with their next call. Raises LearnerDied."""
        self._weight_version += 1
        self._weights = self._running.publish(self._weight_version)

    # ---------------------------------------------------------------- the rest

    @property
    def _running(self) -> Topology:
        assert self._topology is not None, "start() comes first"
        return self._topology

    @property
    def _at_work(self) -> Presence:
        assert self._presence is not None, "start() comes first"
        return self._presence

    @property
    def _current_weights(self) -> RemoteCall[Weights]:
        assert self._weights is not None, "start() comes first"
        return self._weights

    def epoch_of_next_validation(self) -> int:
        """The first epoch after the newest finished one that ends with a validation; `epochs` when none is left."""
        following = range(self.progress.epoch + 1, self.epochs)
        return next((epoch for epoch in following if self._is_due(epoch, self.val_interval)), self.epochs)

    def _is_due(self, epoch: int, interval: int) -> bool:
        return epoch % interval == 0 or epoch + 1 == self.epochs

    def _evaluate(self, num_shares: int, start: Callable[[int, int], RemoteCall[RolloutReport]]) -> list[EpisodeResult]:
        """Finished rollouts of an evaluation; `start` starts a share on a worker, given (worker, share)."""
        evaluation = Evaluation(
            self._at_work,
            num_shares,
            start,
            self._running.restart_worker,
            self.call_timeout_s,
            self._say,
        )
        run_jobs([evaluation], tick=self._display.update)
        return evaluation.episodes

    def _log(self, section: str, values: dict[str, float]) -> None:
        assert self._metrics is not None
        self._metrics.log(section, values, self.progress)

    def _log_epoch(self, result: EpochResult) -> dict[str, float]:
        """Count and log what the epoch did; returns what the display shows of it."""
        metrics = result.metrics()
        for section, values in metrics.items():
            if section == "collect" and result.collected is not None:
                self.progress.add_frames(result.collected.frames_by_env)
            if section == "train" and result.learned is not None:
                self.progress.gradient_steps = result.learned.total_updates
            self._log(section, values)
        return {
            "return": metrics.get("collect", {}).get(AVERAGE_RETURN, float("nan")),
            "loss": metrics.get("train", {}).get("Total Loss", float("nan")),
            "frames": self.progress.total_frames,
            "updates": self.progress.gradient_steps,
        }

    def _save_latest(self) -> None:
        write_atomically(self.directory.latest_policy, self._write_agent)

    def _write_agent(self, path: Path) -> None:
        self._running.on_learners("save_agent", str(path), first_only=True)

    def _save(self, epoch: int) -> None:
        """Keep the policy's weights, and one consistent cut of everything that a resumed run needs."""
        self._display.update(status="saving")
        write_atomically(self.directory.policy_epoch(epoch), self._write_agent)
        self.directory.save_training_state(
            epoch,
            lambda folder: self._running.on_learners("save_state", str(folder)),
            {
                "progress": self.progress.to_dict(),
                "weight_version": self._weight_version,
                "commits": self._commits,
                "replay": {str(r.shard): r.trajectories for r in self._replay},
                "wandb_run_id": self._metrics.wandb_run_id if self._metrics else None,
                "weight_shapes": weight_shapes(self.agent_spec.build()),
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.progress = Progress.from_dict(state["progress"])
        self._weight_version = state["weight_version"]
        self._commits = max(state["commits"], self._commits)
        stored, found = sum(state["replay"].values()), sum(report.restored for report in self._replay)
        if found < stored:
            why = "replay_durable=False keeps nothing" if not self.replay_durable else f"{replay_folder(self)} holds"
            self._say(f"replay begins with {found:,} trajectories, of {stored:,} when the run was saved ({why})")
        self._running.on_learners("load_state", str(self.directory.training_state(self.progress.epoch)))

    def _despite_deaths(self, work: Callable[[], T]) -> T:
        """Do `work`, and again, with a new learner group, when a learner dies over it."""
        death: LearnerDied | None = None
        for _ in range(MAX_DEATHS_IN_A_ROW):
            try:
                if death is not None:
                    self._revive_learners(death)
                return work()
            except LearnerDied as error:
                death = error
        assert death is not None
        raise death

    def _revive_learners(self, death: LearnerDied) -> None:
        """Rebuild the learner group from the newest training state, or from the initial weights if there is none."""
        saved = self.directory.saved_epochs()
        since = f"the training state of epoch {saved[-1] + 1}" if saved else "the initial weights"
        self._say(f"{death}; going on from {since}")
        self._running.rebuild_learners()
        if saved:
            self._running.on_learners("load_state", str(self.directory.training_state(saved[-1])))
        self.publish()

    def _start_processes(self, topology: TopologyConfig, cluster: Cluster) -> None:
        """Start them all and wait for those that there is room for; workers without room join later."""
        now, later = place(topology.roles, cluster.nodes), place(topology.roles, cluster.nodes, free_only=False)
        self._say(overview(self, topology, now, cluster) + "\n")
        self._topology = Topology(topology, cluster.in_group)
        workers = range(len(topology.rollout))
        self._presence = Presence(self._topology.ping, len(workers), self.call_timeout_s, self._say)
        self._presence.wait_for(
            set(workers) - set(now.waiting(WORKER)),
            set(workers) - set(later.waiting(WORKER)),
            START_TIMEOUT_S,
            ROOM_TIMEOUT_S,
        )

    def _say(self, text: str) -> None:
        self._display.message(text)

    def _open_directory(self, resume: bool) -> None:
        """Make the run's folder, in place of an earlier run's unless this one goes on with it."""
        if not resume and is_begun(self, self.directory):
            self.directory.remove()
            shutil.rmtree(replay_folder(self), ignore_errors=True)
        self.create_directory()
