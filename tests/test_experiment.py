"""What `Experiment` refuses before it does anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from gymnasium.vector import SyncVectorEnv

from amago_ray import Experiment
from amago_ray.driver.placement import Cluster
from amago_ray.envs.builtin import Counting
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.pending import ProcessDied
from amago_ray.run_directory import RunDirectory
from amago_ray.watch.run_status import run_status


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_resuming_what_is_running_is_refused(tmp_path: Path, how: dict[str, bool]) -> None:
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, ckpt_base_dir=tmp_path)
    running: Any = object()
    experiment._ring = running
    assert experiment.start() is experiment
    with pytest.raises(ValueError, match="this experiment is running; resume and overwrite are for its first start"):
        experiment.start(**how)


@pytest.mark.parametrize("resume", [True, "auto"])
def test_going_on_and_beginning_anew_is_refused(tmp_path: Path, resume: Any) -> None:
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, ckpt_base_dir=tmp_path)
    with pytest.raises(ValueError, match="^start: resume goes on with a run and overwrite begins it anew: leave out"):
        experiment.start(resume=resume, overwrite=True)


def test_a_vector_env_of_another_size_is_refused_before_the_earlier_run_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = RunDirectory(tmp_path, "a")
    earlier.create()
    earlier.config.write_text("of the earlier run")
    monkeypatch.setattr("amago_ray.experiment.connect", lambda *_: (Cluster(4, (), local=True), False))
    monkeypatch.setattr("amago_ray.experiment.check_fits", lambda *_: None)  # of no nodes at all
    experiment = Experiment(
        run_name="a",
        make_train_env=lambda: SyncVectorEnv([Counting] * 3),
        make_val_env=Counting,
        max_seq_len=4,
        parallel_actors=4,
        num_rollout_workers=2,
        traj_encoder_type=GRUTrajEncoder,
        ckpt_base_dir=tmp_path,
        verbose=False,
    )
    with pytest.raises(ValueError, match="make_train_env makes a VectorEnv of 3 environments where .* has 2"):
        experiment.start(overwrite=True)
    assert earlier.config.read_text() == "of the earlier run"
    assert not earlier.stopped.exists(), "nor is it one that has failed"


def test_what_a_start_fails_with_is_kept_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be started, once the run has a folder: nothing else would tell that it is not at work."""
    monkeypatch.setattr("amago_ray.experiment.connect", lambda *_: (Cluster(4, (), local=True), False))
    monkeypatch.setattr("amago_ray.experiment.check_fits", lambda *_: None)
    monkeypatch.setattr("amago_ray.experiment.Topology", lambda *_: None)
    ring = Mock(start=Mock(side_effect=ProcessDied("learner 0: out of memory")))
    monkeypatch.setattr("amago_ray.experiment.Ring", lambda *_: ring)
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, ckpt_base_dir=tmp_path, verbose=False)
    with pytest.raises(ProcessDied):
        experiment.start()
    status = run_status(tmp_path / "a")
    assert (status.state, status.reason) == ("failed", "ProcessDied: learner 0: out of memory")


@pytest.mark.parametrize("until", ["3", -1, 2.0, True])
def test_no_epoch_to_learn_until(tmp_path: Path, until: Any) -> None:
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, ckpt_base_dir=tmp_path)
    with pytest.raises(ValueError, match=rf"^learn: until={until!r}: it must be an integer of 0 or more, or None$"):
        experiment.learn(until=until)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"episodes": 1.5}, "episodes=1.5: it must be an integer of 1 or more, or None"),
        ({"episodes": 0}, "episodes=0: it must be an integer of 1 or more, or None"),
        ({"timesteps": "9"}, "timesteps='9': it must be an integer of 1 or more, or None"),
        ({"episodes": 2, "num_envs": -1}, "num_envs=-1: it must be an integer of 1 or more, or None"),
        ({"episodes": 2, "sample_actions": "no"}, "sample_actions='no': it must be True or False or None"),
        ({"episodes": 2, "render": 1.5}, "render=1.5: it must be True or False or text or a path"),
        ({"episodes": 2, "save_trajs_to": 3}, "save_trajs_to=3: it must be text or a path or None"),
    ],
)
def test_a_test_that_cannot_be_played(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, ckpt_base_dir=tmp_path)
    with pytest.raises(ValueError, match=f"^evaluate_test: {said}$"):
        experiment.evaluate_test(Counting, **arguments)
