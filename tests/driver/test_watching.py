"""Callbacks are called where they should be, see the run as it is, end it in good order, are named when they fail."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gin
import pytest
from fake_topology import FakeTopology, wait_any

from amago_ray import Experiment, config
from amago_ray.driver.placement import Cluster
from amago_ray.driver.watching import make_callbacks, sinks, wandb_options
from amago_ray.envs.builtin import Counting
from amago_ray.messages import CannotGoOn, EpisodeResult
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.watch.callbacks import Callback, KeepBestPolicy, RunView, StopAtReturn, ValidationVideo, check_hooks
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics
from amago_ray.watch.sinks import MetricsSink, Row, TensorboardSink

OF_AN_EPOCH = ("after_collection", "after_learning", "after_validation", "on_checkpoint", "after_epoch")
PLACES = ("on_start", *OF_AN_EPOCH, "on_end")
SCHEDULES = ("alternate", "overlap", "continuous")


class Recorder(Callback):
    """Notes every call, and does at one of them what it is given."""

    def __init__(self, place: str = "", epoch: int = 0, action: Any = None):
        self.calls: list[tuple[str, int]] = []
        self.metrics: list[dict[str, float]] = []
        self._at, self._action = (place, epoch), action


def _note(place: str) -> Any:
    def method(self: Recorder, view: RunView) -> None:
        self.calls.append((place, view.epoch))
        self.metrics.append(dict(view.metrics))
        if (place, view.epoch) == self._at:
            self._action(view)

    return method


for _place in PLACES:
    setattr(Recorder, _place, _note(_place))


class Evaluated(SimpleNamespace):
    episodes = [EpisodeResult("fake", 2.5, 10)]

    def summary(self) -> dict[str, float]:
        return {AVERAGE_RETURN: 2.5}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_networks: None) -> Any:
    """Makes an experiment over processes that are none, ready to learn."""
    monkeypatch.setattr("amago_ray.driver.jobs.wait_any", wait_any)
    monkeypatch.setattr("amago_ray.driver.liveness.RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr("amago_ray.driver.jobs.POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr("amago_ray.experiment.connect", lambda *_: (Cluster(2, (), local=True), False))
    monkeypatch.setattr("amago_ray.experiment.check_fits", lambda roles, cluster: None)
    monkeypatch.setattr("amago_ray.experiment.overview", lambda *args: "")
    monkeypatch.setattr("amago_ray.experiment.Topology", lambda plan, in_group: FakeTopology())
    monkeypatch.setattr("amago_ray.driver.ring.Ring.validate", lambda ring: Evaluated())

    def make(*callbacks: Callback, **changes: Any) -> Experiment:
        settings: dict[str, Any] = {
            "run_name": "run",
            "make_train_env": Counting,
            "traj_encoder_type": GRUTrajEncoder,
            "max_seq_len": 4,
            "ckpt_base_dir": tmp_path,
            "parallel_actors": 4,
            "train_timesteps_per_epoch": 10,
            "train_batches_per_epoch": 6,
            "schedule": "alternate",
            "epochs": 4,
            "val_interval": 2,
            "ckpt_interval": 3,
            "always_save_latest": False,
            "verbose": False,
        }
        return Experiment(**(settings | changes), callbacks=list(callbacks))

    return make


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_place_comes_once_and_in_its_order(run: Any, schedule: str) -> None:
    recorder = Recorder()
    run(recorder, schedule=schedule).learn()
    places = [place for place in OF_AN_EPOCH if place != "on_checkpoint"]
    expected = [(place, i) for i in range(4) for place in places if (place, i) != ("after_validation", 1)]
    saved = [epoch for place, epoch in recorder.calls if place == "on_checkpoint"]
    calls = [call for call in recorder.calls if call[0] != "on_checkpoint"]
    assert calls == [("on_start", -1), *expected, ("on_end", 3)]
    # Written while the run goes on: when each is complete, which at the end all are.
    assert len(saved) == 2 and saved[-1] == 3 and saved == sorted(saved) and recorder.calls[-1] == ("on_end", 3)


def test_what_an_epoch_did_not_do_is_not_announced(run: Any) -> None:
    recorder = Recorder()
    run(recorder, start_learning_at_epoch=1, start_collecting_at_epoch=0).learn(until=2)
    assert ("after_learning", 0) not in recorder.calls and ("after_learning", 1) in recorder.calls
    assert recorder.calls[-1] == ("after_epoch", 1), "the run goes on with the next call"


def test_parts_of_a_run_are_one_run(run: Any) -> None:
    recorder = Recorder()
    experiment = run(recorder)
    for until in (1, 3, None):
        experiment.learn(until)
    assert [call for call in recorder.calls if call[0] in ("on_start", "on_end")] == [("on_start", -1), ("on_end", 3)]


def test_a_callback_sees_what_was_logged_and_cannot_change_it(run: Any) -> None:
    def meddle(view: RunView) -> None:
        view.progress.frames_by_env["fake"] = 7
        view.progress.epoch = 99
        dict(view.metrics).clear()

    recorder = Recorder("after_learning", 0, meddle)
    experiment = run(recorder)
    experiment.learn()
    seen = dict(zip(recorder.calls, recorder.metrics, strict=True))
    assert seen["on_start", -1] == {}
    for place in ("after_collection", "after_learning"):
        assert {"collect/Frames per Second", "train/Total Loss", "replay/Trajectories"} <= seen[place, 0].keys()
        assert f"val/{AVERAGE_RETURN}" not in seen[place, 0]
    assert seen["after_validation", 0][f"val/{AVERAGE_RETURN}"] == 2.5
    assert experiment.progress.total_frames == 4 * 40 and experiment.progress.epoch == 3


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("place", OF_AN_EPOCH)
def test_a_run_that_is_stopped_ends_in_good_order(run: Any, schedule: str, place: str) -> None:
    stop = lambda view: view.stop("enough")  # noqa: E731
    # A state is complete in a later epoch than it is of, or in the same.
    recorders = [Recorder(place, n, stop) for n in (range(10) if place == "on_checkpoint" else [2])]
    recorder, other = recorders[0], Recorder()
    experiment = run(*recorders, other, schedule=schedule, epochs=10, ckpt_interval=3)
    experiment.learn()
    epoch = experiment.progress.epoch
    assert experiment.stop_reason == "enough" and (place == "on_checkpoint" or epoch == 2)
    assert experiment.directory.saved_epochs()[-1] == epoch and experiment.directory.latest_policy.exists()
    stop = json.loads(experiment.directory.stopped.read_text())
    assert stop == {"epoch": epoch, "reason": "enough", "failed": False}
    assert recorder.calls == other.calls, "all callbacks of a place are called, and the epoch is brought to its end"
    assert recorder.calls[-1] == ("on_end", epoch) and ("after_epoch", epoch) in recorder.calls
    assert [row["epoch"] for row in read_metrics(experiment.directory.root) if row["section"] == "train"] == [
        *range(epoch + 1)
    ]


def test_a_stop_before_the_first_epoch(run: Any) -> None:
    recorder = Recorder("on_start", -1, lambda view: view.stop("not today"))
    experiment = run(recorder)
    experiment.learn()
    assert recorder.calls == [("on_start", -1), ("on_end", -1)]
    assert experiment.directory.saved_epochs() == [] and experiment.progress.epoch == -1


def test_a_stopped_run_can_be_told_to_go_on(run: Any) -> None:
    recorder = Recorder("after_learning", 1, lambda view: view.stop("enough"))
    experiment = run(recorder)
    experiment.learn()
    experiment.learn()
    assert experiment.progress.epoch == 3 and experiment.stop_reason is None
    assert [call for call in recorder.calls if call[0] == "on_start"] == [("on_start", -1), ("on_start", 1)]


def test_what_may_be_changed_between_two_calls_of_learn(run: Any) -> None:
    seen: list[tuple[int, int]] = []
    recorder = Recorder("on_end", 3, lambda view: seen.append((view.epoch, view.epochs)))
    experiment = run(recorder)
    experiment.learn()
    experiment.epochs, experiment.val_interval = 6, 5
    recorder._at = ("on_end", 5)
    experiment.learn()
    assert seen == [(3, 4), (5, 6)] and experiment.progress.epoch == 5
    assert [epoch for place, epoch in recorder.calls if place == "after_validation"] == [0, 2, 3, 5]
    with pytest.raises(AttributeError, match="^Experiment.learning_rate=5.0: this experiment has started with 0.0001"):
        experiment.learning_rate = 5.0


def test_what_needs_processes_says_that_they_are_gone(run: Any) -> None:
    experiment = run()
    experiment.learn(until=2)
    experiment.close()
    for ask in (experiment.validate, experiment.learn, experiment.save):
        with pytest.raises(ValueError, match=r"^this experiment is closed: start\(resume=True\) goes on with it$"):
            ask()
    with pytest.raises(ValueError, match=r"already holds a run: resume it \(--resume, or start\(resume=True\) in"):
        experiment.start()


@pytest.mark.parametrize(
    ("place", "epoch", "when"),
    [("on_start", -1, "before the first epoch"), ("after_validation", 2, "after epoch 3")],
)
def test_an_exception_ends_the_run_and_names_the_callback(run: Any, place: str, epoch: int, when: str) -> None:
    def fail(view: RunView) -> None:
        raise KeyError("nothing here")

    recorder = Recorder(place, epoch, fail)
    with pytest.raises(KeyError, match="nothing here") as caught:
        run(recorder).learn()
    text = "".join(traceback.format_exception(caught.value))
    assert "in fail" in text and 'raise KeyError("nothing here")' in text
    assert "raised by the callback" in text and "Recorder" in text and f"in {place}, {when}" in text
    assert ("on_end", epoch) not in recorder.calls


def test_the_best_policy_and_an_early_stop_in_one_run(run: Any) -> None:
    experiment = run(KeepBestPolicy(), StopAtReturn(2.0))
    experiment.learn()
    assert experiment.progress.epoch == 0 and experiment.stop_reason == "val/return = 2.5 has reached 2"
    assert experiment.directory.best_policy.read_text() == "6", "what FakeTopology writes: the batches of one epoch"
    assert {path.name for path in experiment.directory.best_policy.parent.iterdir()} == {"policy.pt", "policy.json"}


def test_callbacks_are_checked_before_any_process_starts(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr("amago_ray.experiment.connect", connect)
    with pytest.raises(
        ValueError, match=r"Experiment.callbacks: ValidationVideo\(every=5\): Counting .*does not render"
    ):
        run(ValidationVideo(5)).learn()
    monkeypatch.setattr("amago_ray.watch.sinks.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="log_to_tensorboard"):
        run(log_to_tensorboard=True).learn()


@pytest.mark.parametrize("given", [[Counting], StopAtReturn(1.0), "StopAtReturn", [None]])
def test_what_is_no_callback_is_refused(given: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Experiment\.callbacks=.*: it is a list of objects of subclasses of Callback"
    ):
        Experiment(run_name="run", make_train_env=Counting, max_seq_len=4, callbacks=given)


class Misspelt(Callback):
    after_all = None  # no method

    def after_epochs(self, view: RunView) -> None: ...


class OfAnotherPackage(Callback):
    def on_train_begin(self, view: RunView) -> None: ...


class WithoutView(Callback):
    def after_epoch(self) -> None: ...  # type: ignore[override]


class WithMore(Callback):
    def on_end(self, view: RunView, reason: str) -> None: ...  # type: ignore[override]


class ChecksNothing(Callback):
    def check(self) -> None: ...  # type: ignore[override]


class OfNoMethod(Callback):
    on_start = None  # type: ignore[assignment]


class OtherNames(Callback):
    def after_epoch(self, run: RunView, again: bool = False) -> None: ...

    @staticmethod
    def on_end(*given: Any) -> None: ...


def test_methods_that_can_be_called_with_the_view_pass() -> None:
    check_hooks(OtherNames())
    mocked: Any = Callback()
    mocked.after_epoch = print
    check_hooks(mocked)


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (WithoutView, r"its method 'after_epoch' must take one argument: def after_epoch\(self, view\)$"),
        (WithMore, r"its method 'on_end' must take one argument: def on_end\(self, view\)$"),
        (ChecksNothing, r"its method 'check' must take one argument: def check\(self, make_val_env\)$"),
        (OfNoMethod, r"its method 'on_start' must take one argument: def on_start\(self, view\)$"),
        (Misspelt, r"Misspelt.*: its method 'after_epochs' would never be called; did you mean 'after_epoch'\?"),
        (OfAnotherPackage, "'on_train_begin' would never be called; .*on_start"),
    ],
)
def test_a_method_that_would_never_be_called_or_not_with_the_view(callback: type[Callback], said: str) -> None:
    for given in (callback, callback()):
        settings = {"make_train_env": Counting, "max_seq_len": 4, "callbacks": [given]}
        with pytest.raises(ValueError, match=rf"^Experiment.callbacks: .*{said}"):
            make_callbacks(Experiment(run_name="run", **settings))


def test_callbacks_of_a_gin_file_run_again_from_config_txt(run: Any) -> None:
    bindings = [
        "Experiment.callbacks = [@StopAtReturn(), @KeepBestPolicy]",
        "StopAtReturn.threshold = 2.0",
        "KeepBestPolicy.metric = 'collect/return'",
    ]
    config.load([], bindings)
    experiment = Experiment(run_name="run", make_train_env=Counting, max_seq_len=4, val_interval=3)
    made = make_callbacks(experiment)
    assert [repr(callback) for callback in made] == [
        "StopAtReturn(threshold=2.0, metric='val/return')",
        "KeepBestPolicy(metric='collect/return')",
    ]
    text = config.record("Experiment", {"callbacks": experiment.callbacks, "run_name": "run"})
    assert "# Experiment.callbacks was given in Python: [StopAtReturn(threshold=2.0" in text
    gin.clear_config()
    config.load([], text.splitlines())
    again = Experiment(make_train_env=Counting, max_seq_len=4)  # type: ignore[call-arg]
    assert make_callbacks(again) == made


def test_callbacks_of_python_are_a_comment_in_config_txt(run: Any) -> None:
    experiment = run(StopAtReturn(2.0))
    experiment.learn()
    assert "# Experiment.callbacks was given in Python: [StopAtReturn(" in experiment.directory.config.read_text()
    config.load([experiment.directory.config])
    assert Experiment(make_train_env=Counting, max_seq_len=4).callbacks == ()  # type: ignore[call-arg]


def test_a_resumed_run_is_no_longer_a_stopped_one(run: Any) -> None:
    with run(Recorder("after_learning", 1, lambda view: view.stop("enough"))) as experiment:
        experiment.learn()
    assert experiment.directory.stopped.exists()
    recorder = Recorder()
    again = run(recorder)
    again.start(resume=True)
    assert not again.directory.stopped.exists()
    again.learn()
    assert recorder.calls[0] == ("on_start", 1) and recorder.calls[-1] == ("on_end", 3)


def test_where_rows_go(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sinks(run(), tmp_path, {}) == []
    (sink,) = sinks(run(log_to_tensorboard=True), tmp_path, {})
    assert isinstance(sink, TensorboardSink)
    sink.close()
    monkeypatch.delenv("AMAGO_WANDB_PROJECT", raising=False)
    assert wandb_options(run(), None).project == "amago_ray"
    monkeypatch.setenv("AMAGO_WANDB_PROJECT", "of the environment")
    monkeypatch.setenv("AMAGO_WANDB_ENTITY", "us")
    options = wandb_options(run(), "id")
    assert (options.project, options.entity, options.run_id) == ("of the environment", "us", "id")
    assert wandb_options(run(wandb_project="given"), None).project == "given"


def test_a_trial_of_several_does_not_go_on_with_the_best_of_another(run: Any) -> None:
    """`--trials` gives every run the same objects."""
    keep = KeepBestPolicy()
    for name in ("first", "second"):
        with run(keep, run_name=name, epochs=1) as experiment:
            experiment.learn()
        assert experiment.directory.best_policy.exists()


class OfPython(FFTstepEncoder):
    """It has no name for gin."""


def test_a_run_of_python_goes_on_with_what_it_is_given_again(run: Any) -> None:
    with run(tstep_encoder_type=OfPython) as experiment:
        experiment.learn()
    text = experiment.directory.config.read_text()
    config.load([experiment.directory.config])
    with pytest.raises(ValueError, match=r"does not say what Experiment\.tstep_encoder_type \(<class '.*OfPython'>\)"):
        run()
    assert experiment.directory.config.read_text() == text
    with run(tstep_encoder_type=OfPython, epochs=5) as again:
        again.start(resume=True)
    assert again.agent_spec.tstep_encoder_type is OfPython
    assert "# Experiment.tstep_encoder_type was given in Python: " in again.directory.config.read_text()


class Refusing(MetricsSink):
    """Refuses all rows, and to be closed."""

    name = "a place"

    def log(self, section: str, row: Row) -> None:
        raise ConnectionResetError("Connection lost")

    def log_video(self, name: str, path: Path, row: Row) -> None:
        raise ConnectionResetError("Connection lost")

    def rewind(self, kept: Any, dropped: Any) -> None:
        raise ConnectionResetError("Connection lost")

    def close(self) -> None:
        raise ConnectionResetError("Connection lost")


def test_a_place_for_rows_that_fails_ends_no_run(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amago_ray.driver.watching.sinks", lambda *_: [Refusing()])
    with run() as experiment:
        experiment.learn(until=3)
        experiment.load_checkpoint(0)
        experiment.learn()
    rows = read_metrics(experiment.directory.root)
    assert [row["epoch"] for row in rows if row["section"] == "train"] == [0, 1, 2, 3]
    told = [json.loads(line)["text"] for line in experiment.directory.events.read_text().splitlines()]
    places = [text for text in told if text.startswith("a place")]
    begins, back, lacks = places
    assert begins.startswith("a place does not take rows (Connection lost): they are tried again with each epoch")
    assert back.startswith("a place could not go back to where the run goes on (Connection lost)")
    assert lacks == f"a place lacks {len(rows)} rows, which metrics.jsonl has (Connection lost)"
    assert begins in capsys.readouterr().err


def test_everything_is_closed_whatever_one_part_raises(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = run()
    experiment.learn(until=1)
    topology = experiment._ring._topology
    closed: list[str] = []

    def refuse() -> None:
        closed.append("watching")
        raise OSError("no room")

    monkeypatch.setattr(experiment._watching, "close", refuse)
    monkeypatch.setattr(topology, "close", lambda: closed.append("processes"))
    experiment._held.callback(closed.append, "what is held")
    with pytest.raises(OSError, match="no room"):
        experiment.close()
    assert closed == ["watching", "processes", "what is held"]
    experiment.close()
    assert len(closed) == 3
    with run() as again:
        again.start(resume=True)  # the lock is free


def test_a_run_whose_callback_fails_can_be_closed_twice(run: Any) -> None:
    def fail(view: RunView) -> None:
        raise KeyError("nothing here")

    experiment = run(Recorder("after_epoch", 1, fail), log_to_tensorboard=True)
    with pytest.raises(KeyError):
        experiment.learn()
    watching = experiment._watching
    for close in (experiment.close, experiment.close, watching.close):
        close()
    with run() as again:
        again.start(resume="auto")


@pytest.mark.parametrize("place", ["after_epoch", "after_collection"])
def test_a_run_whose_folder_is_gone_says_so_and_makes_none(run: Any, tmp_path: Path, place: str) -> None:
    """Also where it is a row that finds no folder first."""
    recorder = Recorder(place, 1, lambda view: view.directory.root.rename(tmp_path / "renamed"))
    with run(recorder, log_to_tensorboard=True, epochs=6) as experiment:
        with pytest.raises(CannotGoOn, match=r"/run is gone, or its config\.txt: removed, renamed or unmounted while"):
            experiment.learn()
    assert not experiment.directory.root.exists()
    (tmp_path / "renamed").rename(experiment.directory.root)
    with run(epochs=6) as again:
        again.start(resume="auto")
        again.learn()
    rows = [row["epoch"] for row in read_metrics(again.directory.root) if row["section"] == "train"]
    assert rows == [*range(6)]
