"""Connecting to Ray: what goes wrong is tried again, and is one line."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from amago_ray.driver import cluster
from amago_ray.driver.cluster import START_ATTEMPTS


@pytest.mark.parametrize("failures", [1, START_ATTEMPTS])
def test_a_ray_that_does_not_start_is_tried_again_and_told(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    tried = []

    def init(**options: Any) -> None:
        tried.append(options)
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests share one with this process ...
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # ... which is not to be ended
    monkeypatch.setattr(cluster, "survey", lambda: cluster.this_machine())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if failures < START_ATTEMPTS:
        there, started_here = cluster.connect(None, lambda machine: 1.0)
        assert there.local and started_here and len(tried) == failures + 1
        return
    with pytest.raises(ValueError, match=r"did not start on this machine \(The current .* startup\.\); is it"):
        cluster.connect(None, lambda machine: 1.0)
    assert len(tried) == START_ATTEMPTS
