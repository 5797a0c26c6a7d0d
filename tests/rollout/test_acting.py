"""A policy taken away from its run acts as the run's own workers do."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gin
import gymnasium as gym
import numpy as np
import pytest
import torch
from acting_cases import ACTION_SPACES, OBSERVATION_SPACES, Random, make_run
from conftest import TESTS
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

import amago_ray
from amago_ray import load_policy
from amago_ray.driver.probe import probe
from amago_ray.envs.builtin import Identity
from amago_ray.rollout.evaluate import load_policy_weights
from amago_ray.rollout.worker import WHOLE_ROLLOUTS, RolloutConfig, RolloutWorker

NUM_ENVS = 3
ENCODERS = ("FFTrajEncoder", "GRUTrajEncoder", "TformerTrajEncoder", "MambaTrajEncoder", "IdentityTrajEncoder")


def batch_of(space: gym.Space, observations: list[Any]) -> Any:
    """Observations as a VectorEnv gives them."""
    return concatenate(space, observations, create_empty_array(space, len(observations)))


def worker_logs(experiment: Any, make_env: Any, num_envs: int, steps: int) -> list[list[Any]]:
    """What each environment gave and took while a worker acted by the policy's mode."""
    logs: list[list[Any]] = []

    def make() -> gym.Env:
        logs.append([])
        return make_env(log=logs[-1])

    spec = probe(experiment)
    worker = RolloutWorker(RolloutConfig(make, num_envs, 0, 5, WHOLE_ROLLOUTS, None, sample_actions=False), spec)
    worker.set_weights(load_policy_weights(spec, experiment.directory.latest_policy))
    worker.collect(steps * num_envs)
    worker.close()
    return [log for log in logs if len(log) > 2]


def decisions(log: list[Any]) -> list[tuple[Any, float, bool, Any]]:
    """(observation, last reward, whether a rollout begins, action taken) of every step."""
    found = []
    obs, reward, start = None, 0.0, True
    for what, *values in log:
        if what == "reset":
            (obs,), reward, start = values, 0.0, True
        else:
            action, next_obs, next_reward, _ = values
            found.append((obs, reward, start, action))
            obs, reward, start = next_obs, next_reward, False
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_acts_as_a_worker_does(encoder: str, tmp_path: Path) -> None:
    """Every sequence model, over rollouts that end at different times, to the bit."""
    make_env = partial(Random, OBSERVATION_SPACES["nested"], ACTION_SPACES["box"])
    check_equal(make_run(tmp_path, make_env, encoder), make_env, NUM_ENVS)


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_spaces_are_the_environments_own(observation: str, action: str, tmp_path: Path) -> None:
    make_env = partial(Random, OBSERVATION_SPACES[observation], ACTION_SPACES[action])
    experiment = make_run(tmp_path, make_env, "GRUTrajEncoder")
    check_equal(experiment, make_env, NUM_ENVS)
    check_equal(experiment, make_env, None)


def check_equal(experiment: Any, make_env: Any, num_envs: int | None) -> None:
    """num_envs: None for one environment that is not in a batch."""
    logs = worker_logs(experiment, make_env, num_envs or 1, steps=30)
    assert len(logs) == (num_envs or 1)
    policy, state, taken = load_policy(experiment.directory.root, sample=False), None, []
    for step in zip(*map(decisions, logs), strict=True):
        observations, rewards, starts, actions = zip(*step, strict=True)
        if num_envs is None:
            action, state = policy.act(observations[0], state, starts[0], rewards[0])
            assert policy.action_space.contains(action)
            chosen = [action]
        else:
            obs = batch_of(policy.observation_space, list(observations))
            chosen, state = policy.act(obs, state, np.array(starts), np.array(rewards))
        for mine, its in zip(chosen, actions, strict=True):
            np.testing.assert_array_equal(mine, its)
            assert np.asarray(mine).dtype == np.asarray(its).dtype
        taken += [np.asarray(action).tolist() for action in actions]
    assert len({str(action) for action in taken}) > 2  # what was seen matters


def test_masks_are_obeyed(tmp_path: Path) -> None:
    observation = spaces.Dict(x=spaces.Box(-1, 1, (2,)), legal=spaces.MultiBinary(4))
    make_env = partial(Random, observation, spaces.Discrete(4, start=10))

    class Legal(Random):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return self._leave_some(obs), info

        def step(self, action: Any) -> Any:
            obs, *rest = super().step(action)
            return self._leave_some(obs), *rest

        def _leave_some(self, obs: Any) -> Any:
            obs["legal"][2] = 1
            return obs

    make_env = partial(Legal, observation, spaces.Discrete(4, start=10))
    experiment = make_run(tmp_path, make_env, "GRUTrajEncoder", action_mask_key="legal")
    for sample in (True, False):
        policy, state, seen = load_policy(experiment.directory.root, sample=sample, temperature=5.0), None, set()
        for _ in range(100):
            obs = batch_of(observation, [observation.sample() for _ in range(8)])
            obs["legal"][:, 2] = 1
            actions, state = policy.act(obs, state, reward=np.zeros(8))
            assert obs["legal"][np.arange(8), actions - 10].all()
            seen |= set(actions.tolist())
        assert len(seen) > 2


def identity_run(folder: Path, **settings: Any) -> Any:
    return make_run(folder, partial(Identity, "discrete", 4), "GRUTrajEncoder", **settings)


def play(policy: Any, steps: int = 40) -> list[int]:
    state, rng = None, np.random.default_rng(0)
    actions = []
    for _ in range(steps):
        action, state = policy.act(rng.uniform(-1, 1, 5).astype(np.float32), state, reward=0.0)
        actions.append(int(action))
    return actions


def test_drawing_depends_on_seed_and_temperature(tmp_path: Path) -> None:
    run = identity_run(tmp_path).directory.root
    torch.manual_seed(1)
    first = play(load_policy(run, seed=1))
    torch.manual_seed(2)
    assert play(load_policy(run, seed=1)) == first != play(load_policy(run, seed=2))
    cold = play(load_policy(run, temperature=1e-3, seed=1))
    assert cold == play(load_policy(run, sample=False)) != first
    for temperature in (0.0, float("inf")):
        with pytest.raises(ValueError, match=f"^temperature={temperature}: it must be a number from 1e-06 to"):
            load_policy(run, temperature=temperature)


def test_a_state_can_be_copied(tmp_path: Path) -> None:
    make_env = partial(Random, OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    policy = load_policy(make_run(tmp_path, make_env, "TformerTrajEncoder").directory.root, sample=False)
    obs, other = np.zeros(3, np.float32), np.ones(3, np.float32)
    _, state = policy.act(obs)
    kept = state.copy()
    here, _ = policy.act(other, state, reward=1.0)
    elsewhere, _ = policy.act(obs, kept.copy(), reward=1.0)
    again, _ = policy.act(other, kept, reward=1.0)
    np.testing.assert_array_equal(here, again)
    assert (here != elsewhere).any()


def test_weights_of_an_epoch_or_a_file(tmp_path: Path) -> None:
    directory = identity_run(tmp_path).directory
    latest = play(load_policy(directory.root, sample=False))
    assert play(load_policy(directory.root, epoch=0, sample=False)) == latest
    assert play(load_policy(str(directory.policy_epoch(0)), sample=False)) == latest
    assert play(load_policy(directory.policy_epoch(2), sample=False)) != latest


def test_the_configuration_of_this_process_stays(tmp_path: Path) -> None:
    run = identity_run(tmp_path).directory.root
    first = play(load_policy(run, sample=False))
    gin.clear_config()
    gin.parse_config("GRUTrajEncoder.d_hidden = 999\nimport amago_ray.nets.actors")
    gin.finalize()
    before = gin.config_str()
    assert play(load_policy(run, sample=False)) == first
    assert gin.config_str() == before and gin.config_is_locked()
    assert gin.query_parameter("GRUTrajEncoder.d_hidden") == 999
    with gin.unlock_config():
        gin.clear_config()


def test_mistakes_are_said_in_a_line(tmp_path: Path) -> None:
    directory = identity_run(tmp_path).directory
    policy = load_policy(directory.root)
    obs = np.zeros(5, np.float32)
    _, state = policy.act(obs)
    for arguments, message in (
        ((obs, state), "reward is missing: this policy sees what its last action earned"),
        ((obs, state, None, np.nan), "reward=nan is not finite"),
        ((np.zeros((2, 5), np.float32), state, None, np.zeros(2)), "of a batch of 2 environments, the state of one"),
        ((np.zeros((2, 5), np.float32), None, None, np.zeros(3)), "reward has 3 entries for 2 environments"),
        ((np.full(5, np.nan, np.float32),), "'observation' is not finite"),
        ((np.zeros((0, 5), np.float32),), "the observation is of a batch of 0 environments: there must be one or more"),
        ((np.zeros(4, np.float32),), r"'observation' has shape \(4,\): its space has \(5,\), a batch \(N, ...\)"),
        ((obs, state, ["False"], 0.0), r"episode_start=\['False'\]: it must be a number or truth value for each"),
        ((obs, state, np.nan, 0.0), "episode_start=nan: it must be True or False for each environment"),
        ((obs, state, 2, 0.0), "episode_start=2: it must be True or False for each environment"),
        ((obs, state, None, "1.0"), "reward='1.0': it must be a number or truth value for each environment"),
        ((obs, state.memory, None, 0.0), "state is a Tensor: it must be the state that the call before returned"),
        ((obs, "state", None, 0.0), "state is a str: it must be the state that the call before returned"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act(*arguments)
    for start in (True, np.True_, 1, 0.0, np.array([1]), torch.tensor([True]), [False]):
        policy.act(obs, state.copy(), start, 0.0)
    with pytest.raises(ValueError, match="is no run's folder: it has no config.txt"):
        load_policy(tmp_path)
    (tmp_path / "policy.pt").touch()
    with pytest.raises(ValueError, match="is in no run's folder"):
        load_policy(tmp_path / "policy.pt")
    with pytest.raises(ValueError, match="epoch=2 chooses among the weights of a run's folder"):
        load_policy(directory.latest_policy, epoch=2)
    with pytest.raises(ValueError, match=r"policy_epoch_7\.pt: there is no such file"):
        load_policy(directory.root, epoch=7)
    given = {"spaces": (policy.observation_space, policy.action_space)}
    directory.spaces.rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"spaces\.json is missing, as in .* older than it: give load_policy spaces="):
        load_policy(directory.root)
    assert play(load_policy(directory.root, sample=False, **given)) == play(
        load_policy(directory.latest_policy, sample=False, **given)
    )


def test_arguments_of_load_policy_are_said_in_a_line(tmp_path: Path) -> None:
    run = identity_run(tmp_path).directory.root
    env = Identity("discrete", 4)
    load_policy(run, sample=np.True_, seed=np.int64(3), spaces=[env.observation_space, env.action_space])
    for arguments, message in (
        ({"seed": None}, r"^seed=None: it must be an integer$"),
        ({"seed": 1.5}, r"^seed=1\.5: it must be an integer$"),
        ({"sample": "no"}, r"^sample='no': it must be True or False$"),
        ({"spaces": env}, r"^load_policy: spaces=<.*>: it must be a pair of spaces, \(env.observation_space, env.act"),
        ({"spaces": (env, env.action_space)}, r"^load_policy: spaces=.*: it must be a pair of spaces"),
        (
            {"settings": {"traj_encoder_type": "GRUTrajEncoder"}},
            r"^load_policy: settings=\{'traj_encoder_type': 'GRUTrajEncoder'\}: it must be .* and not its name$",
        ),
        (
            {"settings": {"traj_encoder_type": None}},
            r"^load_policy: settings=\{'traj_encoder_type': None\}: it must be a",
        ),
        ({"settings": {"agent_type": Identity}}, r"it must be a subclass of Agent; known: .*\bAgent\b"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load_policy(run, **arguments)
        assert "\n" not in str(error.value)


def test_rewards_that_nobody_sees_may_be_left_out(tmp_path: Path) -> None:
    run = identity_run(tmp_path, bindings=("FFTstepEncoder.hide_rewards = True",)).directory.root
    policy = load_policy(run)
    _, state = policy.act(np.zeros(5, np.float32))
    policy.act(np.zeros(5, np.float32), state)


def test_types_that_were_given_in_python(tmp_path: Path) -> None:
    from amago_ray.nets.traj_encoders import GRUTrajEncoder

    class Mine(GRUTrajEncoder):
        pass

    run = make_run(tmp_path, partial(Identity, "discrete", 4), Mine).directory.root
    with pytest.raises(ValueError, match=r"what Experiment.traj_encoder_type was.*settings=\{'traj_encoder_type': "):
        load_policy(run)
    assert isinstance(load_policy(run, settings={"traj_encoder_type": Mine}).policy.traj_encoder, Mine)
    for name, hint in (("traj_encoder", "did you mean 'traj_encoder_type'"), ("batch_size", "known: ")):
        with pytest.raises(ValueError, match=f"settings has '{name}', which is no setting.*{hint}"):
            load_policy(run, settings={"traj_encoder_type": Mine, name: 1})


@pytest.mark.processes
def test_neither_ray_nor_the_environment_is_needed(tmp_path: Path) -> None:
    """The environment is of a module that this other process cannot import, and so is Ray."""
    folder = tmp_path / "not_on_the_path"
    folder.mkdir()
    (folder / "their_envs.py").write_text(
        "import gin\nfrom amago_ray.envs.builtin import Identity\n"
        "@gin.configurable\nclass Theirs(Identity):\n    pass\n"
    )
    sys.path.insert(0, str(folder))
    try:
        gin.parse_config("import their_envs\nTheirs.size = 4")
        experiment = make_run(tmp_path, sys.modules["their_envs"].Theirs, "GRUTrajEncoder")
    finally:
        sys.path.remove(str(folder))
    assert "@Theirs" in experiment.directory.config.read_text()
    code = (
        "import sys; sys.modules['ray'] = sys.modules['wandb'] = None\n"
        "import numpy as np, amago_ray\n"
        f"policy = amago_ray.load_policy({str(experiment.directory.root)!r}, sample=False)\n"
        "print(policy.act(np.ones(5, np.float32))[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, _ = load_policy(experiment.directory.root, sample=False).act(np.ones(5, np.float32))
    assert int(done.stdout) == expected


def test_it_is_a_public_name() -> None:
    assert "load_policy" in amago_ray.__all__
