"""Connecting to Ray: what goes wrong is one line."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from amago_ray.driver.cluster import connect


def test_a_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ValueError, match=r"did not start on this machine \(The current .* startup\.\); is it very busy"
    ):
        connect(None, lambda cluster: 1.0)
