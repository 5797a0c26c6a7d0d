"""Tasks take turns, have names of their own, and can be built in processes that never heard of them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from amago_ray.envs.amago_env import AMAGOEnv
from amago_ray.envs.makers import check_env, make_pool, num_tasks
from amago_ray.envs.plain_pool import EnvPool
from amago_ray.envs.tasks import entries_of, maker_of, sendable_tasks, tasks_of

ROOT = Path(__file__).parents[2]


class Task(gym.Env):
    """Rollouts of two steps that are rewarded by `number`; observes a random number, which tells the seed."""

    def __init__(self, number: int = 0, high: float = 1.0, length: int = 2) -> None:
        self.observation_space, self.action_space = spaces.Box(0, 1, (1,)), spaces.Box(-high, high, (1,))
        self.number, self.length = number, length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        return self.observe(), float(self.number), self.steps == self.length, False, {}

    def observe(self) -> np.ndarray:
        return self.np_random.random(1).astype(np.float32)


def named(number: int) -> gym.Env:
    return AMAGOEnv(Task(number), f"task {number}")


def tasks(num: int) -> list[Callable[[], gym.Env]]:
    return [partial(named, number) for number in range(num)]


def played(pool: EnvPool, rollouts: int) -> list[list[tuple[str, float, float]]]:
    """Of each environment the name, reward and first observation of its first rollouts."""
    obs = pool.reset()
    found: list[list[tuple[str, float, float]]] = [[] for _ in range(pool.num_envs)]
    for _ in range(rollouts):
        first = obs["observation"][:, 0].tolist()
        for _ in range(2):
            step = pool.step(np.zeros((pool.num_envs, 1), np.float32))
        for row in range(pool.num_envs):
            found[row].append((pool.env_names[row], float(step.rewards[row]), first[row]))
        obs, _ = pool.begin(step.terminated)
    return found


@pytest.mark.parametrize(("num_tasks", "num_envs"), [(20, 12), (5, 2), (2, 5), (3, 3), (2, 4), (7, 1)])
def test_every_task_is_played_equally_often(num_tasks: int, num_envs: int) -> None:
    rollouts = played(make_pool(tasks(num_tasks), num_envs, 0, seed=0), num_tasks)
    for env, of_env in enumerate(rollouts):
        expected = [(env + rollout * num_envs) % num_tasks for rollout in range(num_tasks)]
        assert [(name, reward) for name, reward, _ in of_env] == [(f"task {i}", float(i)) for i in expected]
    counts = Counter(name for of_env in rollouts for name, _, _ in of_env)
    assert set(counts.values()) == {num_envs} and len(counts) == num_tasks


def test_it_does_not_matter_how_workers_share_the_environments() -> None:
    whole = played(make_pool(tasks(5), 4, 0, seed=3, total_envs=4), 6)
    shares = [played(make_pool(tasks(5), num, first, seed=3, total_envs=4), 6) for num, first in ((3, 0), (1, 3))]
    assert whole == shares[0] + shares[1]
    assert len({first for of_env in whole for _, _, first in of_env}) == 4 * 6  # each rollout has a seed of its own


def test_reset_starts_the_turns_anew_and_a_new_seed_repeats_the_rollouts() -> None:
    pool = make_pool(tasks(5), 2, 0, seed=3)
    first, second = played(pool, 3), played(pool, 3)
    assert [[name for name, *_ in row] for row in first] == [[name for name, *_ in row] for row in second]
    assert first != second
    pool.reseed(3)
    assert played(pool, 3) == first


def test_turns_go_on_where_a_reset_says() -> None:
    pool = make_pool(tasks(5), 2, 0, seed=3)
    pool.reset(turn=1)
    assert pool.env_names == ["task 2", "task 3"]
    pool.step(np.zeros((2, 1), np.float32))
    pool.begin(pool.step(np.zeros((2, 1), np.float32)).terminated)
    assert pool.env_names == ["task 4", "task 0"]


def test_environments_are_kept_for_the_next_turn_of_their_task() -> None:
    built: list[int] = []

    def make(number: int) -> gym.Env:
        built.append(number)
        return named(number)

    pool = EnvPool([partial(make, number) for number in range(6)], seed=0, num_envs=4)
    played(pool, 12)
    assert all(count <= 2 for count in Counter(built).values()) and set(built) == set(range(6))


class Fragile(Task):
    built = 0

    def __init__(self) -> None:
        super().__init__(1)
        Fragile.built += 1
        self.breaks = Fragile.built == 1

    def step(self, action: Any) -> Any:
        if self.breaks:
            raise SystemExit(0)
        return super().step(action)


def test_a_rollout_that_failed_is_begun_again_with_its_task() -> None:
    pool = EnvPool([lambda: AMAGOEnv(Fragile(), "fragile"), partial(named, 2), partial(named, 3)], seed=0, num_envs=1)
    obs_names = []
    pool.reset()
    for _ in range(9):
        step = pool.step(np.zeros((1, 1), np.float32))
        if step.terminated[0]:
            obs_names.append(pool.env_names[0])
        pool.begin(step.terminated)
    assert obs_names == ["fragile", "task 2", "task 3", "fragile"] and pool.failures == 1
    assert "SystemExit: 0" in pool.last_failure


class Exits(Task):
    def step(self, action: Any) -> Any:
        raise SystemExit(0)


def exits() -> gym.Env:
    raise SystemExit("no display")


@pytest.mark.parametrize(("make", "message"), [(Exits, "Exits failed with SystemExit: 0"), (exits, "SystemExit: no d")])
def test_an_environment_that_exits_has_failed(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_env(make)


def test_one_object_for_all_is_refused() -> None:
    env = Task()
    same: Any = lambda: env  # noqa: E731
    wrapped: Any = lambda: gym.wrappers.TimeLimit(env, 5)  # noqa: E731
    for make in (same, wrapped):
        for refused in (make, [make] * 2, [make, partial(make)]):
            with pytest.raises(ValueError, match="the same Task object twice.*build a new environment"):
                check_env(refused)
        with pytest.raises(ValueError, match="the same Task object twice"):
            make_pool(make, 3, 0, seed=0)


@pytest.mark.filterwarnings("ignore:several tasks")
def test_other_bounds_are_refused_at_once_however_tasks_are_dealt() -> None:
    wide = partial(Task, high=2.0)
    with pytest.raises(ValueError, match="same action space: Task has.*RescaleAction"):
        check_env([Task, wide])
    with pytest.raises(ValueError, match="same action space"):
        make_pool([Task, wide], 2, 0, seed=0)
    with pytest.raises(ValueError, match="other spaces than make_train_env"):
        check_env(wide, like=(Task().observation_space, Task().action_space))


def test_tasks_of_one_name_are_told_apart_by_their_place() -> None:
    make_env = [Task, partial(Task, 1), "CartPole-v1", partial(named, 7), partial(Task, 2)]
    del make_env[2]  # of other spaces
    with pytest.warns(UserWarning, match=r"named Task: .* Task, Task \(2\) and so on; AMAGOEnv"):
        names = make_pool(make_env, 4, 0, seed=0).env_names
    assert names == ["Task", "Task (2)", "task 7", "Task (3)"]
    with warnings.catch_warnings():  # it is said once
        warnings.simplefilter("error")
        sent = cloudpickle.loads(cloudpickle.dumps(sendable_tasks(make_env)))
    # A worker that has the last two environments.
    assert make_pool(sent, 2, 2, seed=0, total_envs=4).env_names == ["task 7", "Task (3)"]


def test_repeated_entries_are_one_task_and_names_that_change_are_left_alone() -> None:
    pool = make_pool([Task, Task, ("CartPole-v1", {"sutton_barto_reward": True})][:2], 2, 0, seed=0)
    assert pool.env_names == ["Task", "Task"]
    changing = [lambda: AMAGOEnv(Task(), lambda: "now"), lambda: AMAGOEnv(Task(1), lambda: "now")]
    assert make_pool(changing, 2, 0, seed=0).env_names == ["now", "now"]


def test_a_pair_gives_gym_make_its_settings() -> None:
    pair = ("CartPole-v1", {"max_episode_steps": 3, "sutton_barto_reward": True})
    assert entries_of(pair) == [pair] and num_tasks(pair) == 1 and num_tasks([pair, "CartPole-v1"]) == 2
    env = maker_of(pair)()
    assert env.spec.max_episode_steps == 3 and env.spec.kwargs["sutton_barto_reward"]
    with pytest.warns(UserWarning, match="named CartPole-v1"):
        assert make_pool([pair, "CartPole-v1"], 2, 0, seed=0).env_names == ["CartPole-v1", "CartPole-v1 (2)"]
    pool = make_pool((Task, {"number": 5}), 1, 0, seed=0)
    pool.reset()
    assert pool.step(np.zeros((1, 1), np.float32)).rewards.tolist() == [5.0]
    with pytest.raises(ValueError, match="CartPole-v1 with {'no_such': 1} failed with TypeError"):
        check_env(("CartPole-v1", {"no_such": 1}))


def test_what_is_wrong_with_the_arguments_of_a_pair_is_said() -> None:
    for what in (Task, named):
        with pytest.raises(ValueError, match=r"with {'lenght': 3} failed with TypeError: .* argument 'lenght'"):
            check_env((what, {"lenght": 3}))


SCRIPT = """
import sys
import cloudpickle
import gymnasium as gym
from amago_ray.envs.tasks import sendable_tasks

class Mine(gym.Env):
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)
    def __init__(self, word="none"):
        self.word = word
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}
    def step(self, action):
        return 1, float(len(self.word)), True, False, {}

gym.register("Mine-v0", entry_point=Mine, max_episode_steps=9)
gym.register("mine/ByName-v1", entry_point="__main__:Mine", kwargs={"word": "four"})
def inner():
    return gym.make("mine/ByName-v1")
for make_env in ("Mine-v0", ("mine/ByName-v1", {"word": "seven.."}), inner):
    sys.stdout.buffer.write(cloudpickle.dumps(sendable_tasks(make_env)).hex().encode() + b"\\n")
"""
WORKER = """
import sys
import cloudpickle
import gymnasium as gym
import numpy as np
from amago_ray.envs import make_pool
for line in sys.stdin:
    pool = make_pool(cloudpickle.loads(bytes.fromhex(line)), 1, 0, 0)
    pool.reset()
    print(pool.env_names[0], pool.step(np.zeros(1, np.int64)).rewards[0], pool._envs[0].spec.max_episode_steps)
"""


@pytest.mark.processes
def test_ids_that_only_the_driver_knows_are_built_elsewhere(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    sent = run([sys.executable, str(script)], env={"PYTHONPATH": str(ROOT)}).stdout
    found = run([sys.executable, "-c", WORKER], input=sent).stdout.splitlines()
    assert found == ["Mine-v0 4.0 9", "mine/ByName-v1 7.0 None", "mine/ByName-v1 4.0 None"]


def test_an_id_that_cannot_be_sent_is_refused_and_others_are_no_hindrance() -> None:
    lock = __import__("threading").Lock()
    gym.register("Locked-v0", entry_point=lambda: (lock, Task())[1])
    try:
        with pytest.raises(ValueError, match="Locked-v0 cannot be sent to other processes.*entry point"):
            sendable_tasks("Locked-v0")
        assert "Locked-v0" not in sendable_tasks("CartPole-v1").registered
    finally:
        del gym.registry["Locked-v0"]


def test_what_is_sent_on_keeps_the_ids_that_came_with_it() -> None:
    """As a worker does whose environments have processes of their own, and which has registered nothing."""
    gym.register("Sent-v0", entry_point=Task, kwargs={"number": 3})
    try:
        sent = cloudpickle.loads(cloudpickle.dumps(sendable_tasks(lambda: gym.make("Sent-v0"))))
    finally:
        del gym.registry["Sent-v0"]
    assert "Sent-v0" in sendable_tasks(sent).registered


def test_what_is_sent_is_taken_as_it_is() -> None:
    sent = sendable_tasks("CartPole-v1")
    assert tasks_of(sent) is sent and check_env(sent)[2] == "CartPole-v1"


class Closing(Task):
    closed: list[str] = []

    def __init__(self, name: str, space: gym.Space) -> None:
        super().__init__()
        self.action_space, self.name = space, name

    def close(self) -> None:
        Closing.closed.append(self.name)


@pytest.mark.filterwarnings("ignore:several tasks")
def test_what_is_refused_is_closed() -> None:
    bounded, other, endless = spaces.Box(-1, 1, (1,)), spaces.Discrete(2), spaces.Box(-np.inf, 1, (1,))
    for makers in ([partial(Closing, "a", bounded), partial(Closing, "b", other)], [partial(Closing, "c", endless)]):
        Closing.closed = []
        for refuse in (check_env, lambda make_env: make_pool(make_env, len(make_env), 0, seed=0)):
            with pytest.raises(ValueError, match="space"):
                refuse(makers)
            assert {maker.args[0] for maker in makers} <= set(Closing.closed)


def test_an_exit_while_a_worker_builds_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended in SystemExit: no display"):
        make_pool(exits, 1, 0, seed=0)


class Reusing(Task):
    """Returns one and the same array from every step, changed in place."""

    def observe(self) -> np.ndarray:
        self.array = getattr(self, "array", np.zeros(1, np.float32))
        self.array[:] = self.steps / 4
        return self.array


def test_an_environment_may_change_what_it_has_returned() -> None:
    vector: Any = partial(gym.vector.SyncVectorEnv, [Reusing] * 2, copy=False)
    for make in (Reusing, vector):
        pool = make_pool(make, 2, 0, seed=0)
        before = {name: column.copy() for name, column in pool.reset().items()}
        after = pool.step(np.zeros((2, 1), np.float32)).obs
        assert before["observation"].max() == 0 and after["observation"].min() == 0.25
