"""Fixtures that several test files share: one Ray for the whole session, and networks small enough for it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gin
import pytest
import torch

from amago_ray import config

if TYPE_CHECKING:
    from amago_ray import Experiment

TESTS = Path(__file__).parent
TINY_NETWORKS = (
    "FFTstepEncoder.n_layers = 1",
    "FFTstepEncoder.d_hidden = 16",
    "FFTstepEncoder.d_output = 16",
    "GRUTrajEncoder.n_layers = 1",
    "GRUTrajEncoder.d_hidden = 16",
    "GRUTrajEncoder.d_output = 16",
    "Actor.n_layers = 1",
    "Actor.d_hidden = 16",
    "NCritics.n_layers = 1",
    "NCritics.d_hidden = 16",
    "Agent.num_critics = 2",
    "Multigammas.discrete = [0.9]",
    "Multigammas.continuous = [0.9]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes by where it lies and what it asks for, so that `make test-fast` can leave it out."""
    for item in items:
        room = item.path.relative_to(TESTS).parts[0]
        if room in ("system", "benchmarks") or {"ray_instance", "make_experiment", "trained"} & set(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.processes)
        if item.path.parent.name == "packages":  # some of them start processes as they are imported
            item.add_marker(pytest.mark.processes)
        if room == "gpu" and torch.cuda.is_available():  # accelerate asks a command for its name
            item.add_marker(pytest.mark.processes)
        if room == "learning":
            item.add_marker(pytest.mark.learning)


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that starts a process and does not say so fails."""
    if request.node.get_closest_marker("processes"):
        return

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("this test starts a process: mark it with @pytest.mark.processes", pytrace=True)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    monkeypatch.setattr(os, "fork", refuse)


@pytest.fixture(autouse=True)
def clean_gin() -> Iterator[None]:
    """No test sees what another one configured."""
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(autouse=True)
def any_precision() -> Iterator[None]:
    """A process chooses its precision once, with `accelerate`; every test here may choose anew."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture
def signals_as_before() -> Iterator[None]:
    """What tells a process to end has no handler, and is not ignored, as it is where tests run below `nohup`."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_networks() -> None:
    """Networks of width 16 from here on, bound in gin as a user would."""
    config.load([], TINY_NETWORKS)


@pytest.fixture(scope="session")
def ray_instance() -> Iterator[None]:
    """The one Ray of all in-process tests: `Experiment` uses it and leaves it running.

    Its processes can import what lies in tests/, as they can import a user's own modules.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        found = filter(None, (str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH")))
        patch.setenv("PYTHONPATH", os.pathsep.join(found))
        ray.init(
            address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error",
            object_store_memory=200_000_000,
        )  # fmt: skip
        yield
        ray.shutdown()


class ProcessPool:
    """In place of `Spawner`: a process that is ended waits for the next experiment, which makes its role anew in it.

    Most of a small run's time goes into starting processes. What looks at processes, or kills them, does without this.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[type, list[tuple[Any, str]]] = defaultdict(list)
        self._busy: dict[Any, tuple[type, str]] = {}

    def start(self, role: type, args: tuple[Any, ...], options: dict[str, Any], named: bool = False) -> tuple[Any, str]:
        import ray

        if self._idle[role]:
            actor, name = self._idle[role].pop()
            ray.get(actor.__ray_call__.remote(lambda self, args: self.__init__(*args), args), timeout=60)
        else:
            name = uuid.uuid4().hex
            concurrency = {key: value for key, value in options.items() if key == "concurrency_groups"}
            remote: Any = ray.remote(num_cpus=0, name=name, **concurrency)(role)
            actor = remote.remote(*args)
        self._busy[actor] = (role, name)
        return actor, name

    def end(self, actor: Any) -> None:
        import ray

        ray.get(actor.__ray_call__.remote(_let_go), timeout=60)
        role, name = self._busy.pop(actor)
        self._idle[role].append((actor, name))


def _let_go(self: Any) -> None:
    """End what a role holds: its environments, files and locks."""
    if hasattr(self, "close"):
        self.close()
    self.__dict__.clear()
    gc.collect()


@pytest.fixture(scope="session")
def process_pool(ray_instance: None) -> ProcessPool:
    return ProcessPool()


@pytest.fixture
def shared_processes(process_pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments of this test take processes over from those of tests before."""
    monkeypatch.setattr("amago_ray.driver.topology.spawner", process_pool)


def small_settings(folder: Path) -> dict[str, Any]:
    """Settings of an experiment of seconds in `folder`."""
    from amago_ray.envs.builtin import Counting
    from amago_ray.nets.traj_encoders import GRUTrajEncoder

    return {
        "run_name": "run",
        "ckpt_base_dir": folder,
        "make_train_env": partial(Counting, 6),
        "traj_encoder_type": GRUTrajEncoder,
        "max_seq_len": 8,
        "parallel_actors": 4,
        "train_timesteps_per_epoch": 24,
        "train_batches_per_epoch": 6,
        "batch_size": 4,
        "epochs": 3,
        "val_interval": 2,
        "ckpt_interval": 2,
        "lr_warmup_steps": 100,
        "log_interval": 2,
        "replay_capacity_gb": 0.02,
        "num_rollout_workers": 2,
        "num_replay_shards": 2,
        "learner_cpus": 1,
        "schedule": "alternate",
        "call_timeout_s": 60.0,
        "verbose": False,
    }


@pytest.fixture
def make_experiment(ray_instance: None, tiny_networks: None, tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    """Makes experiments of seconds, in `tmp_path`, and closes them after the test."""
    from amago_ray import Experiment

    made: list[Experiment] = []

    def make(**changes: Any) -> Experiment:
        experiment = Experiment(**(small_settings(tmp_path) | changes))
        made.append(experiment)
        return experiment

    yield make
    for experiment in made:
        experiment.close()
