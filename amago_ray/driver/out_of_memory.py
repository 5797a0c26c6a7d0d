"""A learner that needs more memory than there is: told in one line that says what to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from amago_ray.driver.plan import Plan
from amago_ray.messages import CannotGoOn

# The CPU's allocator has no exception of its own.
OF_THE_CPU = re.compile(r"can't allocate memory|not enough memory|bad_alloc|Storage size calculation overflowed")


class OutOfMemory(CannotGoOn):
    """A learner needs more memory than its device has; the message says what to lower."""


@contextmanager
def naming_what_to_lower(plan: Plan, rank: int) -> Iterator[None]:
    """Raises OutOfMemory where learner number `rank` of the plan runs out of memory within."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(_advice(plan, rank, error)) from error
    except RuntimeError as error:
        if OF_THE_CPU.search(str(error)) is None:
            raise
        raise OutOfMemory(_advice(plan, rank, error)) from error


def _advice(plan: Plan, rank: int, error: Exception) -> str:
    wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    ways = [
        f"lower Experiment.batch_size={plan.batch_size} (batches_per_update makes up for it) or "
        f"max_seq_len={plan.agent_spec.max_seq_len}"
    ]
    if plan.learner.mixed_precision == "no" and plan.learner.device == "cuda":
        ways.append("set mixed_precision='bf16'")
    if plan.learner.packed is not True:
        ways.append("set batch_layout='packed'")
    if plan.learner.device == "cuda" and plan.learner.cuda_graphs != "never":
        ways.append("set cuda_graphs='never'")
    ways.append("take smaller networks")
    where = "the memory of its GPU" if plan.learner.device == "cuda" else "memory"
    how = f" (it tried to allocate {wanted[1]})" if wanted else ""
    return f"learner {rank} ran out of {where}{how}: {', '.join(ways[:-1])}, or {ways[-1]}"
