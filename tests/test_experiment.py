"""What `Experiment` refuses before it does anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amago_ray import Experiment
from amago_ray.envs.builtin import Counting


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_resuming_what_is_running_is_refused(tmp_path: Path, how: dict[str, bool]) -> None:
    experiment = Experiment(run_name="a", make_train_env=Counting, max_seq_len=4, ckpt_base_dir=tmp_path)
    running: Any = object()
    experiment._ring = running
    assert experiment.start() is experiment
    with pytest.raises(ValueError, match="this experiment is running; resume and overwrite are for its first start"):
        experiment.start(**how)
