"""A monkey that kills and freezes a run's processes and fills their disk, and what must be true of it all the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from conftest import TESTS, TINY_NETWORKS
from system.processes import is_running, wait_until

from amago_ray.replay.storage.config import StoreConfig
from amago_ray.replay.storage.folders import shard_folders
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics

WANTED = {"worker": 3, "shard": 2, "learner": 2}
TITLES = {"worker": "ray::RolloutActor", "shard": "ray::ShardActor", "learner": "ray::LearnerActor"}
# Out of a hundred deeds. A group of learners needs some ten seconds to be there again, and would else never learn.
DEEDS = {"worker": 41, "shard": 33, "learner": 9, "driver": 8, "disk": 9}
FREEZES = 0.2  # share of deeds that freeze a process in place of killing it
WRITERS = ("shard", "learner", "driver")  # who writes into the run's folder: the disk is full for one of them
FULL_S = (2.0, 8.0)
REFUSED = "File too large"
UPDATES, STEPS, ENVS = 6, 40, 6  # of an epoch
RESUMABLE = 75
WAIT_S = 600.0  # for anything: on a machine that others use, too, starting a run takes minutes at times


@dataclass
class Deeds:
    """What was done, by process and signal, and how long it took until as many processes of the kind were there."""

    counts: Counter[str] = field(default_factory=Counter)
    recovery_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def report(self) -> dict[str, Any]:
        return {
            "deeds": dict(sorted(self.counts.items())),
            "recovery_s": {
                kind: {"median": round(float(np.median(took)), 1), "worst": round(max(took), 1), "times": len(took)}
                for kind, took in sorted(self.recovery_s.items())
            },
        }


class Prey:
    """A run in a process of its own, started again whenever it is gone.

    journal: file that workers write what was acknowledged into, see `journal`. more: gin bindings beside those here.
    """

    def __init__(self, folder: Path, epochs: int, more: Sequence[str] = ()):
        self.folder, self.journal, self._epochs = folder, folder / "journal", epochs
        self.log = open(folder / "log", "w")
        file = folder / "prey.gin"
        bindings = (
            "import system.journal",
            *TINY_NETWORKS,
            "Experiment.run_name = 'prey'",
            f"Experiment.ckpt_base_dir = {str(folder)!r}",
            "Experiment.make_train_env = @Identity",
            "Experiment.traj_encoder_type = @GRUTrajEncoder",
            "Experiment.max_seq_len = 4",
            f"Experiment.parallel_actors = {ENVS}",
            f"Experiment.train_timesteps_per_epoch = {STEPS}",
            f"Experiment.train_batches_per_epoch = {UPDATES}",
            "Experiment.batch_size = 16",
            "Experiment.learning_rate = 3e-3",
            "Experiment.lr_warmup_steps = 1",
            "Experiment.val_interval = 1000",
            "Experiment.ckpt_interval = 1",
            "Experiment.ckpt_keep_last = 2",
            "Experiment.test_episodes = 0",
            "Experiment.replay_capacity_gb = 0.5",
            "Experiment.call_timeout_s = 15.0",
            f"Experiment.num_rollout_workers = {WANTED['worker']}",
            f"Experiment.num_replay_shards = {WANTED['shard']}",
            f"Experiment.num_learners = {WANTED['learner']}",
            "Experiment.learner_cpus = 1",
            "Experiment.learner_device = 'cpu'",
        )
        file.write_text("\n".join((*bindings, *more)) + "\n")
        self._command = [sys.executable, "-m", "amago_ray.train", "--config", str(file), "--resume", "auto"]
        self.start()

    def start(self, epochs: int | None = None) -> None:
        self.journal_begins = self.journal.stat().st_size if self.journal.exists() else 0
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "RUN_JOURNAL": str(self.journal),
        }
        command = [*self._command, "--set", f"Experiment.epochs = {epochs or self._epochs}"]
        self.process = subprocess.Popen(
            command, env=env, cwd=self.folder, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def pids(self) -> dict[str, list[int]]:
        """Of the run's processes, by kind."""
        found: dict[str, list[int]] = {kind: [] for kind in TITLES}
        for child in self.family():
            try:
                title = "".join(child.cmdline()[:1])  # empty where the process has just ended
            except psutil.Error:
                continue
            for kind, start in TITLES.items():
                if title.startswith(start):
                    found[kind].append(child.pid)
        return found

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def is_whole(self) -> bool:
        assert self.process.poll() is None, f"the run ended by itself: {self.words}"
        return {kind: len(pids) for kind, pids in self.pids().items()} == WANTED

    def pick(self, kind: str, rng: random.Random) -> int | None:
        """The process id of one of a kind; None where there is none just now."""
        pids = [self.process.pid] if kind == "driver" else self.pids()[kind]
        return rng.choice(pids) if pids else None

    def rows(self, section: str) -> list[dict[str, Any]]:
        """What the run has logged so far."""
        there = (self.run / "metrics.jsonl").is_file()
        return [row for row in read_metrics(self.run) if row["section"] == section] if there else []

    def kill_driver(self) -> None:
        """And see to it that its processes end by themselves."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        # Two of Ray's own processes notice only after a minute.
        own = [child for child in family if not self._is_slow(child)]
        wait_until(lambda: not any(child.is_running() for child in own), "processes outlive their driver", WAIT_S)

    @staticmethod
    def _is_slow(child: psutil.Process) -> bool:
        try:
            return child.cmdline()[:1] in (["ray::RuntimeEnvAgent"], ["ray::DashboardAgent"])
        except psutil.Error:
            return True

    @property
    def words(self) -> str:
        """The last that the run has said."""
        return self.words_ever[-3000:]

    @property
    def words_ever(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def run(self) -> Path:
        return self.folder / "prey"


def set_full(pid: int, full: bool) -> None:
    """Let no write of a process into a file succeed, or each. As on a full disk, what is there can be read and removed.

    Raises ProcessLookupError where it is gone.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))


def hunt(prey: Prey, seconds: float, interval_s: float, seed: int) -> Deeds:
    """Do to the run, once it is whole for the first time, what DEEDS says, for so many seconds."""
    rng, deeds = random.Random(seed), Deeds()
    wait_until(lambda: prey.is_whole() and (prey.run / "metrics.jsonl").exists(), "the run does not start", WAIT_S)
    end = time.monotonic() + seconds
    away: dict[str, tuple[float, int]] = {}
    full: dict[int, float] = {}  # until when
    while time.monotonic() < end:
        time.sleep(rng.expovariate(1 / interval_s))
        now, pids = time.monotonic(), prey.pids()
        for kind, (since, gone) in list(away.items()):
            if len(pids.get(kind, ())) == WANTED.get(kind) and gone not in pids[kind]:
                deeds.recovery_s[kind].append(now - since)
                del away[kind]
        for pid, until in list(full.items()):
            if now > until:
                _has_room(pid)
                del full[pid]
        kind = rng.choices(list(DEEDS), list(DEEDS.values()))[0]
        if prey.process.poll() is not None:
            raise AssertionError(f"the run ended by itself: {prey.words}")
        if kind == "driver":
            prey.kill_driver()
            deeds.counts["driver SIGKILL"] += 1
            epochs = len(prey.rows("train"))
            prey.start()
            wait_until(prey.is_whole, "the run does not come back", WAIT_S)
            deeds.recovery_s["driver"].append(time.monotonic() - now)
            # On a machine that is busy, a start may take longer than the time until the next time the driver is killed.
            wait_until(lambda n=epochs: len(prey.rows("train")) > n, "no epoch after the driver was killed", WAIT_S)
            away.clear()
        elif kind == "disk":
            writer = rng.choice(WRITERS)
            pid = prey.pick(writer, rng)
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    set_full(pid, True)
                    full[pid] = now + rng.uniform(*FULL_S)
                    deeds.counts[f"{writer} disk full"] += 1
        elif pids[kind]:
            victim = rng.choice(pids[kind])
            deed = signal.SIGSTOP if rng.random() < FREEZES else signal.SIGKILL
            try:
                os.kill(victim, deed)
            except ProcessLookupError:
                continue
            deeds.counts[f"{kind} {deed.name}"] += 1
            away.setdefault(kind, (now, victim))
    for pid in full:
        _has_room(pid)
    return deeds


def _has_room(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it died meanwhile
        set_full(pid, False)


def one_by_one(prey: Prey, seed: int) -> Deeds:
    """Each kind of deed once, in an order drawn by the seed; the next when the run has got over the last one.

    But for the driver's own end, which is that of the run (see `end_and_check`).
    """
    rng, deeds = random.Random(seed), Deeds()
    todo = [
        *((kind, signal.SIGKILL.name) for kind in WANTED),
        ("worker", signal.SIGSTOP.name),
        *((kind, "disk full") for kind in WRITERS),
    ]
    rng.shuffle(todo)
    wait_until(lambda: prey.is_whole() and bool(prey.rows("train")), "the run does not start", WAIT_S)
    for kind, deed in todo:
        began, pid = time.monotonic(), prey.pick(kind, rng)
        assert pid is not None, f"there is no {kind}"
        if deed == "disk full":
            _fill_for_a_while(prey, kind, pid)
        else:
            os.kill(pid, signal.Signals[deed])
            wait_until(lambda gone=pid: not is_running(gone), f"{kind} after {deed} is not replaced", WAIT_S)
        wait_until(prey.is_whole, f"a {kind} is missing after {deed}", WAIT_S)
        epochs = len(prey.rows("train"))
        wait_until(lambda n=epochs: len(prey.rows("train")) > n, f"no epoch ends after {kind} {deed}", WAIT_S)
        deeds.counts[f"{kind} {deed}"] += 1
        deeds.recovery_s[kind].append(time.monotonic() - began)
    return deeds


def _fill_for_a_while(prey: Prey, kind: str, pid: int) -> None:
    """Until the run has said so; a driver, whose words go there, too, until two epochs have passed."""
    before, policy = prey.words_ever.count(REFUSED), prey.run / "ckpts" / "latest" / "policy.pt"
    set_full(pid, True)
    for _ in range(2 if kind == "driver" else 0):
        written = policy.stat().st_mtime_ns
        wait_until(lambda at=written: policy.stat().st_mtime_ns != at, "no epoch ends while the disk is full", WAIT_S)
    if kind == "driver":
        set_full(pid, False)
    wait_until(lambda: prey.words_ever.count(REFUSED) > before, f"a full disk of the {kind} is not told", WAIT_S)
    set_full(pid, False)


def end_and_check(prey: Prey, deeds: Deeds, by: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
    """End the run by a signal, let it go on for two epochs in peace, and look at everything that it has left."""
    if by == signal.SIGKILL:
        prey.kill_driver()
        deeds.counts["driver SIGKILL"] += 1
    else:
        prey.process.send_signal(by)
        assert prey.process.wait(WAIT_S) == RESUMABLE, prey.words
    done = max(row["epoch"] for row in read_metrics(prey.run)) + 1
    prey.start(epochs=done + 2)
    assert prey.process.wait(WAIT_S) == 0, prey.words
    rows = read_metrics(prey.run)
    collected = [row for row in rows if row["section"] == "collect"]
    learned = [row for row in rows if row["section"] == "train"]
    assert [row["epoch"] for row in collected] == [row["epoch"] for row in learned] == list(range(done + 2))
    assert [row["gradient_steps"] for row in learned] == [UPDATES * (e + 1) for e in range(done + 2)], "every update"
    assert [row["total_frames"] for row in collected] == [STEPS * ENVS * (e + 1) for e in range(done + 2)]
    stored: Counter[tuple[int, int, int]] = Counter()
    for folder in shard_folders(prey.run / "replay"):
        store = TrajectoryStore(StoreConfig(folder), read_only=True)
        assert not store.damaged(np.arange(store.table.first, store.table.end), anew=True)
        stored.update((int(r["worker"]), int(r["incarnation"]), int(r["sequence"])) for r in store.table.rows)
        store.close()
    assert max(stored.values()) == 1, "nothing is there twice"
    lines = prey.journal.read_bytes()[prey.journal_begins :].decode().splitlines()
    acknowledged = {tuple(json.loads(line)) for line in lines}
    assert acknowledged and acknowledged <= stored.keys(), "nothing that was acknowledged is lost"
    first, last = (np.mean([row[f"collect/{AVERAGE_RETURN}"] for row in part]) for part in (
        collected[:3], collected[-3:]
    ))  # fmt: skip
    return deeds.report() | {
        "a full disk was told": prey.words_ever.count(REFUSED),
        "epochs": done + 2,
        "updates": learned[-1]["gradient_steps"],
        "frames": collected[-1]["total_frames"],
        "trajectories": len(stored),
        "return": [round(float(first), 3), round(float(last), 3)],
    }
