"""Odd values of settings and damaged files: one line or success, never a traceback, never a hang.

`make fuzz` tries many more; FUZZ_EXAMPLES says how many of each kind.
"""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from error_scene import MACHINE, Outcome, Scene, finished_run, forget_finished_run
from fake_topology import FakeTopology
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amago_ray import config
from amago_ray.config.registry import matching, parameters_of
from amago_ray.experiment import Experiment

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
HANGS_S = 60  # on a machine that is busy with other things
OWNERS = (
    "Experiment",
    "Agent",
    "FFTstepEncoder",
    "GRUTrajEncoder",
    "TformerTrajEncoder",
    "MambaTrajEncoder",
    "Actor",
    "NCritics",
    "NCriticsTwoHot",
    "Multigammas",
    "EpsilonGreedy",
    "BilevelEpsilonGreedy",
    "PopArt",
    "Counting",
    "HindsightRelabeler",
    "MixtureOfDatasets",
    "StoredDataset",
    "AmagoDataset",
    "KeepBestPolicy",
    "StopAtReturn",
    "ValidationVideo",
)
# Chosen beside a value, so that what it is of is in use.
PARTS = (
    (),
    ("Experiment.traj_encoder_type = @TformerTrajEncoder",),
    ("Experiment.traj_encoder_type = @MambaTrajEncoder",),
    ("Agent.critic_type = @NCriticsTwoHot",),
    ("Experiment.agent_type = @MultiTaskAgent",),
    ("Experiment.make_train_env = @Counting",),
    ("Experiment.exploration_wrapper_type = @BilevelEpsilonGreedy",),
    ("Experiment.relabeler_type = @HindsightRelabeler",),
    ("Experiment.dataset = @StoredDataset()", "StoredDataset.path = 'nowhere'"),
    ("Experiment.callbacks = [@KeepBestPolicy(), @StopAtReturn()]", "StopAtReturn.threshold = 1.0"),
)
# Sizes are small, or beyond all that there is: what lies between is what somebody may want, and have to wait for.
NUMBERS = st.sampled_from([-(10**18), -7, -1, 0, 1, 2, 3, 5, 64, 10**18, 10**40]) | st.floats(width=32)
TEXTS = st.sampled_from(["", "x", "../x", "/etc/passwd", "no", "auto", "a\nb", "\0", "é", "%x", "@x", "x" * 5000])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(TEXTS, PLAIN, max_size=2) | st.tuples(PLAIN, PLAIN)
NAMES = (
    "@Agent",
    "@GRUTrajEncoder",
    "@Counting",
    "@Counting()",
    "@no_such_name",
    "%no_such_macro",
    "%inf",
    "[1, ",
    "}",
)
# Of these a large number is built one by one, for as long as it takes.
LOOPS = {"n_layers", "episode_length", "residual_blocks", "num_critics", "n_heads"}


@pytest.fixture(scope="module", autouse=True)
def no_run_is_kept() -> Iterator[None]:
    finished_run()
    yield
    forget_finished_run()


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise AssertionError(f"it hangs: not done after {HANGS_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line_or_success(outcome: Outcome, good: tuple[int, ...] = (0,)) -> None:
    assert outcome.status in (*good, 2), outcome.err
    if outcome.status == 2:
        assert len(outcome.line) < 6000
    assert "Traceback" not in outcome.err


@contextmanager
def a_scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what may be as it is, and is said on stderr too
        patch.setattr(Experiment, "learn", lambda self, until=None: None)
        yield Scene(Path(folder), patch, MACHINE, topology=FakeTopology)


@functools.cache
def parameters() -> list[str]:
    """Every setting that is tried."""
    config.load([])
    return [
        f"{owner}.{name}"
        for owner in OWNERS
        for name in parameters_of(matching(owner)[0])
        if name not in LOOPS and not (owner == "Experiment" and name in ("ray_address", "replay_dir", "ckpt_base_dir"))
    ]


@st.composite
def bindings(draw: st.DrawFn) -> tuple[str, ...]:
    """One or two settings with values that may be anything, and parts of a run that use them."""
    chosen = list(draw(st.sampled_from(PARTS)))
    for name in draw(st.lists(st.sampled_from(parameters()), min_size=1, max_size=2)):
        value = draw(VALUES.map(config.literal) | st.sampled_from(NAMES))
        chosen.append(f"{name} = {value}")
    return tuple(chosen)


FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 100
)


@FUZZ
@given(bindings())
def test_values_of_settings(chosen: tuple[str, ...]) -> None:
    with a_scene() as scene, no_hang():
        outcome = scene.command("--config", scene.config(*chosen))
        one_line_or_success(outcome)
        assert outcome.status == 0 or set(outcome.left) <= {"runs"}, outcome.left


STATE = "ckpts/training_states/run_epoch_0"
FILES = (
    "config.txt",
    "spaces.json",
    "metrics.jsonl",
    "ckpts/latest/policy.pt",
    "replay/spaces.json",
    "replay/shard_0/*.segment",
    f"{STATE}/run_state.json",
    f"{STATE}/model.safetensors",
    f"{STATE}/optimizer.bin",
    f"{STATE}/*.pkl",
    f"{STATE}/learner_counters.pt",
)
RESUME, OFFLINE = ("RESUME",), ("OFFLINE",)
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "config.txt": (("evaluate", "RUN", "--episodes", "1"), ("status", "RUN"), ("replay", "RUN", "--verify")),
    "spaces.json": (("export", "RUN", "--format", "torch"),),
    "metrics.jsonl": (("status", "RUN"), RESUME),
    "ckpts/latest/policy.pt": (("evaluate", "RUN", "--episodes", "1"),),
    "replay/spaces.json": (OFFLINE,),
    "replay/shard_0/*.segment": (("replay", "RUN", "--verify"), ("status", "RUN"), OFFLINE),
}
DAMAGES = ("cut", "flip", "zeros", "empty", "folder", "gone", "other", "longer")


def damage(path: Path, how: str, where: float, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    at = int(where * len(content))
    if how in ("gone", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        return
    if how == "flip" and content:
        at = min(at, len(content) - 1)
        content[at] ^= 1 + data[0] % 255
    elif how == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif how == "longer":
        content += data
    made = {"cut": content[:at], "empty": bytearray(), "other": bytearray(data)}.get(how, content)
    path.write_bytes(made)


@FUZZ
@given(
    st.sampled_from(FILES),
    st.sampled_from(DAMAGES),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=99),
    st.integers(0, 5),
)
def test_damaged_files(name: str, how: str, where: float, data: bytes, command: int) -> None:
    with a_scene() as scene, no_hang():
        run = scene.run
        damage(next(run.glob(name)), how, where, data)
        commands = COMMANDS.get(name, (RESUME,))
        one_line_or_success(use(scene, run, commands[command % len(commands)]), good=(0, 1))


def use(scene: Scene, run: Path, words: tuple[str, ...]) -> Outcome:
    """A command about the run, its continuation, or another that learns from what it has stored."""
    if words == RESUME:
        return scene.command("--config", scene.config("Experiment.epochs = 3"), "--resume")
    if words == OFFLINE:
        stored = ("Experiment.dataset = @StoredDataset()", f"StoredDataset.path = {str(run / 'replay')!r}")
        more = ("Experiment.run_name = 'offline'", "Experiment.train_timesteps_per_epoch = 0")
        return scene.command("--config", scene.config(*more, *stored))
    return scene.command(*(str(run) if word == "RUN" else word for word in words))
