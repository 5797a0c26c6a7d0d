"""What bounds a run, told from shares of time that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amago_ray.watch.bounds import PARTS, EpochTimes, bound_of, verdict
from amago_ray.watch.metrics import MetricsLog, Progress
from amago_ray.watch.run_log import RunLog

# environments, policy, waiting for replay, other work of workers, learning, waiting for batches
CASES = {
    "environments": ((0.7, 0.2, 0.0, 0.05, 0.5, 0.4), (0.4, 0.2, 0.0, 0.0, 0.3, 0.1)),
    "policy": ((0.2, 0.7, 0.0, 0.0, 0.6, 0.2), (0.1, 0.3, 0.0, 0.3, 0.2, 0.0)),
    "replay": ((0.1, 0.1, 0.7, 0.0, 0.4, 0.0), (0.2, 0.1, 0.0, 0.0, 0.1, 0.5), (0.1, 0.1, 0.0, 0.0, 0.3, 0.6)),
    "learner": ((0.3, 0.1, 0.0, 0.0, 0.95, 0.05), (0.2, 0.1, 0.0, 0.0, 0.6, 0.0), (0.0, 0.0, 0.0, 0.0, 0.9, 0.1)),
    "waiting": ((0.1, 0.1, 0.0, 0.0, 0.2, 0.0),),
}


@pytest.mark.parametrize(
    "expected, shares", [(name, shares) for name, examples in CASES.items() for shares in examples], ids=str
)
def test_the_verdict(expected: str, shares: tuple[float, ...]) -> None:
    assert verdict(shares).name == expected


def logged(tmp_path: Path, epochs: int, collects: bool = True) -> RunLog:
    """Epochs of 10 s, of which collecting 800 frames takes 8 s, and 40 updates take 5 s after it."""
    file = MetricsLog(tmp_path, resume=False)
    for epoch in range(epochs):
        frames = {"A": 800 * (epoch + 1)} if collects else {}
        progress = Progress(epoch, 40 * (epoch + 1), frames, 10.0 * (epoch + 1))
        if collects:
            shares = {"Environments": 0.5, "Policy": 0.3}
            values = {f"Time in {name} (fraction)": share for name, share in shares.items()}
            file.log(
                "collect", {"Frames per Second": 100.0, "Time Waiting for Replay (fraction)": 0.1, **values}, progress
            )
        file.log("train", {"Updates per Second": 8.0, "Time Waiting for Batches (fraction)": 0.2}, progress)
    file.close()
    log = RunLog(tmp_path)
    log.refresh()
    return log


def test_where_the_time_of_an_epoch_goes(tmp_path: Path) -> None:
    times = EpochTimes.of(logged(tmp_path, 3))
    assert times.epoch.tolist() == [1, 2, 3] and times.took_s.tolist() == [10.0] * 3
    expected = dict(zip(PARTS, (4.0, 2.4, 0.8, 0.8, 4.0, 1.0)))
    for row in times.part_s:
        assert dict(zip(PARTS, row.tolist())) == pytest.approx(expected)
    epochs, shares = times.shares(2)
    assert epochs.tolist() == [2, 3] and shares.shape == (2, len(PARTS))
    np.testing.assert_allclose(shares[0], np.array(list(expected.values())) / 10)


def test_a_run_that_collects_nothing_and_one_without_rows(tmp_path: Path) -> None:
    offline = bound_of(logged(tmp_path / "offline", 3, collects=False))
    assert offline is not None and offline.name == "learner" and "the learner 40%" in offline.why
    assert bound_of(RunLog(tmp_path / "none")) is None
    assert EpochTimes.of(RunLog(tmp_path / "none")).shares(5)[1].shape == (0, len(PARTS))


def test_a_side_is_never_busy_for_more_than_all_of_the_time(tmp_path: Path) -> None:
    log = logged(tmp_path, 2)
    log.axes["wall_s"][:] = type(log.axes["wall_s"])("d", [1.0, 1.0, 2.0, 2.0])
    _, shares = EpochTimes.of(log).shares(1)
    assert shares[0, :4].sum() == pytest.approx(1.0) and shares[0, 4:].sum() == pytest.approx(1.0)
