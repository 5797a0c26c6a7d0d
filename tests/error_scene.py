"""Where an error is provoked: a folder, a configuration that would work, a finished run, a cluster, and the command.

The command is called as the shell calls it, in this process. Ray is not there: a scene that gets so far finds the
cluster that it names, and processes that are a `FakeTopology`.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gin
import numpy as np
import pytest
from conftest import TINY_NETWORKS
from fake_topology import FakeTopology, wait_any

from amago_ray import train
from amago_ray.agent.flat_weights import flatten_state
from amago_ray.commands.command_line import load_experiment
from amago_ray.driver.placement import Cluster, Node, Resources
from amago_ray.driver.plan import Plan, make_plan
from amago_ray.driver.probe import check_data, probe
from amago_ray.driver.resume import create_folder, what_to_resume
from amago_ray.experiment import Experiment
from amago_ray.learner.learner import Learner
from amago_ray.messages import ReplayReport, Weights
from amago_ray.replay.client import LocalShard, ReplayReader, ReplayWriter
from amago_ray.replay.datasets.recorded_spaces import record_spaces
from amago_ray.replay.shard import ReplayShard
from amago_ray.rollout.worker import RolloutWorker
from amago_ray.settings import replay_folder
from amago_ray.watch.metrics import AVERAGE_RETURN, MetricsLog, Progress

MACHINE = Cluster(4, (Node("10.0.0.1", Resources(4, 0, 8e9), Resources(4, 0, 8e9)),))
SETTINGS = (
    "import broken_parts",
    *TINY_NETWORKS,
    "Experiment.run_name = 'run'",
    "Experiment.make_train_env = 'CartPole-v1'",
    "Experiment.traj_encoder_type = @GRUTrajEncoder",
    "Experiment.max_seq_len = 8",
    "Experiment.parallel_actors = 4",
    "Experiment.train_timesteps_per_epoch = 32",
    "Experiment.train_batches_per_epoch = 2",
    "Experiment.epochs = 2",
    "Experiment.batch_size = 4",
    "Experiment.num_rollout_workers = 1",
    "Experiment.replay_capacity_gb = 0.02",
    "Experiment.test_episodes = 0",
    "Experiment.verbose = False",
)


@dataclass(frozen=True)
class Outcome:
    """What a command has done: its exit status, what it printed, and what it left that was not there."""

    status: int
    out: str
    err: str
    left: tuple[str, ...]

    @property
    def line(self) -> str:
        """The one line of stderr, below what a run told while it went on. Raises AssertionError for anything else."""
        told, _, line = self.err.rpartition("amago-ray: ")
        assert line.count("\n") == 1 and line.endswith("\n") and "Traceback" not in self.err, self.err
        assert not told or (told.endswith("\n") and "amago-ray: " not in told), self.err
        return line.removesuffix("\n")


@dataclass
class Scene:
    """folder: for everything. cluster: that Ray has; None where the error must come before Ray is asked.

    script: how calls to processes end (see `FakeTopology`). state: what each learner does when it loads a state.
    """

    folder: Path
    patch: pytest.MonkeyPatch
    cluster: Cluster | None = None
    script: dict[tuple[str, int], Exception] = field(default_factory=dict)
    topology: type[FakeTopology] | None = None
    real_connect: bool = False

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        """A finished run of one epoch."""
        if not self.runs.exists():
            shutil.copytree(finished_run(), self.runs)
            text = (self.runs / "run" / "config.txt").read_text(encoding="utf-8")
            (self.runs / "run" / "config.txt").write_text(text.replace(str(finished_run()), str(self.runs)))
        return self.runs / "run"

    def file(self, name: str, content: str | bytes = b"") -> str:
        """A file in the scene's folder, by its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def config(self, *more: str) -> str:
        """A gin file that would work, but for `more`."""
        return self.file(
            "config.gin", "\n".join([*SETTINGS, f"Experiment.ckpt_base_dir = {str(self.runs)!r}", *more, ""])
        )

    def command(self, *words: Any) -> Outcome:
        """Run `amago-ray` with these words."""
        before = self._there()
        gin.clear_config()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), self._in_place():
            status = train.main(list(map(str, words)))
        gin.clear_config()
        return Outcome(status, out.getvalue(), err.getvalue(), tuple(sorted(self._there() - before)))

    def _there(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        def connect(address: Any, cpus_needed: Any, run_name: str) -> tuple[Cluster, bool]:
            assert self.cluster is not None, "this was not found out before Ray was started"
            cpus_needed(self.cluster)
            return self.cluster, False

        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            if not self.real_connect:
                patch.setattr("amago_ray.experiment.connect", connect)
            patch.setattr("amago_ray.experiment.Topology", self._topology)
            patch.setattr("amago_ray.driver.jobs.wait_any", wait_any)
            patch.setattr("amago_ray.driver.jobs.POLL_INTERVAL_S", 0.0)
            patch.setattr("amago_ray.driver.liveness.RETRY_INTERVAL_S", 0.0)
            yield

    def _topology(self, plan: Any, in_group: bool) -> FakeTopology:
        assert self.topology is not None, "processes were started"
        made = self.topology(len(plan.rollout), script=self.script)
        made.plan = plan
        return made


_template: list[Path] = []


def finished_run() -> Path:
    """The folder of runs that holds one, made once for all scenes without a process: data, states, weights, rows."""
    if not _template:
        folder = Path(tempfile.mkdtemp(prefix="finished-"))
        _template.append(folder)
        gin.clear_config()
        (folder / "config.gin").write_text("\n".join([*SETTINGS, f"Experiment.ckpt_base_dir = {str(folder)!r}"]))
        _train(load_experiment([folder / "config.gin"], []))
        (folder / "config.gin").unlink()
        gin.clear_config()
    return _template[0]


def forget_finished_run() -> None:
    """Remove it."""
    while _template:
        shutil.rmtree(_template.pop())


def _train(x: Experiment) -> None:
    spec, layout, directory = probe(x), check_data(x), x.directory
    create_folder(x, directory, layout)
    record_spaces(replay_folder(x), layout)
    plan = make_plan(x, spec, MACHINE)
    shard = ReplayShard(plan.replay, 0)
    learner = _learner(plan, shard)
    report = _collect(plan, shard, learner)
    learner.train(2)
    log, progress = MetricsLog(directory.root, resume=False), Progress(0, 2, {"CartPole": 400}, 1.0)
    log.log("collect", {AVERAGE_RETURN: 20.0}, progress)
    log.log("val", {AVERAGE_RETURN: 20.0}, progress)
    log.close()
    for path in (directory.latest_policy, directory.policy_epoch(0)):
        learner.save_agent(str(path))
    nothing_logged: Any = SimpleNamespace(to_resume={})
    ring = {"weight_version": 1, "batches": 2, "commits": 1, "validations": 1, "replay": {"0": report.trajectories}}
    state = ring | what_to_resume(progress, spec, layout, nothing_logged)
    directory.save_training_state(0, lambda folder: learner.save_state(str(folder)), json.loads(json.dumps(state)))
    shard.store.close()


def _learner(plan: Plan, shard: ReplayShard) -> Learner:
    return Learner(plan.learner, plan.agent_spec, ReplayReader([LocalShard(shard)], plan.batch_size, 0))


def _collect(plan: Plan, shard: ReplayShard, learner: Learner) -> ReplayReport:
    writer = ReplayWriter([LocalShard(shard)])
    worker = RolloutWorker(plan.rollout[0], plan.agent_spec, write=writer.write, flush=lambda: writer.flush() or 0.0)
    worker.set_weights(Weights(0, flatten_state(learner.agent.policy)))
    worker.collect(400)
    worker.close()
    return shard.commit(1)


def learner_with_data(plan: Plan) -> Learner:
    """A learner of a run, with something to learn from."""
    shard = ReplayShard(replace(plan.replay, store=replace(plan.replay.store, folder=None)), 0)
    learner = _learner(plan, shard)
    _collect(plan, shard, learner)
    return learner


def truncate(path: Path, size: int | float = 0.5) -> None:
    """Keep the first `size` bytes of a file, or that fraction of it."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * size) if isinstance(size, float) else size])


def npz_of(path: Path, **changes: Any) -> None:
    """A trajectory file of AMAGO 3.x, of CartPole."""
    arrays: dict[str, Any] = {
        "_OBS_KEY_observation": np.zeros((4, 4), np.float32),
        "rl2s": np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0]], np.float32),
        "time_idxs": np.arange(4).reshape(4, 1),
        "rews": np.ones((3, 1), np.float32),
        "dones": np.array([[False], [False], [True]]),
        "actions": np.eye(2, dtype=np.float32)[[0, 1, 0]],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **(arrays | changes))
