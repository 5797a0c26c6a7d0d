"""The runs beside peers: what is watched of a process, and what peers see of an environment; no peer is started."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = """
import json, sys, time
print("a warning")
print(json.dumps({{"ready": True}}), flush=True)
for frames, value in {points}:
    print(json.dumps({{"frames": frames, "return": value}}), flush=True)
while True:
    sum(range(10_000))
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


@pytest.mark.parametrize(
    ("points", "reached", "seen"),
    [([[100, 1.0], [200, 3.0], [300, 9.0]], True, 2), ([[100, 1.0], [200, 2.0]], False, 2), ([], False, 0)],
)
def test_a_run_is_watched_until_it_is_there_or_has_used_its_time(
    peers: ModuleType, points: list[list[float]], reached: bool, seen: int
) -> None:
    script = SCRIPT.format(points=points)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        run = peers.watch(process, target=3.0, budget_s=1.0)
    finally:
        process.kill()
        process.wait()
    assert run["reached"] is reached and [point[2:] for point in run["points"]] == points[:seen]


def test_a_run_that_ends_by_itself_is_an_error(peers: ModuleType) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE, text=True)
    with pytest.raises(SystemExit, match="has ended by itself"):
        peers.watch(process, target=3.0, budget_s=1.0)


def test_processor_time_is_that_of_all_descendants(peers: ModuleType) -> None:
    tree = peers.ProcessTree(os.getpid())
    before = tree.cpu_s()
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    child = subprocess.Popen(
        [sys.executable, "-c", busy + "\nprint(flush=True)\ntime.sleep(60)"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    during = tree.cpu_s()
    child.kill()
    child.wait()
    assert during - before >= 0.25
    assert tree.cpu_s() >= during - 1e-9, "what has ended counts on"


def test_a_table_counts_those_that_got_there(peers: ModuleType) -> None:
    runs = [
        {"points": [[5.0, 4.0, 100, 1.0], [9.0, 8.0, 200, 4.0]], "reached": True},
        {"points": [[5.0, 4.0, 100, 2.0]], "reached": False},
    ]
    row = peers.summary("lake", "ours", runs)
    assert row["reached"] == "1 of 2" and row["frames"] == {"median": 200, "min": 200, "max": 200}
    assert row["best"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert peers.TABLES[0].render([row]).splitlines()[-1].startswith("lake")


@pytest.mark.parametrize("task", ["lake", "tmaze", "cartpole", "pendulum"])
def test_peers_see_the_last_action_and_reward(peers: ModuleType, task: str) -> None:
    env = importlib.import_module("peer_run").make_env(task)
    first, _ = env.reset(seed=0)
    assert first.dtype == np.float32 and env.observation_space.contains(first)
    discrete = isinstance(env.action_space, gym.spaces.Discrete)
    width = int(env.action_space.n) if discrete else 1
    assert not first[-width - 1 :].any()
    action = env.action_space.sample()
    seen, reward, *_ = env.step(action)
    assert seen[-1] == np.float32(reward)
    np.testing.assert_allclose(seen[-width - 1 : -1], np.eye(width)[action] if discrete else np.float32(action))
    assert not env.reset(seed=0)[0][-width - 1 :].any()


def test_scaling_covers_workers_shards_and_learners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scaling, measure = importlib.import_module("scaling"), importlib.import_module("measure")
    options = measure.parser("scaling", "", seconds=1.0).parse_args([])
    options.workers = scaling.WORKERS
    cases = scaling.cases(options)
    assert len(set(cases)) == len(cases) == 3 * 6 + 5
    env, began = scaling.Sleeper(0.01), time.perf_counter()
    env.reset()
    assert [env.step(0)[3] for _ in range(100)] == [False] * 99 + [True]
    assert time.perf_counter() - began >= 1.0
    rows = [
        {"sleep_ms": 5.0, "workers": w, "shards": 1, "learners": 1, "ideal_frames_per_s": 200.0 * w}
        | {"frames_per_s": {"median": 190.0 * w, "min": 1.0, "max": 2.0}}
        for w in (1, 2)
    ]
    marks = [(float(n), 0.0, n) for n in range(6)]
    assert [(before[2], after[2]) for before, after in scaling.counted(marks)] == [(1, 2), (2, 3), (3, 4)]
    scaling.draw(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
