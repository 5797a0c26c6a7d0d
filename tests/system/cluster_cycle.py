"""The section "Your own machines" of cluster/README.md, gone through with Ray's real launcher, test after test.

`make test-cluster` runs it and `make test` does not: it needs root and an ssh server. See own_machines.py for what the
machines are.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from system.own_machines import (
    HOME,
    KEY,
    ROOT,
    RUNS,
    Machine,
    Machines,
    check_requirements,
    cluster_file,
    own_machines,
    prepared_account,
)
from system.processes import wait_until
from system.test_determinism import rows_without_clock

from amago_ray.watch.metrics import AVERAGE_RETURN, read_metrics

pytestmark = pytest.mark.timeout(1800)  # the first time, everything is installed

FILE = f"{HOME}/local.yaml"
CONFIG = "configs/meta_frozen_lake.gin"
WORKERS = ("worker1", "worker2")
# The learner has one thread on a cluster; a local run must be told so to compute the same.
SETTINGS = (
    "Experiment.num_rollout_workers = 2",
    "Experiment.learner_cpus = 1",
    "Experiment.lr_end_factor = 1.0",  # a rate that falls by the number of epochs differs from run to run
)


class Cluster:
    """The launcher's commands for one cluster file, and a look at what they do on the machines."""

    def __init__(self, machines: Machines, runs: Path):
        self.machines = machines
        self.config = cluster_file(machines, head="head")
        self._runs = runs

    def write_file(self) -> None:
        (self.machines.launcher.home / Path(FILE).name).write_text(yaml.safe_dump(self.config))

    def ray(self, *words: str) -> str:
        """Run one of Ray's commands to its end, which must be a good one, and return what it printed."""
        result = self.machines.launcher.run("ray", *words, timeout_s=600)
        assert result.returncode == 0, without_escapes(result.stdout)
        return without_escapes(result.stdout)

    def up(self) -> None:
        """`ray up`, and wait until every machine is there."""
        self.write_file()
        self.ray("up", FILE, "--yes")
        self.wait_for_all()

    def wait_for_all(self) -> None:
        wait_until(lambda: self.num_active() == 1 + len(WORKERS), "machines are missing in `ray status`", 240)

    def num_active(self) -> int:
        status = self.ray("exec", FILE, "ray status")
        active = re.search(r"^Active:\n((?: .+\n)*)", status, re.MULTILINE)
        return sum(int(num) for num in re.findall(r"^ (\d+) ", active[1], re.MULTILINE)) if active else 0

    @contextmanager
    def submitted(self, *words: str) -> Iterator[Submission]:
        """`ray submit`, going on in the background."""
        command = ["ray", "submit", FILE, "amago_ray/train.py", "--", *map(shlex.quote, words)]
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                self.machines.launcher.command(*command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield Submission(process, out)
            finally:
                process.kill()
                process.wait()

    def rows(self, run: str, section: str) -> list[dict[str, Any]]:
        """What a run has logged so far."""
        there = (self.folder(run) / "metrics.jsonl").is_file()
        return [row for row in read_metrics(self.folder(run)) if row["section"] == section] if there else []

    def folder(self, run: str) -> Path:
        return self._runs / run

    def machine_that_only_rolls_out(self) -> Machine:
        for name in WORKERS:
            running = " ".join(self.machines.hosts[name].processes())
            if "ray::RolloutActor" in running and "ray::LearnerActor" not in running and "ray::Shard" not in running:
                return self.machines.hosts[name]
        raise AssertionError("no machine has rollout workers alone")


class Submission:
    """A running `ray submit`."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[str]):
        self._process, self._out = process, out

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        os.killpg(self._process.pid, signal.SIGINT)

    def result(self, timeout_s: float = 300.0) -> tuple[int, str]:
        """Wait for its end, and return its exit status and what it printed."""
        status = self._process.wait(timeout_s)
        self._out.seek(0)
        return status, without_escapes(self._out.read())


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def arguments(run_name: str, epochs: int, *bindings: str) -> list[str]:
    """Command line of a small run."""
    words = ["--config", CONFIG]
    for binding in (f'Experiment.run_name = "{run_name}"', f"Experiment.epochs = {epochs}", *SETTINGS, *bindings):
        words += ["--set", binding]
    return words


def returns(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row[f"collect/{AVERAGE_RETURN}"] for row in rows]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three machines, of which `ray up` has made a cluster."""
    try:
        check_requirements()
    except RuntimeError as error:
        pytest.exit(str(error), returncode=2)
    account = prepared_account(Path(sys.prefix) / "own_machines")
    runs = tmp_path_factory.mktemp("runs")
    with own_machines(account, runs, ["head", *WORKERS]) as machines:
        cluster = Cluster(machines, runs)
        cluster.ray("get-auth-token", "--generate")
        cluster.up()
        yield cluster


def test_a_submitted_run_learns_and_computes_what_a_local_one_does(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.submitted(*arguments("submitted", 12)) as submission:
        status, out = submission.result()
    assert status == 0, out
    assert f"The run is in {RUNS}/submitted" in out and "Final test over" in out
    collected = cluster.rows("submitted", "collect")
    assert [row["epoch"] for row in collected] == list(range(12))
    assert min(returns(collected)[-3:]) > returns(collected)[0] + 1.0

    local = [sys.executable, "-m", "amago_ray.train", *arguments("local", 1), "--no-final-test"]
    local[local.index(CONFIG)] = str(ROOT / CONFIG)
    subprocess.run(local, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=300)
    compared = 0
    there = {row["section"]: row for row in rows_without_clock(cluster.folder("submitted")) if row["epoch"] == 0}
    for row in rows_without_clock(tmp_path / "runs/local"):
        assert row == there[row["section"]]
        compared += 1
    assert compared >= 3


def test_a_run_goes_on_while_a_machine_is_cut_off_and_takes_it_back(cluster: Cluster) -> None:
    epochs = 40
    with cluster.submitted(*arguments("cut_off", epochs, "Experiment.call_timeout_s = 10.0")) as submission:
        wait_until(lambda: len(cluster.rows("cut_off", "train")) >= 2 or submission.is_over(), "no epoch ends", 120)
        lost = cluster.machine_that_only_rolls_out()
        cluster.machines.cut_off(lost.name)
        before = len(cluster.rows("cut_off", "collect"))
        status, out = submission.result(600)
    assert status == 0, out
    assert before < epochs / 2
    collected = cluster.rows("cut_off", "collect")
    assert [row["epoch"] for row in collected] == list(range(epochs))
    assert min(returns(collected)[-3:]) > returns(collected)[0] + 1.0
    assert re.search(r"rollout worker \d", out) and "Final test over" in out
    assert lost.processes(), "cut off, not dead"

    cluster.machines.reconnect(lost.name)
    cluster.wait_for_all()
    wait_until(lambda: "ray::RolloutActor" not in " ".join(lost.processes()), "a worker of the lost run is left", 120)


def test_a_job_is_submitted_on_the_head(cluster: Cluster) -> None:
    command = shlex.join(["amago-ray", *arguments("job", 1), "--no-final-test"])
    out = cluster.ray("exec", FILE, f"RAY_ADDRESS=http://127.0.0.1:8265 ray job submit -- {command}")
    assert f"The run is in {RUNS}/job" in out and "succeeded" in out
    assert [row["epoch"] for row in cluster.rows("job", "train")] == [0]


def test_a_mistake_ends_the_submission(cluster: Cluster) -> None:
    with cluster.submitted("--config", "configs/no_such.gin") as submission:
        status, out = submission.result()
    assert status != 0
    assert "amago-ray: " in out and "no_such.gin" in out


def test_an_interrupted_submission_ends_the_run_on_every_machine(cluster: Cluster) -> None:
    def running() -> list[str]:
        everywhere = [line for host in cluster.machines.hosts.values() for line in host.processes()]
        return [line for line in everywhere if "train.py" in line or re.match(r"ray::\w+Actor", line)]

    with cluster.submitted(*arguments("interrupted", 1000)) as submission:
        wait_until(lambda: bool(cluster.rows("interrupted", "train")) or submission.is_over(), "no epoch ends", 120)
        assert running()
        submission.interrupt()
        status, _ = submission.result()
    assert status != 0
    wait_until(lambda: not running(), "the run goes on after its submission was interrupted", 60)


def test_a_second_up_sets_every_machine_up_again(cluster: Cluster) -> None:
    cluster.config["setup_commands"].append("touch ~/set_up_again")
    cluster.up()
    assert all((host.home / "set_up_again").exists() for host in cluster.machines.hosts.values())


def test_down_leaves_no_process(cluster: Cluster) -> None:
    cluster.ray("down", FILE, "--yes")
    for name in WORKERS:
        options = ["-i", f"{HOME}/{KEY}", "-o", "StrictHostKeyChecking=accept-new"]
        target = f"root@{cluster.machines.hosts[name].address}"
        result = cluster.machines.launcher.run("ssh", *options, target, "amago_ray_env/bin/ray stop")
        assert result.returncode == 0, result.stdout
    for host in cluster.machines.hosts.values():
        wait_until(lambda host=host: not host.processes(), f"{host.name} still runs something", 60)
