"""Kernels are compiled once for all tests, and forgotten where one has changed how."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amago_ray.nets import kernels


@pytest.fixture
def forgotten_kernels() -> Iterator[None]:
    """What this test loads is its own."""
    kernels.compiled.cache_clear()
    yield
    kernels.compiled.cache_clear()


@pytest.fixture(params=["narrow registers", "wide registers"])
def register_width(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, forgotten_kernels: None
) -> Iterator[None]:
    """Kernels for both widths of registers, whichever this processor has."""
    if request.param == "wide registers":
        monkeypatch.setattr(kernels, "OPTIONS", (*kernels.OPTIONS, "-DSIXTEEN_LANES", "-Wno-psabi"))
    yield
