"""What dies is replaced and the run goes on to its end; what is a bug stops it at once, with its traceback."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ProcessPool
from system.faults import (
    BuggyAgent,
    EndsItsProcess,
    FaultyAgent,
    HangsInStep,
    KillsInStep,
    RaisesNowAndThen,
    give_order,
)
from system.processes import assert_gone, pids_of

from amago_ray import config
from amago_ray.envs.makers import EnvFailure
from amago_ray.watch.metrics import read_metrics

SILENT_S = 8.0  # until somebody counts as hung: longer than a process that is well ever waits for a core here


def column(experiment: Any, section: str, name: str) -> list[Any]:
    rows = read_metrics(experiment.directory.root)
    return [row[name] for row in rows if row["section"] == section]


def finish(experiment: Any, epochs: int = 3) -> None:
    """Learn to the end, and see that every epoch was done and no process is left."""
    experiment.learn()
    assert column(experiment, "collect", "epoch") == list(range(epochs))
    failed = column(experiment, "collect", "collect/Environment Failures")  # a step that failed is no frame
    frames = [96 * (epoch + 1) - sum(failed[: epoch + 1]) for epoch in range(epochs)]
    assert column(experiment, "collect", "total_frames") == frames
    assert experiment.directory.latest_policy.is_file()
    assert experiment.directory.saved_epochs()[-1] == epochs - 1
    last = pids_of(experiment)
    experiment.close()
    assert_gone(last.values())


def test_processes_killed_while_collecting_are_replaced(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker, and in a later epoch the only shard; of one of two shards see `test_replay_durability`."""
    order = tmp_path / "order"
    experiment = make_experiment(
        make_train_env=partial(KillsInStep, order),
        make_val_env=partial(KillsInStep, order, steps=10**9),
        num_replay_shards=1,
        verbose=True,
    )
    experiment.start()
    pids = pids_of(experiment)
    for until, victim in ((2, "worker 0"), (3, "shard 0")):
        give_order(order, pids[victim])
        experiment.learn(until)
        assert not order.exists()
    finish(experiment)
    assert_gone(pids.values())
    out = capsys.readouterr().out
    assert "rollout worker 0 died; Ray restarts it" in out and "replay shard 0 died and Ray restarted it" in out
    assert sum(column(experiment, "collect", "collect/Worker Deaths")) == 1


def test_a_learner_that_dies_is_rebuilt(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.load([], [f"FaultyAgent.orders = {str(tmp_path)!r}"])
    experiment = make_experiment(
        agent_type=FaultyAgent, schedule="overlap", num_rollout_workers=1, num_replay_shards=1, verbose=True
    )
    experiment.start()
    pids = pids_of(experiment)
    give_order(tmp_path / "forward", pids["learner 0"])
    finish(experiment)
    assert not (tmp_path / "forward").exists()
    assert_gone(pids.values())
    out = capsys.readouterr().out
    assert re.search("learner 0.*; going on from the initial weights", out)


def test_a_learner_that_hangs_or_dies_while_it_is_saved_is_rebuilt(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first epoch, from the initial weights, and in the second one, from the state after the first."""
    config.load([], [f"FaultyAgent.orders = {str(tmp_path)!r}"])
    experiment = make_experiment(
        agent_type=FaultyAgent,
        call_timeout_s=SILENT_S,
        ckpt_interval=1,
        num_rollout_workers=1,
        num_replay_shards=1,
        verbose=True,
    )
    experiment.start()
    pids = list(pids_of(experiment).values())
    for until, order in ((1, "hang"), (2, "save")):
        pids.append(pids_of(experiment)["learner 0"])
        give_order(tmp_path / order, pids[-1])
        experiment.learn(until)
        assert not (tmp_path / order).exists()
    finish(experiment)
    assert_gone(pids)
    out = capsys.readouterr().out
    assert re.search(rf"no progress for {SILENT_S:g} s \(call_timeout_s\).*; going on from the initial weights", out)
    assert re.search("learner 0.*; going on from the training state of epoch 1", out)


def test_learning_ends_early_when_all_that_was_stored_is_lost(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The only shard dies while the learner is in the middle of an epoch; the next epoch has data again."""
    order = tmp_path / "kill"
    config.load([], [f"FaultyAgent.orders = {str(tmp_path)!r}"])
    experiment = make_experiment(
        agent_type=FaultyAgent,
        num_rollout_workers=1,
        num_replay_shards=1,
        train_batches_per_epoch=60,
        replay_durable=False,
        verbose=True,
    )
    experiment.start()
    give_order(order, pids_of(experiment)["shard 0"])
    finish(experiment)
    assert not order.exists()
    assert column(experiment, "train", "epoch") == [1, 2]
    first, second = column(experiment, "train", "gradient_steps")
    assert 61 <= first < 120 and second == first + 60
    out = capsys.readouterr().out
    assert "learning ends early in this epoch" in out and "replay shard 0 died and Ray restarted it" in out


def test_a_worker_that_hangs_is_restarted(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In collection, and in validation."""
    collecting, validating = tmp_path / "collecting", tmp_path / "validating"
    experiment = make_experiment(
        make_train_env=partial(HangsInStep, collecting),
        make_val_env=partial(HangsInStep, validating),
        call_timeout_s=SILENT_S,
        verbose=True,
    )
    experiment.start()
    pids = pids_of(experiment)
    give_order(collecting, pids["worker 1"])
    give_order(validating, pids["worker 0"])
    finish(experiment)
    assert not collecting.exists() and not validating.exists()
    assert_gone(pids.values())
    out = capsys.readouterr().out
    for worker in (0, 1):
        assert f"rollout worker {worker} is silent for {SILENT_S:g} s (call_timeout_s): restarting it" in out


def test_environments_that_raise_are_rebuilt_until_they_do_nothing_else(
    make_experiment: Callable[..., Any], process_pool: ProcessPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(
        make_train_env=partial(RaisesNowAndThen, 20, os.getpid()), num_rollout_workers=1, num_replay_shards=1
    )
    finish(experiment)
    # Each of 4 environments is asked for 24 steps three times, less those that raised; every 20th of a life raises.
    assert sum(column(experiment, "collect", "collect/Environment Failures")) >= 4

    monkeypatch.setattr("amago_ray.driver.topology.spawner", process_pool)  # nobody looks at these processes
    experiment = make_experiment(
        run_name="hopeless",
        make_train_env=partial(RaisesNowAndThen, 1, os.getpid()),
        num_rollout_workers=1,
        num_replay_shards=1,
    )
    with pytest.raises(EnvFailure, match="times in a row") as failure:
        experiment.learn()
    assert "ZeroDivisionError: the simulator crashed" in str(failure.value)
    assert "faults.py" in str(failure.value)


def test_a_bug_in_the_learner_is_raised_at_once(make_experiment: Callable[..., Any]) -> None:
    experiment = make_experiment(agent_type=BuggyAgent, num_rollout_workers=1, num_replay_shards=1)
    experiment.start()
    pids = pids_of(experiment)
    with pytest.raises(ZeroDivisionError) as bug:
        experiment.learn()
    notes = "\n".join(bug.value.__notes__)
    assert "faults.py" in notes and "log=log / 0" in notes
    assert column(experiment, "collect", "epoch") == []
    experiment.close()
    assert_gone(pids.values())


def test_why_a_worker_dies_before_it_is_ready_is_told(
    make_experiment: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment that ends the process which builds it, but not the driver's: once, then it is well."""
    experiment = make_experiment(
        make_train_env=partial(EndsItsProcess, os.getpid(), tmp_path / "died"),
        num_rollout_workers=1,
        num_replay_shards=1,
        verbose=True,
    )
    finish(experiment)
    out = capsys.readouterr().out
    assert "rollout worker 0 died before it was ready; Ray restarts it (rollout worker 0: no licence for this" in out
