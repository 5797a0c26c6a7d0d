"""What an environment has behind it is what it has made, whatever the settings say now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from driver.test_ring import ENVS, STEPS, Run
from fake_topology import FakeTopology, wait_any

from amago_ray.driver.env_steps import ENV_STEPS, EnvSteps
from amago_ray.envs.builtin import Counting
from amago_ray.settings import ExperimentSettings

CHUNKS = 2  # of an epoch: one for each worker


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amago_ray.driver.jobs.wait_any", wait_any)
    monkeypatch.setattr("amago_ray.driver.liveness.RETRY_INTERVAL_S", 0.0)
    monkeypatch.setattr("amago_ray.driver.jobs.POLL_INTERVAL_S", 0.0)


def explored(run: Run, epochs: int, **settings: Any) -> list[int]:
    """What the environments of each epoch of a resumed run are said to have behind them."""
    topology = FakeTopology(2, settings.get("parallel_actors", ENVS) // 2)
    again = run.resume(topology, **settings)
    again.learn(epochs=epochs)
    return sorted(set(topology.exploration_steps))


@pytest.mark.parametrize("schedule", ["alternate", "overlap"])
@pytest.mark.parametrize("steps", [STEPS // 2, 3 * STEPS])
def test_another_number_of_timesteps_does_not_change_what_was_made(tmp_path: Path, schedule: str, steps: int) -> None:
    run = Run(tmp_path, schedule, FakeTopology(2, ENVS // 2)).start().learn(epochs=2)
    assert sorted(set(run.topology.exploration_steps)) == [0, STEPS]
    assert explored(run, 4, train_timesteps_per_epoch=steps) == [2 * STEPS, 2 * STEPS + steps]
    assert explored(run, 6) == [2 * STEPS + 2 * steps, 3 * STEPS + 2 * steps], "and of a run that is resumed again"


def test_more_environments_go_on_from_what_the_others_have(tmp_path: Path) -> None:
    run = Run(tmp_path, "alternate", FakeTopology(2, ENVS // 2)).start().learn(epochs=2)
    assert explored(run, 3, parallel_actors=4 * ENVS) == [2 * STEPS]


@pytest.mark.parametrize("actors", [ENVS // 2, 4 * ENVS])
def test_runs_without_quotas_count_what_each_environment_made(tmp_path: Path, actors: int) -> None:
    run = Run(tmp_path, "continuous", FakeTopology(2, ENVS // 2)).start().learn(epochs=2)
    made = run.progress.total_frames // ENVS
    assert made > STEPS
    assert explored(run, 3, parallel_actors=actors)[0] == made


@pytest.mark.parametrize(("before", "now"), [("overlap", "continuous"), ("continuous", "alternate")])
def test_another_schedule_goes_on_from_the_same_steps(tmp_path: Path, before: str, now: str) -> None:
    run = Run(tmp_path, before, FakeTopology(2, ENVS // 2)).start()
    run.schedule.run_epoch(0, last=False)
    run.learn(epochs=2)
    state = run.directory.load_run_state(1)
    ahead = state["ahead"]["collected"]["timesteps"] if "ahead" in state else 0
    assert explored(run, 3, schedule=now)[0] == (run.progress.total_frames + ahead) // ENVS == state[ENV_STEPS]


def settings(**changes: Any) -> ExperimentSettings:
    return ExperimentSettings("r", Counting, 8, train_timesteps_per_epoch=10, parallel_actors=4, **changes)


def test_a_run_that_begins_counts_from_its_first_collection() -> None:
    late = EnvSteps(settings(start_collecting_at_epoch=3))
    assert [late.before(epoch) for epoch in range(6)] == [0, 0, 0, 0, 10, 20]
    assert EnvSteps(settings()).at(99) == 24


WORKER = {"exploration": {"steps": [35, 36]}}
PROGRESS = {"epoch": 4, "gradient_steps": 0, "frames_by_env": {"a": 140}, "wall_s": 0.0}


@pytest.mark.parametrize("workers", [{"0": WORKER}, {"0": {}, "1": {"halves": [{"exploration": None}, WORKER]}}])
def test_states_that_do_not_say_so_are_asked_for_what_their_workers_had(workers: dict[str, Any]) -> None:
    found = EnvSteps.saved(settings(), json.loads(json.dumps({"progress": PROGRESS, "workers": workers})))
    assert [found.before(5), found.before(7), found.at(140), found.at(160)] == [36, 56, 36, 41]
    silent = EnvSteps.saved(settings(), {"progress": PROGRESS, "workers": {}})
    assert silent.before(5) == 50 and silent.at(140) == 35, "as if nothing had changed"
