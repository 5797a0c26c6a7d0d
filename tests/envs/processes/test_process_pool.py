"""Environments in processes of their own: what is collected is the same, and what breaks down breaks down alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from process_envs import Continuing, Drawing, Global, Noting, Parent, Telling, Unbuildable, Wide
from ring_cases import Recorded, assert_same_trajectories, tiny_agent

from amago_ray.envs.builtin import Counting, MetaFrozenLake
from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.envs.makers import EnvFailure, EnvProcesses, check_env, env_spaces, make_pool, make_pools, sendable_tasks
from amago_ray.envs.processes.pool import ProcessPool
from amago_ray.messages import RolloutReport, Trajectory, TrajectoryId
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.rollout.assignment import assign

pytestmark = pytest.mark.processes

TESTS = Path(__file__).parents[2]
GRU = partial(GRUTrajEncoder, d_hidden=8, n_layers=1, d_output=8)
SAME = EnvProcesses(double_buffer=False)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def process_pool(make_env: Any, num_envs: int, seed: int = 0, **options: Any) -> ProcessPool:
    pool = make_pool(make_env, num_envs, 0, seed, processes=EnvProcesses(**options))
    assert isinstance(pool, ProcessPool)
    return pool


def stepped(pool: Any, steps: int) -> list[Any]:
    """Transitions of `steps` steps, whatever the actions."""
    found = []
    for _ in range(steps):
        transition = pool.step(np.zeros((pool.num_envs, *pool.action_spec.shape), pool.action_spec.dtype))
        found.append((transition.rewards.copy(), transition.infos, transition.failed.copy()))
        pool.begin(transition.terminated | transition.truncated)
    return found


# The same as in the worker's process


class Compared:
    """Two workers on the same environments, one of which has them in processes."""

    def __init__(self, make_env: Any, num_envs: int = 3, processes: EnvProcesses = SAME, **settings: Any) -> None:
        settings = {
            "num_envs": num_envs,
            "agent": tiny_agent(make_env, GRU),
            "exploration_type": partial(EpsilonGreedy, eps_start=0.5),
            "stagger": 2,
            **settings,
        }
        self.here = Recorded(make_env, **settings)
        self.apart = Recorded(make_env, env_processes=processes, **settings)

    def collect(self, timesteps: int, resets: int = 0) -> tuple[RolloutReport, RolloutReport]:
        here, apart = (run.worker.collect(timesteps, resets) for run in (self.here, self.apart))
        for name in ("timesteps", "frames_by_env", "episodes", "trajectories", "env_failures", "exploration"):
            assert getattr(here, name) == getattr(apart, name), name
        assert_same_trajectories(self.here.written, self.apart.written)
        for x, y in zip(self.here.written, self.apart.written, strict=True):
            assert (x.id, x.env_name, x.truncated) == (y.id, y.env_name, y.truncated)
        assert torch.equal(*(run.worker._policy_step._memory for run in (self.here, self.apart)))
        assert torch.equal(*(run.worker.random._states[0] for run in (self.here, self.apart)))
        return here, apart

    def close(self) -> None:
        self.here.worker.close()
        self.apart.worker.close()


@pytest.mark.parametrize(
    ("make_env", "num_envs"),
    [
        pytest.param(Drawing, 3, id="images and nested spaces"),
        pytest.param("amago_ray/MetaFrozenLake-v0", 1, id="an id"),
        pytest.param([partial(MetaFrozenLake, size=3, k_episodes=k) for k in (1, 2, 3)], 2, id="tasks in turn"),
        pytest.param(partial(Counting, 6, terminate=False, action="continuous"), 2, id="continuous"),
        pytest.param(partial(Counting, 6, action="multidiscrete", random_lengths=True), 2, id="multidiscrete"),
        pytest.param(partial(Counting, 6, action="multibinary"), 2, id="multibinary"),
    ],
)
def test_processes_collect_exactly_what_one_process_does(make_env: Any, num_envs: int) -> None:
    with closing(Compared(make_env, num_envs)) as both:
        for resets in (0, 0, 1, 2):
            both.collect(40 * num_envs, resets)
        assert len(both.here.written) > 10


def test_evaluations_are_the_same_too() -> None:
    with closing(Compared(Drawing, 2, exploration_type=None)) as both:
        for number in (0, 1):
            (assignment,) = assign([2], 5, None, number)
            here, apart = (run.worker.evaluate(assignment) for run in (both.here, both.apart))
            assert here == apart and len(here.episodes) == 5


# One that breaks down


def faulty(fault: str, **settings: Any) -> list[Any]:
    return [Drawing, partial(Drawing, fault, **settings), Drawing]


def of_siblings(run: Recorded) -> list[Trajectory]:
    """What the others wrote. Their numbers are those of the worker's trajectories, of which there are fewer."""
    written = [trajectory for trajectory in run.written if trajectory.env_name != "Drawing (2)"]
    return [replace(t, id=TrajectoryId(0, 0, number)) for number, t in enumerate(written)]


@pytest.mark.filterwarnings("ignore:several tasks of the list are named")
@pytest.mark.parametrize(
    ("fault", "settings"),
    [("hang", {"at": 8}), ("kill", {"at": 7}), ("exit", {"at": 3, "in_reset": True}), ("raise", {"at": 8})],
    ids=lambda value: str(value),
)
def test_one_that_breaks_down_is_as_one_that_raises_and_its_siblings_notice_nothing(
    fault: str, settings: dict[str, Any]
) -> None:
    agent, processes = tiny_agent(Drawing, GRU), EnvProcesses(timeout_s=1.0, double_buffer=False)
    apart, raising, whole = (
        Recorded(make_env, num_envs=3, agent=agent, exploration_type=EpsilonGreedy, env_processes=options)
        for make_env, options in (
            (faulty(fault, **settings), processes),
            (faulty("raise", **settings), None),
            (faulty(""), None),
        )
    )
    reports = [run.worker.collect(3 * 25) for run in (apart, raising, whole)]
    assert reports[0].env_failures == reports[1].env_failures > reports[2].env_failures == 0
    assert [bool(report.env_failed) for report in reports] == [True, True, False]
    if fault == "hang":
        assert "within 1 s (env_timeout_s)" in reports[0].env_failed and "\n" not in reports[0].env_failed
    if fault == "raise":
        assert reports[0].env_failed == reports[1].env_failed
    assert [r.episodes for r in reports[:1]] == [r.episodes for r in reports[1:2]]
    assert_same_trajectories(apart.written, raising.written)
    assert len(of_siblings(whole)) >= 10
    assert_same_trajectories(of_siblings(apart), of_siblings(whole))
    for run in (apart, raising):
        assert torch.equal(run.worker._policy_step._memory[:, [0, 2]], whole.worker._policy_step._memory[:, [0, 2]])
        assert torch.equal(run.worker.random._states[0], whole.worker.random._states[0])
        assert run.worker._explore.rng.bit_generator.state == whole.worker._explore.rng.bit_generator.state
    if fault == "hang":
        assert "within 1 s (env_timeout_s)" in apart.worker._pool.last_failure
    for run in (apart, raising, whole):
        run.worker.close()


def test_one_that_always_breaks_down_ends_the_run_with_its_last_words() -> None:
    with closing(process_pool(partial(Drawing, "exit", 1), 2)) as pool:
        pool.reset()
        with pytest.raises(EnvFailure, match="Drawing failed 5 times in a row(.*\n)*.*ended with exit code 3"):
            stepped(pool, 10)
    with closing(process_pool(partial(Drawing, "raise", 1), 1)) as pool:
        pool.reset()
        with pytest.raises(EnvFailure, match="Drawing failed 5 times in a row(.*\n)*.*the simulator fell over"):
            stepped(pool, 10)
        pool.reset()  # whoever goes on finds environments


@pytest.mark.parametrize(
    ("make_env", "error", "words"),
    [
        (partial(Unbuildable, "ValueError"), ValueError, "there is no level 9"),
        (partial(Unbuildable, "OwnError"), RuntimeError, "OwnError: no license"),
        (partial(Unbuildable, "kill"), EnvFailure, "could not be built: its process was killed by SIGKILL"),
        (lambda: SyncVectorEnv([Continuing]), ValueError, "env_mode='processes': SyncVectorEnv is a VectorEnv"),
    ],
    ids=["an error", "one that cannot be sent", "its end", "a VectorEnv"],
)
def test_what_building_raises_is_told(make_env: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        process_pool(make_env, 2)
    if "VectorEnv" in words:
        with pytest.raises(error, match=words):
            check_env(make_env, processes=SAME)


def test_the_check_before_a_run_steps_where_the_run_will() -> None:
    obs_spec, _, name = check_env(Drawing, processes=SAME)
    assert (obs_spec, name) == (check_env(Drawing)[0], "Drawing")
    with pytest.raises(ValueError, match="environment Drawing failed with EnvHung: it did not step and reset within"):
        check_env(partial(Drawing, "hang", 2), processes=EnvProcesses(timeout_s=0.3))


def test_the_check_before_a_run_says_what_an_environment_raised_as_under_sync() -> None:
    said = []
    for processes in (None, SAME):
        with pytest.raises(ValueError, match="environment Drawing failed with ") as caught:
            check_env(partial(Drawing, "raise", 1), processes=processes)
        said.append(str(caught.value))
    assert said[0] == said[1] and said[0].endswith("OSError: the simulator fell over"), said


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("exit", "failed with EnvDied: its process ended with exit code 3"),
        ("hang", r"failed with EnvHung: it was not built within 1 s \(env_timeout_s\)"),
        ("ValueError", "failed with ValueError: there is no level 9"),
        ("OwnError", "failed with OwnError: no license"),
    ],
)
def test_the_check_before_a_run_builds_where_the_run_will(
    fault: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EnvProcesses, "build_timeout_s", 1.0)
    with pytest.raises(ValueError, match=f"^building the environment Unbuildable {words}$"):
        check_env(partial(Unbuildable, fault), processes=EnvProcesses(timeout_s=0.1))
    with pytest.raises(ValueError, match=f"^building the environment Unbuildable {words}$"):
        env_spaces(partial(Unbuildable, fault), processes=EnvProcesses(timeout_s=0.1))


def test_a_check_builds_each_environment_once_and_none_here(tmp_path: Path) -> None:
    made = [partial(Noting, tmp_path, name) for name in ("a", "b")]
    check_env(made, processes=SAME)
    assert env_spaces(made, SAME) == (Continuing().observation_space, Continuing().action_space)
    assert sendable_tasks(made).labels == ("", "")
    pids = [int(path.name.split("-")[0]) for path in tmp_path.iterdir()]
    assert len(pids) == 2 and os.getpid() not in pids


def test_spaces_other_than_those_of_training_are_told() -> None:
    with pytest.raises(ValueError, match="^make_val_env has other spaces than make_train_env: .*, Wide has Box"):
        check_env(Wide, like=env_spaces(Continuing), processes=SAME)
    with pytest.raises(ValueError, match=r"^environments must have the same .*: Continuing has Box.*, Wide has Box"):
        check_env([Continuing, Wide], processes=SAME)


def test_environments_must_have_the_same_spaces_and_be_sendable() -> None:
    with pytest.raises(ValueError, match=r"Continuing has Box\(.*, Wide has Box"):
        process_pool([Continuing, Wide], 2)
    held = threading.Lock()
    with pytest.raises(ValueError, match="env_mode='processes': .* cannot be sent"):
        process_pool(lambda: held, 1)


# What processes are like, and their end


def test_processes_are_light_and_draw_different_numbers() -> None:
    with closing(process_pool(Telling, 2)) as pool:
        pool.reset()
        infos = stepped(pool, 5)[-1][1]
        for row, pid in enumerate(pool.pids):
            assert infos[row]["pid"] == pid != os.getpid()
            assert not infos[row]["torch"] and infos[row]["threads"] == 1
            assert infos[row]["own MB"] < 80
    with closing(process_pool(Global, 2)) as pool, closing(process_pool(Global, 2)) as again:
        pool.reset(), again.reset()
        rewards, same = (np.stack([rewards for rewards, _, _ in stepped(each, 6)]) for each in (pool, again))
        assert (rewards == same).all() and len(np.unique(rewards)) == 12


def test_a_process_is_replaced_after_so_many_rollouts() -> None:
    with closing(process_pool(Telling, 2, max_rollouts=2)) as pool:
        for _ in range(2):
            pool.reset()
            pids = [infos[0]["pid"] for _, infos, _ in stepped(pool, 25) if infos]
            assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pool.pids[0]
            assert pool.failures == 0 and len(pids) == 5
    with closing(Compared(Drawing, 2, EnvProcesses(max_rollouts=100, double_buffer=False))) as both:
        both.collect(100)  # before that it is as without


def test_a_stopped_environment_and_a_lost_server_cost_one_failure_each() -> None:
    with closing(process_pool(Continuing, 2, timeout_s=0.5)) as pool:
        pool.reset()
        stepped(pool, 3)
        os.kill(pool.pids[1], signal.SIGSTOP)
        assert [failed.tolist() for _, _, failed in stepped(pool, 2)] == [[False, True], [False, False]]
        before, server = pool.pids, pool._server.pid
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, before)))  # they die with it, so that none is ever left
        assert [failed.tolist() for _, _, failed in stepped(pool, 2)] == [[True, True], [False, False]]
        assert pool.failures == 3 and pool._server.pid != server
        after = pool.pids
    wait_until(lambda: not any(map(is_running, after)))


def processes_in(folder: Path) -> list[int]:
    return [int(pid) for file in folder.iterdir() for pid in file.read_text().split()]


def test_closing_does_not_wait_for_an_environment_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amago_ray.envs.processes.pool._CLOSE_S", 0.2)
    pool = process_pool(partial(Parent, str(tmp_path)), 2)
    pool.reset()
    pids = processes_in(tmp_path)
    assert len(pids) == 4 and all(map(is_running, pids))
    pool.close()
    assert not any(map(is_running, pids))  # nor what they have started


def test_nothing_is_left_of_a_worker_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from process_envs import Parent; import numpy as np;"
        "from amago_ray.envs.makers import EnvProcesses, make_pool;"
        f"pool = make_pool(partial(Parent, {str(tmp_path)!r}), 3, 0, 0, processes=EnvProcesses());"
        "pool.reset(); print(pool._server.pid, *pool.pids, flush=True);"
        "[pool.step(np.zeros(3, np.int64)) for _ in iter(int, 1)]"
    )
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        pids = [*map(int, worker.stdout.readline().split()), *processes_in(tmp_path)]
        assert len(pids) == 1 + 3 + 6 and all(map(is_running, pids))
        worker.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def test_pools_that_start_together_end_one_by_one() -> None:
    first, second = make_pools(Continuing, [(0, 1), (1, 2)], 0, EnvProcesses())
    first.reset()
    first.close()
    first.close()
    second.reset()
    assert len(stepped(second, 3)) == 3
    second.close()
