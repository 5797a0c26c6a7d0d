"""`Experiment`: the driver. It starts the processes, paces the epochs and keeps what must be kept.

Only reports reach this process. Trajectories go worker -> replay -> learner, weights learner -> workers.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gin

from amago_ray import config
from amago_ray.config.value_checks import check_counts
from amago_ray.driver.cluster import connect, disconnect
from amago_ray.driver.evaluation import check_test, shares_of_a_test
from amago_ray.driver.overview import overview
from amago_ray.driver.placement import check_fits, place
from amago_ray.driver.plan import TEST_SEEDS, check_shares, make_plan
from amago_ray.driver.preemption import starting
from amago_ray.driver.probe import check_data, check_settings, probe
from amago_ray.driver.resume import Resume, open_folder, state_to_resume, what_to_resume
from amago_ray.driver.ring import Ring
from amago_ray.driver.saving import Saving, failure_recorded
from amago_ray.driver.schedule import make_schedule
from amago_ray.driver.streams import streams_kept
from amago_ray.driver.topology import Topology, check_sendable
from amago_ray.driver.watching import Watching, make_callbacks, watch
from amago_ray.envs.makers import MakeEnv
from amago_ray.messages import EpisodeResult
from amago_ray.replay.datasets.disk_traj import DiskTrajDataset
from amago_ray.rollout.evaluate import record_gif
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings, replay_folder
from amago_ray.watch.display import Display
from amago_ray.watch.metrics import Progress


@gin.configurable
@config.accept_amago_arguments
@dataclass
class Experiment(ExperimentSettings):
    """Trains an agent on Ray: on this machine, or on the cluster that it is submitted to.

        with Experiment(run_name="lake", make_train_env="amago_ray/MetaFrozenLake-v0", max_seq_len=128) as experiment:
            experiment.learn()
            print(experiment.evaluate_test("amago_ray/MetaFrozenLake-v0", timesteps=1000))

    The settings are those of `settings.ExperimentSettings`; each can be given here or in gin
    (`Experiment.batch_size = 32`). A misspelt one is refused, and so is one that is set when it would change nothing.
    """

    def __new__(cls, *args: Any, **settings: Any) -> Experiment:
        config.reject_unknown_arguments(cls.__init__, settings, "Experiment")
        config.refuse_unknown_macros("Experiment")  # before gin hands over what they stand for
        return super().__new__(cls)

    def __post_init__(self) -> None:
        config.refuse_left_out(self)
        self.make_val_env = self.make_val_env if self.make_val_env is not None else self.make_train_env
        if isinstance(self.dataset, DiskTrajDataset):
            run = RunDirectory(self.ckpt_base_dir, self.run_name).root
            vars(self).update(self.dataset.settings(run))
        check_settings(self)
        self.directory = RunDirectory(self.ckpt_base_dir, self.run_name)
        self.progress = Progress(epoch=-1)  # the last finished epoch
        self._display = Display(self.run_name, self.epochs, self.verbose)
        self._ring: Ring | None = None
        self._watching: Watching | None = None
        self._saving: Saving | None = None
        self._held = ExitStack()  # the run's lock, and Ray where it was started here

    # ---------------------------------------------------------------- start and end

    def start(self, resume: Resume = False, overwrite: bool = False) -> Experiment:
        """Check everything, then start the processes. `learn` and `evaluate_test` call it when it was not called.

        resume: go on from the newest complete training state of this run, as if it had never ended; "auto" also begins
        a run that is not there yet. overwrite: start anew over an earlier run.
        Raises ValueError or TypeError, before any process starts, for settings and environments that cannot work, and
        Preempted after a SIGTERM or SIGHUP, which ends the process with exit status 75.
        """
        if self._ring is not None:
            if resume or overwrite:
                raise ValueError("start: this experiment is running; resume and overwrite are for its first start")
            return self
        began = time.monotonic()
        record = self.directory.record_stop_at_start
        with starting(self.close, self._display.tell, record), streams_kept(), ExitStack() as begun:
            self._display.message(f"{self.run_name}: trying the environments and the networks")
            check_sendable(self)
            spec = self.agent_spec = probe(self)
            self._layout, callbacks = check_data(self), make_callbacks(self)
            self._held.enter_context(self.directory.locked())
            state = state_to_resume(self, self.directory, spec, self._layout, resume, overwrite)
            self._display.message("connecting to Ray")
            cluster, started_here = connect(
                self.ray_address, lambda machine: make_plan(self, spec, machine).num_cpus, self.run_name
            )
            if started_here:
                self._held.callback(disconnect)
            # Workers that no state is known of: time tells two attempts to resume from one state apart.
            plan = make_plan(self, spec, cluster, time.time_ns() if state else 0, state)
            check_fits(plan.roles, cluster)
            check_shares(self, plan)
            open_folder(self, self.directory, self._layout, state, self._display.message)
            self._display.message(overview(self, plan, place(plan.roles, cluster.nodes), cluster) + "\n")
            self.progress = Progress.from_dict(state["progress"]) if state else self.progress
            begun.enter_context(failure_recorded(self.directory, self.progress))
            self._ring = Ring(self, Topology(plan, cluster.in_group), self.directory, self.progress, self._display)
            self._ring.start(cluster, state)
            self._schedule = make_schedule(self, self._ring)
            self._schedule.load_state(state)
            self._watching = watch(self, self.directory, spec, self._ring, callbacks, self.evaluate_test, state)
            run = partial(what_to_resume, self.progress, spec, self._layout, self._watching)
            told, settle = partial(self._watching.call, "on_checkpoint"), self._watching.settle
            self._saving = Saving(self, self._ring, self._schedule, self.directory, run, told, settle)
            self._stage = "running"
        if state:
            self.on_checkpoint_loaded()
        self._display.message(f"all processes are up after {time.monotonic() - began:.0f} s")
        return self

    def close(self) -> None:
        """End the processes of this run, and Ray where the run started it, whatever any of them raises."""
        with ExitStack() as parts:
            parts.callback(self._held.close)  # the last of them
            if self._ring is not None:
                parts.callback(self._ring.close)
                self._stage = "closed" if self._stage == "running" else "new"  # one whose start has failed may start
            if self._watching is not None:
                parts.callback(self._watching.close)
            self._watching = self._ring = self._saving = None

    def __enter__(self) -> Experiment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---------------------------------------------------------------- training

    def learn(self, until: int | None = None) -> None:
        """Run the remaining epochs: collect, learn, publish, and keep what must be kept.

        until: stop before this epoch, to go on with the next call; None runs to the last one. Callbacks may end it
        earlier: `stop_reason` says so, and policy and training state are saved; another call would go on.
        Raises Preempted, which ends the process with exit status 75, once it is told to end and has saved.
        """
        check_counts("learn", 0, until=until)
        ring, watching, saving = self._started(), self._watching, self._saving
        assert watching is not None and saving is not None
        end = self.epochs if until is None else min(until, self.epochs)
        started = time.monotonic() - self.progress.wall_s
        with self._display, saving.before_leaving():
            watching.begin()
            while self.progress.epoch + 1 < end and watching.stop_reason is None:
                epoch = self.progress.epoch + 1
                self._display.start_epoch(epoch, ring.frames_wanted(epoch), ring.batches_wanted(epoch), self.epochs)
                result = self._schedule.run_epoch(epoch, last=epoch + 1 == self.epochs)
                self.progress.epoch, self.progress.wall_s = epoch, time.monotonic() - started
                summary = watching.epoch(result)
                if self.is_due(epoch, self.val_interval):
                    self._display.update(status="validating")
                    summary |= watching.validation(ring.validate().summary())
                self._display.finish_epoch(summary)
                if self.always_save_latest or epoch + 1 == self.epochs:
                    saving.policy(must=epoch + 1 == self.epochs)
                saving.after_epoch(due=self.is_due(epoch, self.ckpt_interval))
                watching.call("after_epoch")
            if watching.stop_reason is not None and self.progress.epoch >= 0:
                self._display.message(f"stopped after epoch {self.progress.epoch + 1}: {watching.stop_reason}")
                saving.policy(must=True)
                saving.now()
            saving.finish()
            if watching.stop_reason is not None or self.progress.epoch + 1 >= self.epochs:
                watching.end()

    @property
    def newest_metrics(self) -> dict[str, float]:
        """The last value of everything that was logged since `start`, by its name in `metrics.jsonl`."""
        return self._watching.newest if self._watching is not None else {}

    @property
    def stop_reason(self) -> str | None:
        """Why a callback has ended the run; None where none has."""
        return self._watching.stop_reason if self._watching is not None else None

    def is_due(self, epoch: int, interval: int) -> bool:
        """Whether what is done every `interval` epochs, and at the end, is done after this one."""
        return epoch % interval == 0 or epoch + 1 == self.epochs

    # ---------------------------------------------------------------- evaluation

    def validate(self) -> list[EpisodeResult]:
        """Finished rollouts of the policy as it is, in the validation environments, without exploration.

        As many of every environment, and others with each call (see `rollout.assignment`).
        Raises ValueError, naming the remedy, for a rollout that does not end, unless val_timesteps_per_epoch is set.
        """
        return self._started().validate().episodes

    def evaluate_test(
        self,
        make_env: MakeEnv,
        timesteps: int | None = None,
        episodes: int | None = None,
        num_envs: int | None = None,
        sample_actions: bool | None = None,
        render: bool | str | os.PathLike[str] = False,
        save_trajs_to: str | os.PathLike[str] | None = None,
    ) -> dict[str, float]:
        """Average results of the policy in environments of its own, by the names that validation is logged under.

        timesteps: steps of each environment, within which rollouts are begun; each is played to its end, for at most as
        many steps again. episodes: rollouts in all, equally many of every environment; where both are given, whichever
        comes first. The same call plays the same rollouts again.
        num_envs: environments, by default as many as train, but no more than `episodes`.
        sample_actions: draw from the policy, else take its mode; by default as in validation.
        render: also draw one rollout as an animated GIF, into this file or, for True, test.gif in the run's folder.
        save_trajs_to: folder for the rollouts that count, one of AMAGO's npz files each, which `AmagoDataset` reads.
        Raises ValueError for arguments that cannot be right or are missing, for environments of other spaces or that
        cannot be rendered, and where nothing finished within `timesteps`, or a rollout does not end and there are none.
        """
        check_test(make_env, timesteps, episodes, num_envs, sample_actions, render, save_trajs_to)
        ring = self._started()
        sample = self.sample_actions_val if sample_actions is None else sample_actions
        folder = None if save_trajs_to is None else Path(save_trajs_to).resolve()
        asked = (make_env, ring.num_workers, timesteps, episodes, num_envs, sample)
        evaluation = ring.test(shares_of_a_test(self, self._layout, *asked), folder)
        if render:
            out = Path(self.directory.root / "test.gif" if render is True else render)
            acting = ring.weights.result(self.call_timeout_s)
            record_gif(self.agent_spec, acting, make_env, out, self.seed + TEST_SEEDS, sample)
            self._display.message(f"drawn: {out}")
        if not evaluation.episodes:
            raise ValueError(f"evaluate_test: no rollout finished within timesteps={timesteps}; give it more")
        return evaluation.summary()

    # ---------------------------------------------------------------- files

    def save(self) -> Path:
        """The training state of the newest finished epoch, written unless it is there already; `--resume` starts there.

        Raises ValueError before the first epoch, OSError where it cannot be written.
        """
        if self.progress.epoch < 0:
            raise ValueError("save: no epoch is finished yet")
        self._started()
        assert self._saving is not None
        self._saving.now()
        return self.directory.training_state(self.progress.epoch)

    def load_policy(self, path: str | os.PathLike[str]) -> None:
        """Continue, or evaluate, from the weights in a `policy_epoch_n.pt` or `latest/policy.pt` file.

        Raises ValueError when the file is of another architecture.
        """
        self._started().load_policy(Path(path).resolve())

    def load_checkpoint(self, epoch: int, resume_training_state: bool = True) -> None:
        """Go back to a saved epoch of this run: to its whole training state, or to its policy's weights alone.

        resume_training_state: the run goes on after that epoch; training states and log rows of later ones are removed.
        What replay holds stays. Raises ValueError where that epoch was not saved.
        """
        self.directory.check_saved(epoch)
        if not resume_training_state:
            self.load_policy(self.directory.policy_epoch(epoch))
            return
        ring = self._started()
        assert self._saving is not None and self._watching is not None
        self._saving.forget()
        ring.load_state(epoch)
        then = Progress.from_dict(self.directory.load_run_state(epoch)["progress"])
        vars(self.progress).update(vars(then))  # the object that everybody reads
        self.directory.forget_after(epoch)
        self._watching.rewind(epoch)
        self.on_checkpoint_loaded()

    def on_checkpoint_loaded(self) -> None:
        """A hook for subclasses, called when a resumed run or `load_checkpoint` is where it was saved."""

    def delete_buffer_from_disk(self) -> None:
        """End the processes, and remove what the run has collected; weights and training states stay."""
        self.close()
        shutil.rmtree(replay_folder(self), ignore_errors=True)

    def _started(self) -> Ring:
        if self._stage == "closed":
            raise ValueError("this experiment is closed: start(resume=True) goes on with it")
        self.start()
        assert self._ring is not None
        return self._ring
