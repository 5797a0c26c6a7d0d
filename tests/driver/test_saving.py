"""Training states: what they are made of, what a run that goes on from one does, and what happens when one fails."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from driver.test_ring import BATCHES, DIED, ENVS, EPOCHS, SCHEDULES, STEPS, Run, assert_all_was_done, no_time_passes  # noqa: F401
from fake_topology import FakeCall, FakeTopology

from amago_ray.atomic_files import read_json
from amago_ray.driver.preemption import RESUMABLE, Preempted
from amago_ray.driver.saving import LONGEST_REASON
from amago_ray.messages import CannotGoOn
from amago_ray.replay.storage.segments import StorageError

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("schedule", ["alternate", "overlap"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_goes_on_asks_for_what_is_left_and_nothing_twice(tmp_path: Path, schedule: str, epochs: int) -> None:
    """Of an overlapping run, the coming epoch's data are there already and are not collected again."""
    whole = Run(tmp_path / "whole", schedule, FakeTopology()).start().learn()
    first = Run(tmp_path, schedule, FakeTopology()).start()
    for epoch in range(epochs):
        first.schedule.run_epoch(epoch, last=False)
        first.progress.epoch = epoch
        first.progress.add_frames({"fake": STEPS * ENVS})
        first.saving.after_epoch(due=True)
    first.saving.finish()
    second = first.resume(FakeTopology()).learn()
    asked = [[x for kind, x in run.topology.log if kind == "collect"] for run in (whole, first, second)]
    assert sorted(asked[0]) == sorted(asked[1] + asked[2])
    assert second.progress.frames_by_env == whole.progress.frames_by_env == {"fake": EPOCHS * STEPS * ENVS}
    assert second.progress.gradient_steps == EPOCHS * BATCHES == second.topology.batches
    assert second.topology.stored == whole.topology.stored, "what was collected after the state is dropped"
    assert [x for kind, x in second.topology.log if kind == "load_worker"] == [
        (worker, {"worker": worker}, epochs - 1) for worker in range(2)
    ]
    assert next(x for kind, x in second.topology.log if kind == "publish") == 1 + epochs, "under its old number"
    commits = [[x for kind, x in run.topology.log if kind == "commit"] for run in (whole, first, second)]
    assert commits[0] == commits[1] + commits[2]


@pytest.mark.parametrize("after", [*SCHEDULES, "auto"])
@pytest.mark.parametrize("before", [*SCHEDULES, "auto"])
def test_what_was_collected_ahead_is_of_the_coming_epoch_whatever_the_schedule(
    tmp_path: Path, before: str, after: str
) -> None:
    first = Run(tmp_path, before, FakeTopology()).start()
    first.schedule.load_state({"auto": {"chose": True, "overlap": True}})
    for epoch in range(2):  # neither of them the last
        result = first.schedule.run_epoch(epoch, last=False)
        assert result.collected is not None
        first.progress.epoch = epoch
        first.progress.add_frames(result.collected.frames_by_env)
        first.saving.after_epoch(due=True)
    first.saving.finish()
    second = first.resume(FakeTopology(), after).learn()
    assert second.progress.total_frames == second.topology.collected
    if "continuous" not in (before, after):
        asked = [x for run in (first, second) for kind, x in run.topology.log if kind == "collect"]
        assert sum(timesteps for _, timesteps in asked) == EPOCHS * STEPS * ENVS
    assert second.topology.batches == EPOCHS * BATCHES


def test_what_was_collected_ahead_and_not_kept_is_collected_again(tmp_path: Path) -> None:
    """Its epoch would have nothing to learn from."""

    class Forgets(FakeTopology):
        def rewind_shard(self, shard: int, mark: Any) -> Any:
            return super().rewind_shard(shard, {"stored": 0, "staged": 0})

    first = Run(tmp_path, "overlap", FakeTopology(), replay_durable=False).start()
    first.schedule.run_epoch(0, last=False)
    first.progress.epoch = 0
    first.progress.add_frames({"fake": STEPS * ENVS})
    first.saving.after_epoch(due=True)
    first.saving.finish()
    second = first.resume(Forgets(), replay_durable=False).learn()
    assert second.progress.total_frames == EPOCHS * STEPS * ENVS
    assert second.topology.batches == EPOCHS * BATCHES


def test_an_epoch_that_was_interrupted_as_it_learned_is_not_collected_again(tmp_path: Path) -> None:
    """As by Ctrl-C in a notebook, where `learn` is called once more."""
    run = Run(tmp_path, "alternate", FakeTopology(script={("train", 1): RuntimeError("ended")})).start()
    with pytest.raises(RuntimeError, match="ended"):
        run.learn()
    assert run.progress.epoch == 0
    run.learn()
    assert run.progress.total_frames == run.topology.collected == EPOCHS * STEPS * ENVS


def test_workers_that_are_away_have_no_state_and_shards_that_are_away_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state with the marks of some shards alone would be one that the others' data are not part of."""
    monkeypatch.setattr("amago_ray.driver.cut.RETRY_INTERVAL_S", 0.0)
    run = Run(tmp_path, "alternate", FakeTopology(script={("pause", 1): DIED, ("mark", 0): DIED})).start().learn(1)
    state = run.directory.load_run_state(0)
    assert state["workers"] == {"0": {"worker": 0}} and list(state["marks"]) == ["0"]
    assert run.topology.count("mark") == 2
    again = run.resume(FakeTopology()).learn()
    assert again.progress.gradient_steps == EPOCHS * BATCHES


@pytest.mark.parametrize("failure", [FULL, OSError("the learner has moved on"), DIED])
def test_a_state_that_cannot_be_written_is_tried_again(tmp_path: Path, failure: Exception) -> None:
    run = Run(tmp_path, "alternate", FakeTopology(script={("write_state", 0): failure})).start()
    for epoch in range(EPOCHS):
        run.schedule.run_epoch(epoch, last=epoch + 1 == EPOCHS)
        run.progress.epoch = epoch
        run.saving.after_epoch(due=epoch == 0)
    run.saving.finish()
    assert run.directory.saved_epochs() == [1] and run.saved == [2]
    (line,) = [line for line in run.said if "could not be written" in line]
    assert line.startswith(f"the training state of epoch 1 could not be written ({failure}); older ones are whole")
    assert line.endswith("the next epoch tries again; free some space" if failure is FULL else "tries again")
    assert not list(run.directory.training_states.glob(".*")), "the failed one is removed"


def test_a_state_waits_for_the_rows_of_its_epoch(tmp_path: Path) -> None:
    """A run that went on from it would never log them again."""
    run = Run(tmp_path, "alternate", FakeTopology()).start()
    run.room = False
    for epoch in range(2):
        run.schedule.run_epoch(epoch, last=False)
        run.progress.epoch = epoch
        run.saving.after_epoch(due=epoch == 0)
    run.saving.finish(tell_only=True)
    assert run.directory.saved_epochs() == []
    refused = [line for line in run.said if "could not be written (metrics.jsonl: No space left on device)" in line]
    assert len(refused) == 2, "the second epoch tries again"
    run.room = True
    run.saving.now()
    assert run.directory.saved_epochs() == [1]


def test_a_policy_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FakeTopology(script={("save_agent", 1): FULL, ("save_agent", 2): FULL})).start()
    run.saving.policy(must=False)
    before = run.directory.latest_policy.read_text()
    run.topology.batches += 1
    run.saving.policy(must=False)
    assert run.directory.latest_policy.read_text() == before and "No space left" in run.said[-1]
    with pytest.raises(OSError, match="No space left"):
        run.saving.policy(must=True)
    run.saving.policy(must=True)
    assert run.directory.latest_policy.read_text() != before


def test_what_somebody_asks_for_raises(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FakeTopology(script={("write_state", 0): FULL})).start()
    run.schedule.run_epoch(0, last=False)
    run.progress.epoch = 0
    with pytest.raises(OSError, match="No space left on device$") as refused:
        run.saving.now()
    assert refused.value.errno == errno.ENOSPC
    run.saving.now()
    run.saving.now()
    assert run.directory.saved_epochs() == [0] and run.topology.count("write_state") == 2


UNWRITABLE = PermissionError(errno.EACCES, "Permission denied", "/runs/run/ckpts/latest")
REFUSED = "/runs/run/ckpts/latest: Permission denied"
REPLAY = StorageError(errno.EROFS, "cannot write to the replay segment 0: Read-only file system; make it writable")
NO_REPLAY = StorageError(errno.ENOSPC, "cannot write to the replay segment 0: No space left on device; free some space")


@pytest.mark.parametrize(
    ("error", "epochs", "line"),
    [
        (FULL, 1, "No space left on device; free some space, then --resume auto: {newest} epoch 1"),
        (
            UNWRITABLE,
            2,
            f"{UNWRITABLE.filename}: Permission denied; make it writable again, then --resume auto: {{newest}} epoch 2",
        ),
        (
            UNWRITABLE,
            0,
            f"{UNWRITABLE.filename}: Permission denied; make it writable again, then --resume auto: no epoch is saved",
        ),
        (REPLAY, 1, f"{REPLAY.strerror}; {{newest}} epoch 1"),
        (NO_REPLAY, 1, f"{NO_REPLAY.strerror}; {{newest}} epoch 1, then --resume auto"),
    ],
)
def test_a_disk_that_ends_a_run_says_how_it_goes_on(tmp_path: Path, error: OSError, epochs: int, line: str) -> None:
    run = Run(tmp_path, "alternate", FakeTopology()).start().learn(epochs)
    with pytest.raises(OSError) as ended, run.saving.before_leaving():
        raise error
    newest = "the newest training state is that of"
    assert str(ended.value) == f"[Errno {error.errno}] {line.format(newest=newest)}"


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FakeTopology()).start()
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "level_1.txt")
    with pytest.raises(FileNotFoundError) as ended, run.saving.before_leaving():
        raise error
    assert ended.value is error


def test_the_folder_says_what_a_run_failed_with_until_it_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FakeTopology()).start().learn(1)
    error = RuntimeError("the lamp\nis out")
    error.add_note("raised by the callback Lamp()")
    error.add_note("the remote traceback\nof many lines")
    with pytest.raises(RuntimeError), run.saving.before_leaving():
        raise error
    assert read_json(run.directory.stopped) == {
        "epoch": 0,
        "reason": "RuntimeError: the lamp is out; raised by the callback Lamp()",
        "failed": True,
    }
    with run.saving.before_leaving():
        assert not run.directory.stopped.exists()
    with pytest.raises(OSError), run.saving.before_leaving():
        raise UNWRITABLE
    assert "make it writable again, then --resume auto" in read_json(run.directory.stopped)["reason"]


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (
            "lake failed, with:\n  File x.py\n    step()\nValueError: thin ice\n",
            "lake failed, with: ... ValueError: thin ice",
        ),
        ("two\nlines", "two lines"),
        ("", ""),
        ("ice " * 1000, ("ice " * 1000)[: LONGEST_REASON - len("RuntimeError: ")]),
    ],
)
def test_an_error_is_kept_in_one_line(tmp_path: Path, message: str, kept: str) -> None:
    """Above a traceback is what failed, and below it why."""
    run = Run(tmp_path, "alternate", FakeTopology()).start()
    with pytest.raises(RuntimeError), run.saving.before_leaving():
        raise RuntimeError(message)
    assert read_json(run.directory.stopped)["reason"] == f"RuntimeError: {kept}".strip()


def test_an_error_that_cannot_be_recorded_is_still_that_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it cannot be printed, or the disk fails."""

    class Unprintable(RuntimeError):
        def __str__(self) -> str:
            raise KeyError("nothing to print")

    run = Run(tmp_path, "alternate", FakeTopology()).start()
    with pytest.raises(Unprintable), run.saving.before_leaving():
        raise Unprintable
    monkeypatch.setattr(Path, "is_file", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    for error in (RuntimeError("the first error"), UNWRITABLE):
        with pytest.raises(type(error), match=str(error.args[-1])), run.saving.before_leaving():
            raise error


def test_writing_does_not_hold_the_run_up(tmp_path: Path) -> None:
    """Until it is done, the older state is the newest one; a learner that dies then goes on from that."""
    topology = FakeTopology(write_state=20)
    run = Run(tmp_path, "alternate", topology).start()
    for epoch in range(2):
        run.schedule.run_epoch(epoch, last=False)
        run.progress.epoch = epoch
        run.saving.after_epoch(due=epoch == 0)
    assert topology.count("train") == 2 and run.directory.saved_epochs() == []
    run.saving.finish()
    assert run.directory.saved_epochs() == [0]
    assert run.directory.load_run_state(0)["batches"] == BATCHES, "of the epoch's end, not of the writing's"
    assert (run.directory.training_state(0) / "batches").read_text() == str(BATCHES)
    assert run.directory.policy_epochs() == [0]


def test_shards_hold_what_the_newest_whole_state_needs(tmp_path: Path) -> None:
    topology = FakeTopology()
    run = Run(tmp_path, "alternate", topology).start().learn()
    held = [x for kind, x in topology.log if kind == "hold"]
    assert held == [STEPS * ENVS, *(STEPS * ENVS * n for n in (1, 2, 3))]
    assert_all_was_done(run)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"ckpt_keep_last": 2}, [5, 6]),
        ({"ckpt_keep_last": 1, "ckpt_keep_every": 3}, [2, 5, 6]),
    ],
)
def test_no_more_states_than_are_wanted(tmp_path: Path, settings: dict[str, int], kept: list[int]) -> None:
    run = Run(tmp_path, "alternate", FakeTopology(), **settings).start().learn(7)
    assert run.directory.saved_epochs() == kept
    assert run.directory.policy_epochs() == [0, 1, 2, 3, 4, 5, 6]


def test_a_process_that_is_told_to_end_saves_what_is_finished(tmp_path: Path) -> None:
    """In the middle of an epoch: the last one's end is written, although it was not due."""
    run = Run(tmp_path, "alternate", FakeTopology()).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, run.saving.before_leaving():
        run.schedule.run_epoch(0, last=False)
        run.progress.epoch = 0
        run.saving.after_epoch(due=False)
        os.kill(os.getpid(), signal.SIGTERM)
        run.schedule.run_epoch(1, last=False)
    assert isinstance(ended.value, Preempted) and ended.value.code == RESUMABLE == 75
    assert run.directory.saved_epochs() == [0] and run.directory.load_run_state(0)["batches"] == BATCHES
    assert run.said[-1] == (
        "told to end (SIGTERM): epoch 1 is saved, --resume auto goes on from there (exit status 75)"
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_json(run.directory.stopped, "reason") == {"epoch": 0, "reason": "SIGTERM", "failed": False}


def test_ctrl_c_is_told_to_who_looks_until_the_run_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FakeTopology()).start()
    with pytest.raises(KeyboardInterrupt), run.saving.before_leaving():
        raise KeyboardInterrupt
    assert read_json(run.directory.stopped, "reason")["reason"] == "Ctrl-C"
    with run.saving.before_leaving():
        assert not run.directory.stopped.exists()


def test_a_shard_that_does_not_come_back_leaves_a_state_without_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amago_ray.driver.cut.RETRY_INTERVAL_S", 0.0)

    class OneOfTwo(FakeTopology):
        def mark_shards(self) -> list[Any]:
            return [*super().mark_shards(), FakeCall(DIED)]

    run = Run(tmp_path, "alternate", OneOfTwo(), call_timeout_s=0.05).start()
    run.schedule.run_epoch(0, last=True)
    run.progress.epoch = 0
    run.saving.now()
    assert "marks" not in run.directory.load_run_state(0) and run.directory.saved_epochs() == [0]


@pytest.mark.parametrize("under_way", [False, True], ids=["whole", "still being written"])
def test_a_run_that_has_gone_back_does_not_save_what_it_went_back_from(tmp_path: Path, under_way: bool) -> None:
    """Told to end before another epoch is finished, it leaves the state that it went back to as the newest."""
    topology = FakeTopology()
    run = Run(tmp_path, "alternate", topology, ckpt_keep_last=1).start().learn(2)
    assert run.directory.saved_epochs() == [1]
    run.schedule.run_epoch(2, last=False)
    run.progress.epoch = 2
    run.saving.after_epoch(due=under_way)
    with pytest.raises(Preempted), run.saving.before_leaving():
        run.saving.forget()
        run.ring.load_state(1)
        run.progress.epoch = 1
        os.kill(os.getpid(), signal.SIGTERM)
        run.schedule.run_epoch(2, last=False)
    assert run.directory.saved_epochs() == [1] and topology.count("write_state") == 2 + under_way
    assert not list(run.directory.training_states.glob(".*"))
    assert "epoch 2 is saved" in run.said[-1]


def test_a_run_whose_folder_is_gone_ends_in_a_line(tmp_path: Path) -> None:
    """What it would write from then on, nobody would find."""
    run = Run(tmp_path, "alternate", FakeTopology()).start()
    run.learn(1)
    run.directory.root.rename(tmp_path / "renamed")
    run.schedule.run_epoch(1, last=False)
    run.progress.epoch = 1
    for save in (partial(run.saving.policy, must=False), partial(run.saving.after_epoch, due=True), run.saving.now):
        with pytest.raises(CannotGoOn, match=r"run is gone, or its config\.txt: removed, renamed or unmounted"):
            save()
    with pytest.raises(CannotGoOn), run.saving.before_leaving():
        run.saving.now()
    assert not run.directory.root.exists()
    (tmp_path / "renamed").rename(run.directory.root)
    assert run.directory.saved_epochs() == [0]


@pytest.mark.usefixtures("signals_as_before")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_how_it_ended_is_recorded_also_where_saving_is_broken_off(tmp_path: Path, number: signal.Signals) -> None:
    class Interrupted(Run):
        def settle(self) -> None:
            raise KeyboardInterrupt

    run = Interrupted(tmp_path, "alternate", FakeTopology()).start()
    with pytest.raises(KeyboardInterrupt), run.saving.before_leaving():
        run.learn(1, save=False)
        os.kill(os.getpid(), number)
        run.ring.check()
    assert read_json(run.directory.stopped, "reason")["reason"] == number.name
