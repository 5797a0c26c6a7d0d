"""The ratio is held within its tolerance, and there is always one side that may go on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from amago_ray.driver.rate_limiter import RateLimiter


def test_nothing_is_learned_before_enough_is_stored() -> None:
    limiter = RateLimiter(batches_per_timestep=0.1, min_timesteps=100, tolerance=5.0)
    assert limiter.may_learn() == 0 and limiter.may_collect(under_way=0) == 50
    limiter.collected(80)
    limiter.stored(60)
    assert limiter.may_learn() == 0 and limiter.may_collect(under_way=20) == 30
    limiter.collected(50)
    limiter.stored(100)
    assert limiter.may_learn() == 5 and limiter.balance == 0.0


def test_each_side_waits_for_the_other_at_the_tolerance() -> None:
    limiter = RateLimiter(batches_per_timestep=0.5, min_timesteps=1, tolerance=10.0)
    limiter.stored(1)
    limiter.learned(10)
    assert limiter.may_learn() == 0 and limiter.may_collect(0) == 40
    limiter.collected(40)
    assert limiter.balance == 10.0 and limiter.may_collect(0) == 0 and limiter.may_learn() == 10
    limiter.learned(4)
    assert limiter.may_collect(0) == 8 and limiter.may_collect(under_way=8) == 0


@settings(max_examples=150, deadline=None)
@given(
    ratio=st.floats(1e-3, 20.0),
    tolerance=st.floats(1.0, 100.0),
    min_timesteps=st.integers(0, 500),
    num_envs=st.integers(1, 16),
    seed=st.integers(0, 2**31),
)
def test_it_never_locks_and_never_strays(
    ratio: float, tolerance: float, min_timesteps: int, num_envs: int, seed: int
) -> None:
    """Workers that round up to whole steps of their environments, and a learner of any speed, at random."""
    rng = np.random.default_rng(seed)
    tolerance = max(tolerance, 2.0, 2 * num_envs * ratio)
    limiter = RateLimiter(ratio, min_timesteps, tolerance)
    under_way: list[int] = []
    portion: int | None = None
    learning = False
    for _ in range(300):
        room = limiter.may_collect(sum(under_way))
        while room > 0 and len(under_way) < 3:
            under_way.append(min(room, int(rng.integers(1, 200))))
            room -= under_way[-1]
        if portion is None and (allowed := limiter.may_learn()):
            portion = int(rng.integers(1, allowed + 1))
        assert under_way or portion is not None, "both sides wait"
        if under_way and (portion is None or rng.random() < 0.5):
            limiter.collected(-(-under_way.pop() // num_envs) * num_envs)
            limiter.stored(limiter.timesteps)
        elif portion is not None:
            limiter.learned(portion)
            portion, learning = None, True
        if learning:
            assert -tolerance - 1e-6 <= limiter.balance <= tolerance + 3 * num_envs * ratio + 1e-6
