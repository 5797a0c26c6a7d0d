"""Population-based training goes on where Tune's own scheduler would wait for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from amago_ray.tune.population import Population

LAST = 31


class EveryFive(tune.Trainable):
    """Reports at epochs 1, 6, 11, ..., as a run does that is validated every five; number 3 fails at 6."""

    def setup(self, config: dict[str, Any]) -> None:
        self.number, self.epoch = config["number"], -4

    def step(self) -> dict[str, Any]:
        self.epoch += 5
        if self.number == 3 and self.epoch == 6:
            raise RuntimeError("a bug of number 3")
        return {"epoch": self.epoch, "score": -self.number, "done": self.epoch >= LAST}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "epoch.json").write_text(json.dumps(self.epoch))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        self.epoch = json.loads((Path(checkpoint_dir) / "epoch.json").read_text())


@pytest.mark.timeout(300)
def test_reports_between_comparisons_and_a_failed_trial_stop_nobody(ray_instance: None, tmp_path: Path) -> None:
    """Compared every 6 epochs but reporting every 5, all trials come to stand on a comparison, at epoch 26."""
    scheduler = Population(
        time_attr="epoch",
        perturbation_interval=6,
        hyperparam_mutations={"rate": [0.1, 0.2]},
        require_attrs=False,
        synch=True,
    )
    results = tune.Tuner(
        EveryFive,
        param_space={"number": tune.grid_search([1, 2, 3]), "rate": 0.1},
        tune_config=tune.TuneConfig(metric="score", mode="max", scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(name="population", storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert results.num_errors == 1
    assert sorted(result.metrics["epoch"] for result in results) == [1, LAST, LAST]
