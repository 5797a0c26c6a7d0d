r"""`Ring`: the running processes of a run as one object. Schedules and the experiment drive it; it says what was done.

worker -> shard -> learner -> weights -> worker ...        trajectories and weights, which never come here
          \_______ reports _______/                        a few numbers each, which do
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from amago_ray.driver.cluster import Cluster
from amago_ray.driver.collection import Collection
from amago_ray.driver.cut import CutTaker
from amago_ray.driver.env_steps import ENV_STEPS, EnvSteps
from amago_ray.driver.evaluation import Evaluation
from amago_ray.driver.failures import Decision, FailurePolicy
from amago_ray.driver.hearing import Hearing
from amago_ray.driver.jobs import CollectJob, LearnJob, run_jobs
from amago_ray.driver.learner_group import LearnerGroup
from amago_ray.driver.learning import Learning
from amago_ray.driver.leaving import Leaving
from amago_ray.driver.liveness import Liveness
from amago_ray.driver.placement import SHARD, WORKER, place
from amago_ray.driver.plan import Plan, updates_planned_by
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.shard_news import ShardNews
from amago_ray.driver.topology import START_TIMEOUT_S, Topology
from amago_ray.messages import EvaluationReport, ReplayReport, Weights
from amago_ray.pending import CallTimeout, ProcessDied
from amago_ray.replay.datasets.dataset import mixture_of
from amago_ray.rollout.assignment import Assignment, assign, rollouts_of_a_round
from amago_ray.rollout.worker import WHOLE_ROLLOUTS, RolloutConfig
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings, replay_folder
from amago_ray.watch.display import Display
from amago_ray.watch.metrics import Progress

T = TypeVar("T")

SHARD_RETRY_INTERVAL_S = 0.2
SHARD_ANSWER_TIMEOUT_S = 10.0  # a shard that is well answers in milliseconds, or is busy with one request
ROOM_TIMEOUT_S = 20.0  # for the processes of an earlier run to give back what they had


class Ring:
    """Collects, learns, commits, publishes, evaluates, saves; what dies meanwhile is replaced.

    progress: how far the run is: read only. display: told what happens. check: called now and then while something is
    driven; raises what is to end it.
    """

    def __init__(
        self,
        settings: ExperimentSettings,
        topology: Topology,
        directory: RunDirectory,
        progress: Progress,
        display: Display,
    ):
        self.check: Callable[[], None] = lambda: None
        self._settings, self._topology, self._directory = settings, topology, directory
        self.progress, self.display = progress, display
        self._failures = FailurePolicy()
        self._hearing = Hearing(self.say)
        self._liveness = Liveness(
            topology.ping, topology.num_workers, self._failures, settings.call_timeout_s, self.say, START_TIMEOUT_S
        )
        self.learners = LearnerGroup(
            topology, self._failures, directory, self.say, forgive=self._liveness.forgive, catch_up=self._catch_up
        )
        self._mixture = mixture_of(settings.dataset)
        self._weights: RemoteCall[Weights] | None = None
        self._weight_version = 0
        self._env_steps = EnvSteps(settings)
        self._commits = 0
        self._committed_after: int | None = None  # which epoch
        self.leaving = Leaving(topology, self._liveness, self.say)
        self._cuts = CutTaker(topology, self._liveness, settings.call_timeout_s, self.say)
        self._validations = 0
        self._news = ShardNews(self.say)
        self.replay: list[ReplayReport] = []  # of the newest commit

    def start(self, cluster: Cluster, state: dict[str, Any]) -> None:
        """Wait for the processes that there is room for and publish the first weights; other workers join later.

        state: what the property of that name was when the run was saved after epoch `progress.epoch`; empty where the
        run begins.
        """
        now = place(self.plan.roles, cluster.nodes)
        later = place(self.plan.roles, cluster.nodes, free_only=False)
        workers = set(range(self.num_workers))
        self.learners.start(state.get("batches", 0))
        timeout_s = max(START_TIMEOUT_S, self._settings.call_timeout_s)
        self._liveness.wait_for(
            workers - set(now.waiting(WORKER)), workers - set(later.waiting(WORKER)), timeout_s, ROOM_TIMEOUT_S
        )
        if state:
            self._go_on_from(state)
        else:
            self.commit()
            self.publish()
        counts = (self.num_workers, len(self.replay), self._settings.num_learners)
        roles = ("rollout worker", "replay shard", "learner")
        processes = ", ".join(f"{num} {role}{'s' * (num != 1)}" for num, role in zip(counts, roles))
        begins = f"goes on after epoch {self.progress.epoch + 1}" if state else "begins"
        self._directory.note(f"the run {begins} with {processes}", self.progress.epoch)

    def _go_on_from(self, state: dict[str, Any]) -> None:
        """Put everything but the learners where it was when the run was saved.

        What was collected after that is dropped, so that the run's counters are true of what replay holds.
        """
        self._commits, self._validations = state["commits"], state["validations"]
        if not self._settings.replay_durable:
            state.pop("ahead", None)  # it is gone, so that its epoch collects
        self._env_steps = EnvSteps.saved(self._settings, state)
        if "marks" in state:
            self.replay = self._cuts.rewind(state["marks"])
            self._news.expect(self.replay)
        else:  # of another run
            self.commit()
        stored, found = sum(state["replay"].values()), sum(report.trajectories for report in self.replay)
        if found < stored:
            why = "replay_durable=False keeps nothing"
            if self._settings.replay_durable:
                why = f"{replay_folder(self._settings)} holds no more"
            if staged := sum(report.staged for report in self.replay):
                why = f"{why} but {staged:,} that the next epoch shows"
            self.say(f"replay begins with {found:,} trajectories, of {stored:,} when the run was saved ({why})")
        self._cuts.load_workers(state.get("workers", {}), self.progress.epoch)
        self._weight_version = state["weight_version"] - 1  # nobody of this process has seen these weights
        self.publish()

    @property
    def plan(self) -> Plan:
        return self._topology.plan

    @property
    def num_workers(self) -> int:
        return self._topology.num_workers

    def say(self, text: str) -> None:
        """Tell the user, and who looks at the run's folder."""
        self.display.tell(text)
        self._directory.note(text, self.progress.epoch)

    def mention(self, text: str) -> None:
        """As `say`, of what goes as it should: to a user who wants progress to be shown."""
        self.display.message(text)
        self._directory.note(text, self.progress.epoch)

    # ---------------------------------------------------------------- an epoch

    def frames_wanted(self, epoch: int) -> int:
        """Timesteps to collect in an epoch, over all environments."""
        if epoch < self._settings.start_collecting_at_epoch or not self._mixture.learns_from_replay:
            return 0
        return self._settings.parallel_actors * self._settings.train_timesteps_per_epoch

    def batches_wanted(self, epoch: int) -> int:
        """Batches of an epoch, for each learner."""
        return self._settings.train_batches_per_epoch if epoch >= self._settings.start_learning_at_epoch else 0

    def start_collecting(self, epoch: int) -> Collection | None:
        """The epoch's collection, started; None where it is not the time for one."""
        if not self.frames_wanted(epoch):
            return None
        steps = self._settings.train_timesteps_per_epoch
        return self._collection(steps, self._env_steps.before(epoch), self._resets_by(epoch))

    def open_collection(self) -> Collection:
        """A collection without a quota yet."""
        return self._collection(0, exploration_steps=0, resets=self._resets_by(self.progress.epoch + 1))

    def _resets_by(self, epoch: int) -> int:
        """How often the training environments have all been reset when an epoch is collected."""
        every = self._settings.force_reset_train_envs_every
        return epoch // every if every else 0

    def _collection(self, timesteps_per_env: int, exploration_steps: int, resets: int) -> Collection:
        return Collection(
            self._topology,
            self._liveness,
            timesteps_per_env,
            self.weights,
            exploration_steps=exploration_steps,
            timeout_s=self._settings.call_timeout_s,
            message=self.say,
            hear=self._hearing.hear,
            is_excused=self._restart_silent_shards,
            resets=resets,
        )

    def act_by_newest(self, collection: Collection) -> None:
        """Let a collection act by the weights that were published last, and explore as far as it has come."""
        steps = self._env_steps.at(self.progress.total_frames + collection.done)
        collection.act_by(self.weights, steps, self._resets_by(self.progress.epoch + 1))

    def start_learning(self, epoch: int) -> Learning | None:
        """The epoch's learning, started; None where it is not the time for it or nothing is stored yet."""
        batches = self.batches_wanted(epoch)
        if not batches:
            return None
        held = [sum(report.trajectories for report in self.replay), *(len(d) for d in self._mixture.datasets)]
        if not any(n and weight > 0 for n, weight in zip(held, self._mixture.weights_at(epoch), strict=True)):
            self.say(
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
        timeout_s = self._settings.call_timeout_s
        return Learning(
            self._topology,
            num,
            timeout_s,
            self.say,
            self.learners.rebuild,
            self.learners.learned,
            self._restart_silent_shards,
            self._hearing.hear,
            mixture,
        )

    def _restart_silent_shards(self) -> bool:
        """Ask all shards whether they are well and restart those that do not answer. Returns whether there were any."""
        found = False
        for shard, call in enumerate(self._topology.ping_shards()):
            try:
                call.result(SHARD_ANSWER_TIMEOUT_S)
            except ProcessDied:
                found = True  # Ray restarts it
            except CallTimeout as silent:
                if self._failures.decide(SHARD, shard, silent) is Decision.RAISE:
                    raise
                self.say(f"{silent}: restarting it")
                self._topology.restart_shard(shard)
                found = True
        return found

    def share_cores(self, busy_cores: float) -> None:
        """Let learners have the cores that collecting workers, who keep so many busy, leave them."""
        before, now = self._topology.learner_threads, self.plan.cores.beside(busy_cores, self.plan.num_learners)
        near = before is not None and now is not None and abs(now - before) <= before // 4
        if not (near and self.plan.learner.compile):  # what is compiled is for one number of threads
            self._topology.learner_threads = now

    def drive(self, collection: CollectJob | None, learning: LearnJob | None) -> None:
        """Bring what was started to its end, showing progress."""
        jobs: list[CollectJob | LearnJob] = [job for job in (collection, learning) if job is not None]
        started = time.monotonic()

        def tick() -> None:
            elapsed = max(time.monotonic() - started, 1e-3)
            if learning is not None:
                learning.poll_progress()
                self.display.update(learned=learning.done, updates_per_s=learning.done / elapsed)
            if collection is not None:
                self.display.update(collected=collection.done, frames_per_s=collection.done / elapsed)
            named = (("collecting", collection), ("learning", learning))
            busy = [name for name, job in named if job is not None and not job.finished]
            self.display.update(status=" and ".join(busy) or "publishing weights")
            self.leaving.look()
            self.check()

        run_jobs(jobs, tick)

    def commit(self) -> list[ReplayReport]:
        """Make what the workers stored visible to the learners.

        Ages are told by the number of the commit, which is another one with every epoch, however many it has.
        A shard that is away just now does so the next time; where none answers, this waits for one. Raises ProcessDied
        when none has come back after `call_timeout_s`.
        """
        if self._committed_after != self.progress.epoch:
            self._commits, self._committed_after = self._commits + 1, self.progress.epoch
        started = time.monotonic()
        while not (reports := self._commit_once()):
            if time.monotonic() - started > self._settings.call_timeout_s:
                raise ProcessDied(f"no replay shard has answered for {self._settings.call_timeout_s:g} s")
            time.sleep(SHARD_RETRY_INTERVAL_S)  # Ray restarts them
        self.replay = reports
        self._news.tell(reports)
        return reports

    def _commit_once(self) -> list[ReplayReport]:
        """The reports of the shards that answered."""
        reports = []
        for shard, call in enumerate(self._topology.commit(self._commits)):
            try:
                reports.append(call.result(self._settings.call_timeout_s))
            except (ProcessDied, CallTimeout) as error:
                decision = self._failures.decide(SHARD, shard, error)
                if decision is Decision.RAISE:
                    raise
                if decision is Decision.RESTART:
                    self.say(f"{error}: restarting it")
                    self._topology.restart_shard(shard)
            else:
                self._failures.recovered(SHARD, shard)
        return reports

    def publish(self) -> None:
        """Broadcast the learners' weights; workers fetch them with their next call."""
        self._weight_version += 1
        self._weights = self.learners.insist(
            lambda: self._topology.publish(self._weight_version, self._settings.call_timeout_s)
        )

    @property
    def weights(self) -> RemoteCall[Weights]:
        """Those that were published last."""
        assert self._weights is not None, "start() comes first"
        return self._weights

    # ---------------------------------------------------------------- evaluation

    def validate(self) -> Evaluation:
        """Rollouts of the published weights in the validation environments: others with each call."""
        x, steps = self._settings, self._settings.val_timesteps_per_epoch
        episodes = None if steps else rollouts_of_a_round(x.make_val_env, x.parallel_actors)
        sizes = [rollout.num_envs for rollout in self.plan.validation]
        shares = assign(sizes, episodes, steps, self._validations, x.call_timeout_s)
        self._validations += 1
        return self._evaluate(
            len(shares),
            lambda worker, share, part: self._topology.validate(worker, share, self.weights, shares[share], part),
        )

    def test(self, shares: Sequence[tuple[RolloutConfig, Assignment]], save_trajs_to: Path | None = None) -> Evaluation:
        """Rollouts of the published weights in environments of their own: the same with each call.

        save_trajs_to: folder for the rollouts that count.
        """
        folder = None if save_trajs_to is None else str(save_trajs_to)
        if folder is not None:
            shares = [(replace(rollout, traj_save_len=WHOLE_ROLLOUTS), played) for rollout, played in shares]
        return self._evaluate(
            len(shares),
            lambda worker, share, part: self._topology.test(
                worker, shares[share][0], self.weights, shares[share][1], part, folder
            ),
        )

    def _evaluate(self, num_shares: int, start: Callable[[int, int, int], RemoteCall[EvaluationReport]]) -> Evaluation:
        """An evaluation, played; `start` starts a part of a share on a worker, given (worker, share, part)."""
        timeout_s = self._settings.call_timeout_s
        evaluation = Evaluation(self._liveness, num_shares, start, self._topology.restart_worker, timeout_s)

        def tick() -> None:
            self.display.update()
            self._hearing.hear(evaluation.warned)
            self.check()

        run_jobs([evaluation], tick)
        if evaluation.env_failed:
            self.say(evaluation.env_failed)
        if evaluation.unfinished:
            self.say(f"{evaluation.unfinished} rollouts were left out: they had not ended after twice the timesteps")
        return evaluation

    # ---------------------------------------------------------------- files

    def load_policy(self, path: Path) -> None:
        """Go on from an agent's weights, and publish them. Raises ValueError where they fit another architecture."""
        try:
            self.learners.load_policy(path)
        except ProcessDied:
            raise
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit this configuration: {str(error).splitlines()[0]}") from error
        self.publish()

    def load_state(self, epoch: int) -> None:
        """Put the learners where they were after `epoch`, and publish their weights."""
        self.learners.load_state(epoch)
        self._env_steps = EnvSteps.saved(self._settings, self._directory.load_run_state(epoch))
        self.publish()

    def cut(self, next_collected: int | None) -> dict[str, Any]:
        """Let the learners keep a copy of what they are now; returns what everybody else is, as plain values.

        next_collected: the epoch that is collected next; None while workers are at work, which then have no state.
        """
        self.learners.snapshot(self.progress.epoch)
        at, frames = next_collected, self.progress.total_frames
        return {
            ENV_STEPS: self._env_steps.at(frames) if at is None else self._env_steps.before(at),
            "weight_version": self._weight_version,
            "batches": self.learners.batches,
            "updates_planned": {"by": updates_planned_by(self._settings), "last": self.plan.learner.last_update},
            "commits": self._commits,
            "validations": self._validations,
            "replay": {str(report.shard): report.trajectories for report in self.replay},
            **self._cuts.take(None if next_collected is None else self._resets_by(next_collected)),
        }

    def hold(self, cut: dict[str, Any], unless_held: bool = False) -> None:
        """See `CutTaker.hold`."""
        self._cuts.hold(cut, unless_held)

    def close(self) -> None:
        """End every process of the run."""
        self._topology.close()

    def _catch_up(self, batches: int) -> None:
        """Learn so many batches now."""
        self.drive(None, self.learn_batches(batches, self.progress.epoch + 1))
