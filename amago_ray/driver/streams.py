"""A start draws random numbers, as Ray does, and must not change those that the caller's own code draws later."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def streams_kept() -> Iterator[None]:
    """After it the random streams of Python, NumPy and PyTorch that all code shares are where they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
