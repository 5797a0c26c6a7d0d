"""A run without Ray: the rows and the policy that it leaves behind, and what is recorded of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amago_ray import config
from amago_ray.commands.command_line import load_experiment
from amago_ray.envs.builtin import Bandit
from amago_ray.rollout.acting import load_policy
from amago_ray.watch.metrics import read_metrics
from results import in_process, run
from results.table import Published, Task

SETTINGS = (
    "Experiment.make_train_env = @Bandit",
    "Experiment.max_seq_len = 4",
    "Bandit.num_pulls = 4",
    "Experiment.traj_encoder_type = @GRUTrajEncoder",
    "GRUTrajEncoder.d_hidden = 8",
    "GRUTrajEncoder.d_output = 8",
    "Experiment.parallel_actors = 2",
    "Experiment.train_timesteps_per_epoch = 8",
    "Experiment.train_batches_per_epoch = 2",
    "Experiment.batch_size = 4",
    "Experiment.epochs = 3",
    "Experiment.val_interval = 1",
    "Experiment.schedule = 'alternate'",
)


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task of three short epochs, 48 frames, whose runs are kept in a folder of the test."""
    file = tmp_path / "game.gin"
    file.write_text("\n".join((*SETTINGS, f"Experiment.ckpt_base_dir = '{tmp_path}'")), encoding="utf-8")
    monkeypatch.setattr(run, "RUNS", tmp_path)
    published = Published(1.0, "Theirs", "1M", "https://example.org")
    return Task("game", "A game", (str(file),), frames=48, published=published, episodes=10)


def trained(task: Task, seed: int) -> None:
    options = in_process.parser().parse_args(task.arguments(seed))
    in_process.train(load_experiment(options.config, options.set))


def rows_of(name: str) -> list[dict[str, Any]]:
    """All that a run has logged, but for the time that it took."""
    return [{key: row[key] for key in row if key != "wall_s"} for row in read_metrics(run.RUNS / name)]


def test_a_run_leaves_its_rows_and_is_the_same_again(game: Task) -> None:
    trained(game, seed=3)
    recorded = run.record(game, 3, "abc")
    assert (recorded.frames, recorded.updates, recorded.revision) == (48, 6, "abc")
    assert recorded.curve["frames"] == [16, 32, 48] and len(recorded.returns) == 10
    assert (
        recorded.command.startswith("python -m results.in_process --config ")
        and "Experiment.seed = 3" in recorded.command
    )
    rows = rows_of("game_seed_3")
    trained(game, seed=3)
    assert rows == rows_of("game_seed_3") and any("train/Total Loss" in row for row in rows)
    assert run.record(game, 3, "abc").returns == recorded.returns


def test_a_metric_stands_in_for_the_return(game: Task) -> None:
    lake = ("Experiment.make_train_env = @MetaFrozenLake", "MetaFrozenLake.size = 2", "MetaFrozenLake.k_episodes = 2")
    settings = (*lake, "Experiment.max_seq_len = 8")
    rate = replace(game, set=settings, env="MetaFrozenLake-2x2-k2", metric="Last Attempt Success")
    trained(rate, seed=0)
    first = replace(rate, metric="First Attempt Success")
    rates, firsts, returns = (run.record(task, 0, "abc") for task in (rate, first, replace(rate, metric="")))
    assert set(rates.returns) <= {0.0, 1.0} and len(rates.curve["return"]) > 0
    assert [a + b for a, b in zip(rates.returns, firsts.returns, strict=True)] == list(returns.returns)


def test_more_frames_than_a_task_has_are_refused(game: Task) -> None:
    trained(game, seed=0)
    short = Task(game.name, game.title, game.configs, 47, game.published, episodes=10)
    with pytest.raises(ValueError, match="game took 48 frames, and 47 are allowed"):
        run.record(short, 0, "abc")


def test_the_configuration_is_the_whole_of_it(game: Task) -> None:
    trained(game, seed=1)
    experiment = load_experiment([run.RUNS / "game_seed_1" / "config.txt"], [])
    assert config.is_bound("Experiment", "seed") and experiment.seed == 1 and experiment.epochs == 3


def test_an_epoch_before_any_rollout_has_ended_learns_nothing(game: Task) -> None:
    trained(replace(game, set=("Bandit.num_pulls = 12", "Experiment.max_seq_len = 12")), seed=0)
    rows = read_metrics(run.RUNS / "game_seed_0")
    assert [row["gradient_steps"] for row in rows if row["section"] == "collect"] == [0, 0, 2]
    assert [row["epoch"] for row in rows if row["section"] == "train"] == [1, 2], "epochs of 8 steps, rollouts of 12"


def test_its_policy_can_be_loaded_as_that_of_any_run(game: Task) -> None:
    trained(game, seed=0)
    env = Bandit(num_pulls=4)
    obs, _ = env.reset(seed=0)
    policy, total, over, state, reward = load_policy(run.RUNS / "game_seed_0"), 0.0, False, None, None
    while not over:
        action, state = policy.act(obs, state, reward=reward)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    assert total in range(5)
