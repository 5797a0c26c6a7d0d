"""Epochs of all schedules with processes that die at any call: quotas, updates and counters come out as without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_topology import FakeCall, FakeTopology, Script, wait_any

from amago_ray.driver import failures
from amago_ray.driver.placement import Cluster
from amago_ray.driver.ring import Ring
from amago_ray.driver.saving import Saving
from amago_ray.driver.schedule import make_schedule
from amago_ray.driver.topology import LearnerDied
from amago_ray.envs.builtin import Counting
from amago_ray.messages import ReplayReport
from amago_ray.pending import CallTimeout, ProcessDied
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings, replay_folder
from amago_ray.watch.display import Display
from amago_ray.watch.metrics import Progress

EPOCHS, STEPS, BATCHES, ENVS = 3, 10, 6, 4
SCHEDULES = ("alternate", "overlap", "continuous")
DIED = ProcessDied("it is gone")
HANGS = CallTimeout("it is silent")


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amago_ray.driver.jobs.wait_any", wait_any)
    monkeypatch.setattr("amago_ray.driver.liveness.RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr("amago_ray.driver.jobs.POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr("amago_ray.driver.ring.SHARD_RETRY_INTERVAL_S", 0.0)


class Run:
    """What `Experiment.learn` does of an epoch, over a `FakeTopology`."""

    def __init__(self, folder: Path, schedule: str, topology: FakeTopology, **changes: Any):
        settings: dict[str, Any] = {
            "run_name": "run",
            "make_train_env": Counting,
            "max_seq_len": 4,
            "ckpt_base_dir": folder,
            "parallel_actors": ENVS,
            "train_timesteps_per_epoch": STEPS,
            "train_batches_per_epoch": BATCHES,
            "schedule": schedule,
            "call_timeout_s": 60.0,
        }
        self.settings = ExperimentSettings(**(settings | changes))
        self.topology, self.said = topology, []
        self.directory = RunDirectory(folder, "run")
        self.directory.create()
        self.directory.config.touch()
        self.progress = Progress(epoch=-1)
        display = Display("run", EPOCHS, enabled=False)
        display.message = display.tell = self.said.append  # type: ignore[method-assign]
        any_topology: Any = topology
        self.ring = Ring(self.settings, any_topology, self.directory, self.progress, display)
        self.schedule = make_schedule(self.settings, self.ring)
        self.saved: list[int] = []
        self.room = True  # for what the run logs
        self.saving = Saving(
            self.settings, self.ring, self.schedule, self.directory, self.describe, self.on_saved, self.settle
        )

    def describe(self) -> dict[str, Any]:
        return {"progress": self.progress.to_dict()}

    def settle(self) -> None:
        if not self.room:
            raise OSError("metrics.jsonl: No space left on device")

    def on_saved(self) -> None:
        self.saved.append(self.progress.epoch)

    def start(self) -> Run:
        self.ring.start(Cluster(2, (), local=True), {})
        return self

    def learn(self, epochs: int = EPOCHS, save: bool = True) -> Run:
        for epoch in range(self.progress.epoch + 1, epochs):
            result = self.schedule.run_epoch(epoch, last=epoch + 1 == epochs)
            self.progress.epoch = epoch
            if result.collected is not None:
                self.progress.add_frames(result.collected.frames_by_env)
            if result.learned is not None:
                self.progress.gradient_steps = result.learned.total_updates
            self.saving.after_epoch(due=save)
        self.saving.finish()
        return self

    def resume(self, topology: FakeTopology, schedule: str | None = None, **changes: Any) -> Run:
        """Another process that goes on from the newest training state."""
        state = self.directory.load_run_state(self.directory.saved_epochs()[-1])
        other = Run(self.directory.root.parent, schedule or self.settings.schedule, topology, **changes)
        vars(other.progress).update(state["progress"])
        other.ring.start(Cluster(2, (), local=True), state)
        other.schedule.load_state(state)
        return other


@pytest.mark.parametrize("learners", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_epoch_counts_the_sequences_that_it_has_sampled(tmp_path: Path, schedule: str, learners: int) -> None:
    topology = FakeTopology(2, ENVS)
    topology.plan.num_learners = learners
    run = Run(tmp_path, schedule, topology, start_learning_at_epoch=1).start()
    found = [run.schedule.run_epoch(epoch, last=epoch == 3).metrics()["replay"] for epoch in range(4)]
    of_an_epoch = BATCHES * topology.plan.batch_size * learners
    assert [row["Sequences Sampled"] for row in found] == [0, of_an_epoch, 2 * of_an_epoch, 3 * of_an_epoch]
    assert found[-1]["Timesteps"] == topology.collected, "under continuous, too: it was of the newest commit"


def assert_all_was_done(run: Run) -> None:
    assert run.progress.gradient_steps == EPOCHS * BATCHES
    assert run.topology.batches == EPOCHS * BATCHES, "the weights hold every update, those of dead groups done again"
    if run.settings.schedule != "continuous":  # which goes on collecting
        assert run.progress.total_frames == run.topology.collected == EPOCHS * STEPS * ENVS


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_stored_in_an_epoch_has_one_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    """However often it is made visible: `replay_half_life` is in epochs."""
    monkeypatch.setattr("amago_ray.driver.pacing.COMMIT_INTERVAL_S", 0.0)
    run = Run(tmp_path, schedule, FakeTopology()).start().learn()
    numbers = [number for kind, number in run.topology.log if kind == "commit"]
    assert numbers == sorted(numbers) and sorted(set(numbers)) == list(range(1, EPOCHS + 1))
    assert (len(numbers) > 2 * EPOCHS) == (schedule == "continuous")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "script",
    [
        {},
        {("train", 0): DIED},
        {("train", 1): DIED},
        {("train", 2): HANGS, ("train", 3): DIED},
        {("publish", 0): DIED},
        {("publish", 2): DIED},
        {("snapshot", 1): DIED},
        {("write_state", 1): DIED},
        {("write_state", 1): HANGS},
        {("write_state", 0): OSError("the disk is full")},
        {("mark", 1): DIED},
        {("start_learners", 0): DIED},
        {("start_learners", 0): DIED, ("start_learners", 1): HANGS},
        {("train", 1): DIED, ("start_learners", 1): DIED},
        {("snapshot", 1): DIED, ("load_state", 0): DIED},
        {("collect", 0): DIED},
        {("collect", 3): DIED, ("collect", 4): DIED},
        {("commit", 1): DIED},
        {("commit", 2): HANGS},
    ],
    ids=lambda script: " ".join(f"{kind}-{number}" for kind, number in script) or "nothing",
)
def test_whatever_dies_everything_is_done(tmp_path: Path, schedule: str, script: Script) -> None:
    run = Run(tmp_path, schedule, FakeTopology(script=script)).start().learn()
    assert_all_was_done(run)
    assert not script.keys() - {(kind, n) for kind, _ in script for n in range(run.topology.count(kind))}


class FailingEnvs(FakeTopology):
    """In every chunk an environment fails, and says so."""

    def collect(self, worker: int, *args: Any, **options: Any) -> Any:
        call, number = super().collect(worker, *args, **options), self.count("collect")
        report = call.result()
        failed = f"environment Counting failed with RuntimeError: {number}"
        return FakeCall(replace(report, env_failures=1, env_failed=failed))


def test_a_failure_of_an_environment_is_told_once_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FailingEnvs()).start()
    told: list[list[str]] = []
    for epoch in range(EPOCHS):
        before = len(run.said)
        run.learn(epoch + 1, save=False)
        told.append([text for text in run.said[before:] if "failed" in text])
    assert [len(texts) for texts in told] == [1] * EPOCHS
    assert told[0] == ["rollout worker 0: environment Counting failed with RuntimeError: 1; it was built anew"]
    assert json.loads(run.directory.events.read_text().splitlines()[-1])["text"] == told[-1][0]


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_a_learner_that_dies_leaves_the_collection_alone(tmp_path: Path, schedule: str) -> None:
    """The quota is asked for once, and counted once, although learning began anew in the middle of it."""
    healthy = Run(tmp_path / "healthy", schedule, FakeTopology(collect=2)).start().learn()
    topology = FakeTopology(script={("train", 1): DIED}, collect=2)
    run = Run(tmp_path / "dying", schedule, topology).start().learn()
    asked = [[detail for kind, detail in t.log if kind == "collect"] for t in (healthy.topology, topology)]
    assert asked[0] == asked[1]
    assert run.progress.frames_by_env == healthy.progress.frames_by_env


def test_what_a_dead_group_had_learned_since_the_newest_state_is_learned_again(tmp_path: Path) -> None:
    topology = FakeTopology(script={("train", 2): DIED})
    run = Run(tmp_path, "alternate", topology).start().learn(save=False)
    asked = [detail for kind, detail in topology.log if kind == "train"]
    assert asked == [BATCHES, BATCHES, BATCHES, 3 * BATCHES]
    assert run.progress.gradient_steps == 3 * BATCHES
    assert any("going on from the initial weights" in line for line in run.said)


def test_weights_that_are_published_after_a_death_have_caught_up(tmp_path: Path) -> None:
    topology = FakeTopology(script={("publish", 2): DIED})
    Run(tmp_path, "alternate", topology).start().learn(save=False)
    assert topology.published == [0, BATCHES, 2 * BATCHES, 3 * BATCHES]


def test_a_policy_that_was_loaded_is_what_a_group_begins_with(tmp_path: Path) -> None:
    topology = FakeTopology(script={("train", 0): DIED})
    run = Run(tmp_path, "alternate", topology).start()
    run.ring.load_policy(tmp_path / "policy.pt")
    run.learn(epochs=1)
    assert [detail for kind, detail in topology.log if kind == "load_agent"] == [tmp_path / "policy.pt"] * 2


@pytest.mark.parametrize("kind", ["train", "start_learners", "publish", "snapshot"])
def test_learners_that_do_nothing_but_die_end_the_run(tmp_path: Path, kind: str) -> None:
    topology = FakeTopology(script={(kind, number): DIED for number in range(100)})
    with pytest.raises(LearnerDied, match="it is gone"):
        Run(tmp_path, "alternate", topology).start().learn()
    assert topology.count(kind) <= 1 + max(rule.at_most or 0 for rule in failures.RULES.values())


def test_a_bug_is_raised_at_once(tmp_path: Path) -> None:
    topology = FakeTopology(script={("train", 0): ZeroDivisionError("a bug")})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        Run(tmp_path, "alternate", topology).start().learn()
    assert topology.count("train") == 1


def test_a_shard_that_is_silent_is_restarted_and_one_that_is_away_is_waited_for(tmp_path: Path) -> None:
    topology = FakeTopology(script={("commit", 1): HANGS, ("commit", 2): DIED})
    run = Run(tmp_path, "alternate", topology).start().learn()
    assert ("restart shard", 0) in topology.log
    assert any("it is silent: restarting it" in line for line in run.said)
    events = [json.loads(line) for line in run.directory.events.read_text().splitlines()]
    assert events[0]["text"] == "the run begins with 2 rollout workers, 1 replay shard, 1 learner"
    assert [event["text"] for event in events[1:]] == run.said, "who looks at the folder sees what the user was told"
    assert [event["epoch"] for event in events] == sorted(event["epoch"] for event in events)


def test_a_worker_that_hangs_is_restarted_and_its_share_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = FakeTopology(script={("collect", 0): DIED}, collect=3)
    run = Run(tmp_path, "alternate", topology, call_timeout_s=1e-9).start()
    collection = run.ring.start_collecting(0)
    run.ring.drive(collection, None)
    assert ("restart worker", 0) in topology.log and topology.collected == STEPS * ENVS
    assert any("rollout worker 0 is silent for 1e-09 s (call_timeout_s): restarting it" in line for line in run.said)


def test_a_worker_that_died_while_it_was_not_asked_is_told_of_and_counted(tmp_path: Path) -> None:
    topology = FakeTopology()
    run = Run(tmp_path, "alternate", topology).start()

    def deaths(epoch: int) -> int:
        result = run.schedule.run_epoch(epoch, last=False)
        run.progress.epoch = epoch
        return int(result.metrics()["collect"]["Worker Deaths"])

    assert deaths(0) == 0
    topology.lives = {1: 5}
    assert deaths(1) == 1 and deaths(2) == 0
    told = [line for line in run.said if "died" in line]
    assert told == ["rollout worker 1 died while it had nothing to do; Ray has restarted it"]
    topology.script[("collect", topology.count("collect"))] = DIED  # and comes back as another
    topology.lives = {0: 6, 1: 5}
    assert deaths(3) == 1, "a death that was seen is not news twice"
    run.ring._liveness.moves(1)
    topology.lives = {0: 6, 1: 7}
    assert deaths(4) == 0, "for no fault of its own"


def test_a_policy_that_was_loaded_over_a_state_is_kept(tmp_path: Path) -> None:
    topology = FakeTopology(script={("train", 2): DIED})
    run = Run(tmp_path, "alternate", topology).start().learn(epochs=2)
    run.ring.load_policy(tmp_path / "other.pt")
    run.schedule.run_epoch(2, last=True)
    loads = [detail for kind, detail in topology.log if kind == "load_agent"]
    assert loads == [tmp_path / "other.pt"] * 2
    assert any("going on from the weights of" in line for line in run.said)


class LostCommit(FakeTopology):
    """A shard that has everything, of which it shows some."""

    shown = 0

    def rewind_shard(self, shard: int, mark: Any) -> Any:
        staged = mark["stored"] - self.shown
        return self._call("rewind", 0, lambda: ReplayReport(0, 1, self.shown, 0, 0, 0, 0, 0, 0, staged=staged))


@pytest.mark.parametrize("shown", [0, 20, STEPS * ENVS])
def test_what_is_stored_and_not_shown_yet_is_not_said_to_be_gone(tmp_path: Path, shown: int) -> None:
    Run(tmp_path, "alternate", FakeTopology()).start().learn(epochs=1)
    topology = LostCommit()
    topology.shown = shown
    run = Run(tmp_path, "alternate", topology).resume(topology)
    stored = STEPS * ENVS
    told = [line for line in run.said if "replay begins" in line]
    folder = replay_folder(run.settings)
    assert told == [
        f"replay begins with {shown} trajectories, of {stored} when the run was saved ({folder} holds no more but "
        f"{stored - shown} that the next epoch shows)"
    ] * (shown < stored)


def test_a_group_begins_with_the_state_that_was_gone_back_to(tmp_path: Path) -> None:
    topology = FakeTopology(script={("train", 3): DIED})
    run = Run(tmp_path, "alternate", topology).start().learn(epochs=3)
    run.ring.load_state(0)
    run.progress.epoch = 0
    run.schedule.run_epoch(1, last=False)
    assert topology.batches == 2 * BATCHES and topology.published[-1] == 2 * BATCHES


def test_batches_that_made_no_whole_update_are_done_again_too(tmp_path: Path) -> None:
    topology = FakeTopology(script={("train", 1): DIED})
    run = Run(tmp_path, "alternate", topology, batches_per_update=4, train_batches_per_epoch=10).start()
    run.learn(epochs=2, save=False)
    assert topology.batches == 20


def test_a_group_that_dies_at_the_start_is_built_once_more_and_not_twice(tmp_path: Path) -> None:
    topology = FakeTopology(script={("start_learners", 0): DIED})
    Run(tmp_path, "alternate", topology).start()
    assert topology.count("start_learners") == 2


@pytest.mark.parametrize("silent", [True, False])
def test_a_learner_that_waits_for_a_silent_shard_is_not_to_blame(tmp_path: Path, silent: bool) -> None:
    script: Script = {("ping_shards", 0): HANGS} if silent else {}
    topology = FakeTopology(script=script, train=4)
    run = Run(tmp_path, "alternate", topology, call_timeout_s=1e-9).start()
    run.ring.commit()
    learning = run.ring.learn_batches(BATCHES, 0)
    learning.poll_progress()
    assert (("restart shard", 0) in topology.log) == silent
    assert topology.count("start_learners") == (1 if silent else 2)


def test_a_driver_that_was_asleep_looks_at_the_answer_before_the_clock(tmp_path: Path) -> None:
    topology = FakeTopology(train=4)
    run = Run(tmp_path, "alternate", topology, call_timeout_s=50.0).start()
    learning = run.ring.learn_batches(BATCHES, 0)
    learning.poll_progress()
    learning._first = 0
    learning._heard -= 100.0
    learning.poll_progress()
    assert topology.count("start_learners") == 1 and learning.done == BATCHES


def test_a_learner_that_dies_while_a_policy_is_loaded_is_replaced(tmp_path: Path) -> None:
    """It was taken for a file of another architecture."""
    topology = FakeTopology(script={("load_agent", 0): DIED})
    Run(tmp_path, "alternate", topology).start().ring.load_policy(tmp_path / "policy.pt")
    assert topology.count("start_learners") == 2 and topology.count("load_agent") == 2
