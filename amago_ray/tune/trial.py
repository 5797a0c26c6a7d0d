"""Experiments as trials of Ray Tune: `trainable` for a Tuner of one's own, `run_sweep` for the command line.

A trial is a run like any other, in a folder of its own below the sweep's: it can be plotted, evaluated and resumed. Its
checkpoints are the run's training states.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyarrow.fs import FileType
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.sample import Categorical
from ray.util.placement_group import get_current_placement_group

from amago_ray import config
from amago_ray.config.value_checks import folder_name
from amago_ray.driver.cluster import connect, disconnect, survey
from amago_ray.driver.placement import Cluster, Role, check_fits, place
from amago_ray.driver.plan import make_plan
from amago_ray.driver.preemption import as_ctrl_c
from amago_ray.driver.probe import probe
from amago_ray.driver.topology import bundles
from amago_ray.experiment import Experiment
from amago_ray.tune.parameters import ConfiguredExperiment, check_parameters, check_takes_over
from amago_ray.tune.population import Bounds, Population
from amago_ray.tune.results import SWEEP_FILE, SweepResults, Trial, show
from amago_ray.tune.resuming import TUNE_FOLDER, check_resumable, number_of_trials, plain_settings, settings_of
from amago_ray.tune.sweep import Sweep, domain
from amago_ray.tune.unknown_metric import StopUnknownMetric, check_metric
from amago_ray.watch.metrics import AVERAGE_RETURN

STATE, OWNER = "training_state", "trial"  # in a checkpoint: the state, and a file with the id of the trial it is of
TUNE_STATE = "experiment_state-*.json"  # there, once Tune has begun
GO_ON = "--resume goes on with the sweep"
OF_AN_INTERRUPTION = ("Trials did not complete", "Experiment has been interrupted")  # so begins what Tune says of it
NOTHING_PLANNED = {"CPU": 0.5}  # all that a trial asks for whose experiment cannot be made: it only says why

MakeExperiment = Callable[[dict[str, Any]], Experiment]


def trainable(make_experiment: MakeExperiment) -> type[tune.Trainable]:
    """A class of trials for `ray.tune.Tuner`, of the experiment that `make_experiment` makes of a trial's parameters.

        def make_experiment(config):
            return Experiment(run_name="lake", make_train_env=..., max_seq_len=128, learning_rate=config["lr"])

        ray.tune.Tuner(
            amago_ray.tune.trial.trainable(make_experiment),
            param_space={"lr": ray.tune.loguniform(1e-4, 1e-2)},
            tune_config=ray.tune.TuneConfig(metric="val/return", mode="max", num_samples=8),
        ).fit()

    Each trial takes one placement group for all of its processes, and writes to
    `{ckpt_base_dir}/{run_name}/{trial id}`. A step lasts until the next validation, and reports "val/return",
    "collect/return", "epoch" (counted from 1), "frames", "updates" and the newest value of everything in
    `metrics.jsonl`. Checkpoints are training states; a trial that is given its own goes on as a resumed run does, one
    that is given another's from that one's networks, with its own parameters and with the data that it has collected
    itself.
    """
    folder = os.getcwd()

    class ExperimentTrial(_ExperimentTrial):
        @classmethod
        def make(cls, parameters: dict[str, Any]) -> Experiment:
            if os.path.isdir(folder):
                os.chdir(folder)  # Tune changes to a folder of its own, where relative paths would lead nowhere
            return make_experiment(parameters)

    return ExperimentTrial


class _ExperimentTrial(tune.Trainable):
    """One experiment, driven step by step."""

    @classmethod
    def make(cls, parameters: dict[str, Any]) -> Experiment:
        raise NotImplementedError

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The trial itself, which only waits, and a bundle for each of its processes.

        An error here would end the whole sweep. What cannot be made is asked to say so as a trial, which fails alone.
        """
        try:
            wanted, labels = bundles(trial_roles(cls.make(dict(config))))
        except Exception:
            return tune.PlacementGroupFactory([NOTHING_PLANNED])
        selectors = {} if labels is None else {"bundle_label_selector": labels}
        return tune.PlacementGroupFactory([{}, *wanted], strategy="PACK", **selectors)

    def setup(self, config: dict[str, Any]) -> None:
        made = self.make(dict(config))
        group = get_current_placement_group()
        assert group is not None, "Tune places every trial into a group"
        if group.bundle_specs == [NOTHING_PLANNED]:
            trial_roles(made)  # raises what kept it from being planned
            raise RuntimeError("its processes could not be planned when it was made, and can be now: make it anew")
        self.experiment = replace(
            made,
            ckpt_base_dir=Path(made.ckpt_base_dir).expanduser().resolve() / made.run_name,
            run_name=self.trial_id,
            wandb_group_name=made.wandb_group_name or made.run_name,
            num_rollout_workers=len(group.bundle_specs) - made.num_learners - made.num_replay_shards,
            verbose=False,
        )
        self._saved: int | None = None  # epoch of the newest training state that only Tune asked for; older ones go

    def step(self) -> dict[str, Any]:
        experiment = self.experiment
        if experiment.progress.epoch < 0:  # nothing was restored; of what an earlier life saved, Tune may not know yet
            saved = bool(experiment.directory.saved_epochs())
            experiment.start(resume=saved, overwrite=not saved)
        experiment.learn(until=epoch_of_next_validation(experiment) + 1)
        newest, progress = experiment.newest_metrics, experiment.progress
        return {
            **newest,
            "val/return": newest.get(f"val/{AVERAGE_RETURN}", float("nan")),
            "collect/return": newest.get(f"collect/{AVERAGE_RETURN}", float("nan")),
            "epoch": progress.epoch + 1,
            "epochs": experiment.epochs,
            "frames": progress.total_frames,
            "updates": progress.gradient_steps,
            "run": str(experiment.directory.root),
            "done": progress.epoch + 1 >= experiment.epochs or experiment.stop_reason is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        experiment, epoch = self.experiment, self.experiment.progress.epoch
        for_tune_alone = epoch not in experiment.directory.saved_epochs()  # ckpt_interval did not ask for it
        shutil.copytree(experiment.save(), Path(checkpoint_dir) / STATE)
        (Path(checkpoint_dir) / OWNER).write_text(self.trial_id)
        if self._saved is not None and self._saved != epoch:
            experiment.directory.remove_training_state(self._saved)
            self._saved = None
        if for_tune_alone:
            self._saved = epoch

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]  # Tune types a dict alone
        directory, owner = self.experiment.directory, Path(checkpoint_dir) / OWNER
        directory.create()
        own = owner.is_file() and owner.read_text() == self.trial_id
        directory.adopt_training_state(Path(checkpoint_dir) / STATE, own)
        self.experiment.start(resume=True)

    def cleanup(self) -> None:
        self.experiment.close()


def epoch_of_next_validation(experiment: Experiment) -> int:
    """The first epoch after the newest finished one that ends with a validation; `epochs` when none is left."""
    following = range(experiment.progress.epoch + 1, experiment.epochs)
    due = (epoch for epoch in following if experiment.is_due(epoch, experiment.val_interval))
    return next(due, experiment.epochs)


def trial_roles(experiment: Experiment) -> tuple[Role, ...]:
    """What the processes of an experiment ask for, on the cluster that this process is connected to."""
    return make_plan(experiment, probe(experiment), survey()).roles


def run_sweep(experiment: Experiment, sweep: Sweep, name: str, resume: bool = False) -> Path:
    """Run a sweep over the experiment that gin describes, showing progress; returns its folder.

    The folder is `{ckpt_base_dir}/{name}`; see `sweep_results` for what is in it. resume: go on with one that was
    killed.
    Raises ValueError, before anything starts, for parameters that gin does not know, for a sweep that could never run,
    and where the folder holds a sweep or run already (or none that can be resumed as it was begun); at the first report
    for a metric that no trial reports. Raises KeyboardInterrupt when it was interrupted, and Preempted, which ends the
    process with exit status 75, after a SIGTERM; its state is kept.
    """
    if objection := folder_name(name):
        raise ValueError(f"--name {name!r}: {objection}")
    folder = Path(experiment.ckpt_base_dir).expanduser().resolve() / name
    space = {parameter: domain(parameter, text, tune) for parameter, text in sweep.params.items()}
    make = ConfiguredExperiment(config.snapshot(), str(folder.parent), name)
    check_parameters(make, space)
    if resume:
        check_resumable(folder, sweep, settings_of(experiment, space))
    elif folder.exists():
        raise ValueError(f"{folder} exists already: go on with it (--resume), or choose another --name")

    with as_ctrl_c(print, GO_ON):
        _run_sweep(experiment, sweep, make, space, folder, resume)
    return folder


def _run_sweep(
    experiment: Experiment,
    sweep: Sweep,
    make: ConfiguredExperiment,
    space: dict[str, Any],
    folder: Path,
    resume: bool,
) -> None:
    """Raises KeyboardInterrupt when it was interrupted, after its state is kept."""

    def cpus_of_a_trial(machine: Cluster) -> float:
        return make_plan(experiment, spec, replace(machine, local=False)).num_cpus

    spec = probe(experiment)
    if sweep.scheduler == "pbt":
        check_takes_over(make, space, sweep.params, spec)
    cluster, started_here = connect(experiment.ray_address, cpus_of_a_trial)
    try:
        roles = trial_roles(experiment)
        check_fits(roles, cluster, whole=True)
        print(f"{folder.name}: {_room(roles, survey())}\n", flush=True)
        # A metric may be missing from a report: nothing was learned yet, say. `StopUnknownMetric` tells the others.
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        # Failures are told by `SweepLog`, in a line each; Tune would add pages to it.
        os.environ |= {"TUNE_PRINT_ALL_TRIAL_ERRORS": "0", "RAY_AIR_NEW_OUTPUT": "0"}
        trial = trainable(make)
        if resume and any((folder / TUNE_FOLDER).glob(TUNE_STATE)):
            tuner = _restored(space, trial, folder)
        else:  # where it was killed before Tune had begun, Tune would restore one trial, of no parameters
            tuner = _tuner(experiment, sweep, space, trial, folder)
        with _told_once():
            trials = tuner.fit()
        check_metric(sweep.metric, [trials[i].metrics or {} for i in range(len(trials))], folder)
        if SweepResults.read(folder).ended < number_of_trials(sweep, space):
            # Tune caught it, kept what it needs, and returned.
            raise KeyboardInterrupt(GO_ON)
    finally:
        if started_here:
            disconnect()


@contextmanager
def _told_once() -> Iterator[None]:
    """Within, Ray Tune does not say of a sweep that was interrupted what the end of the command says."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(OF_AN_INTERRUPTION)

    of_tune = logging.getLogger("ray.tune.tune")
    of_tune.addFilter(is_news)
    try:
        yield
    finally:
        of_tune.removeFilter(is_news)


class SweepLog(tune.Callback):
    """Keeps `sweep.json`, in `folder`, up to date and prints a line whenever a trial reports."""

    def __init__(self, folder: Path, results: SweepResults):
        self.folder, self._results = folder, results

    def setup(self, *args: Any, **info: Any) -> None:
        if (self.folder / SWEEP_FILE).is_file():  # the sweep is being resumed
            self._results = SweepResults.read(self.folder)
        else:
            self._results.write(self.folder)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Let Tune forget checkpoints that it has deleted since it last wrote down what there is.

        It would delete them again, and print the traceback of that.
        """
        kept = trial.run_metadata.checkpoint_manager
        kept._checkpoint_results = [each for each in kept._checkpoint_results if _is_there(each.checkpoint)]

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        results = self._results
        entry = results.add(trial.trial_id, trial.config, result["epoch"], result.get(results.metric, float("nan")))
        entry.epochs = result.get("epochs")
        counts = Counter(t.status for t in trials)
        print(
            f"trial {trial.trial_id}  epoch {entry.epoch:>4}/{results.epochs_of(entry)}  "
            f"{results.metric} {show(entry.last):>8}  best {show(entry.best):>8}  |  "
            f"{counts['RUNNING']} running, {counts['PENDING'] + counts['PAUSED']} waiting, "
            f"{counts['TERMINATED'] + counts['ERROR']} done",
            flush=True,
        )
        results.write(self.folder)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "finished")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed")
        _tell_failure(trial, "failed")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _tell_failure(trial, "goes on from its newest checkpoint, if there is one, after it failed")

    def _end(self, trial: Any, status: str) -> None:
        entry = self._results.trials.setdefault(trial.trial_id, Trial(dict(trial.config)))
        early = entry.epoch < self._results.epochs_of(entry)
        entry.status = "stopped" if status == "finished" and early else status
        self._results.write(self.folder)


def _tell_failure(trial: Any, what: str) -> None:
    error = Path(trial.error_file).read_text() if trial.error_file else "no reason is known"
    error = config.without_gin_calls(error).strip()
    print(f"trial {trial.trial_id} {what}: {error.splitlines()[-1]}  (all of it: {trial.error_file})", flush=True)


def _room(roles: tuple[Role, ...], cluster: Cluster) -> str:
    """How many trials there is room for at a time."""
    copies, placed = 0, True
    while placed and copies < 1000:
        copies += 1
        placed = all(-1 not in places for places in place(roles * copies, cluster.nodes, free_only=False).places)
    at_once = max(copies - 1, 1)
    each = ", ".join(f"{role.count} {role.name}{'s' * (role.count > 1)} ({role.each} each)" for role in roles)
    return f"a trial takes {each}; {at_once} at a time find{'s' * (at_once == 1)} room, the others wait their turn"


def _restored(space: dict[str, Any], trial: type[tune.Trainable], folder: Path) -> tune.Tuner:
    """What `_tuner` made and Tune has kept, in the folder where it is now."""
    tuner = tune.Tuner.restore(str(folder / TUNE_FOLDER), trial, resume_errored=True, param_space=space)
    of_tune: Any = tuner._local_tuner  # which offers no public list
    for callback in of_tune.get_run_config().callbacks:
        if isinstance(callback, SweepLog):
            callback.folder = folder
    return tuner


def _is_there(checkpoint: Any) -> bool:
    return checkpoint.filesystem.get_file_info(checkpoint.path).type != FileType.NotFound


def _tuner(
    experiment: Experiment,
    sweep: Sweep,
    space: dict[str, Any],
    trial: type[tune.Trainable],
    folder: Path,
) -> tune.Tuner:
    begun: dict[str, Any] = {"settings": plain_settings(sweep), "experiment": settings_of(experiment, space)}
    log = SweepLog(folder, SweepResults(sweep.metric, sweep.mode, experiment.epochs, **begun))
    keeps_all = sweep.scheduler == "pbt"  # a trial may be told to go on from a checkpoint that is no longer the newest
    return tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            scheduler=scheduler(sweep, experiment.epochs, experiment.val_interval, space),
            # The limit goes in here: Tune ignores its own where it is given a generator.
            search_alg=tune.search.basic_variant.BasicVariantGenerator(
                random_state=sweep.seed, max_concurrent=sweep.max_concurrent or 0
            ),
            num_samples=sweep.num_samples,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(folder),
            callbacks=[log],
            stop=StopUnknownMetric(sweep.metric),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=1, checkpoint_at_end=True, num_to_keep=None if keeps_all else 2
            ),
        ),
    )


def scheduler(sweep: Sweep, epochs: int, val_interval: int, space: Mapping[str, Any]) -> TrialScheduler:
    """Tune's scheduler of that name. Time is counted in epochs; metric and mode come from the Tuner."""
    if sweep.scheduler == "asha":
        grace = sweep.grace_epochs or max(epochs // 9, 1)
        return ASHAScheduler(
            time_attr="epoch", max_t=epochs, grace_period=min(grace, epochs), reduction_factor=sweep.reduction_factor
        )
    if sweep.scheduler == "pbt":
        interval = max(sweep.perturb_epochs or epochs // 10, 1)
        return Population(
            time_attr="epoch",
            perturbation_interval=-(-interval // val_interval) * val_interval,  # trials report with each validation
            require_attrs=False,
            # A list is one to choose its neighbours from; a `choice` would be multiplied like a number.
            hyperparam_mutations={n: v.categories if isinstance(v, Categorical) else v for n, v in space.items()},
            custom_explore_fn=Bounds(space),
            synch=sweep.synchronous,
        )
    return FIFOScheduler()
