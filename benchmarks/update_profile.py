"""Where the time of an update goes, per agent and encoder, and what another layout or a compiler would make of it.

The first table sorts PyTorch's own profile of whole updates (forward, backward, clipping, optimiser, target averages)
by kind of operation: self time, so that every microsecond counts once. The second times, in turn, the update as it is,
with sequences packed end to end, and with the agent's forward pass through `torch.compile`.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, product

import measure
import torch
from agents import ACTIONS, ENCODERS, SIZES, configured_spec
from learner import filled_shard
from measure import Column, Row, Table

from amago_ray.agent.policy import TrainingBatch
from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.learner.batches import training_batch
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.messages import Batch
from amago_ray.replay.client import LocalShard, ReplayReader

NUM_PREPARED = 3  # batches, of different lengths
NOT_COMPILED = "Mamba"  # on CPUs its scan is a loop over timesteps, which the compiler takes minutes to unroll

# Kinds of operations by name, in this order: the first that matches has it.
KINDS = {
    "optimiser": r"_foreach_|_fused_|adam|clip_grad",
    "matrix products": r"(^|::)(mm|addmm_?|bmm|baddbmm|mv|addmv|linear|matmul|einsum)$|mkldnn|conv|_dnnl",
    "attention": r"scaled_dot_product|flash_attention|softmax",
    "copies": r"copy_|clone|::cat$|::stack$|index|gather|scatter|contiguous|::to$|pad|flip|select_b|slice_b",
    "reductions, norms": r"norm|::sum|::mean|::var|amin|amax|cumsum|logsumexp|::max|::min|::any|::all|::prod",
    "elementwise": r"add|sub|mul|div|exp|log|relu|silu|sigmoid|tanh|where|pow|sqrt|clamp|masked|neg|abs|lerp|square|"
    r"gelu|::eq|::ne|::lt|::le|::gt|::ge|bitwise|logical|fill_|zero_|softplus|threshold|rand|normal|bernoulli|multinomial|"
    r"maximum|minimum|sign|round|isfinite|isnan|erf|rsqrt|reciprocal",
}
OTHER = "python and bookkeeping"

CASE = (Column("agent", "agent"), Column("encoder", "encoder"), Column("actions", "actions"))
TABLES = (
    Table(
        "Where the time of an update goes",
        (
            *CASE,
            Column("ms", "ms", ",.1f"),
            *(Column(kind, kind, ".0%") for kind in (*KINDS, OTHER)),
            Column("largest", "largest operations"),
        ),
    ),
    Table(
        "The same update in another layout, and compiled: rate over that of the update as it is",
        (
            *CASE,
            Column("updates_per_s", "updates/s", ".1f"),
            Column("packed", "packed", ".2f"),
            Column("compiled", "compiled", ".2f"),
            Column("compile_s", "compiling, s", ".0f"),
            Column("runs", "runs"),
        ),
    ),
)


def kind_of(operation: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, operation)), OTHER)


def profiled(update: Callable[[], object], calls: int) -> Row:
    """Shares of the self time of `calls` updates, by kind, and the operations that take most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        for _ in range(calls):
            update()
        wall = time.perf_counter() - started
    shares: dict[str, float] = defaultdict(float)
    operations = []
    for event in profiler.key_averages():
        seconds = event.self_cpu_time_total / 1e6
        shares[kind_of(event.key)] += seconds
        operations.append((seconds, event.key.removeprefix("aten::")))
    total = max(sum(shares.values()), wall)
    shares[OTHER] += total - sum(shares.values())  # between operations: the interpreter
    largest = sorted(operations, reverse=True)[:3]
    return {
        **{kind: shares[kind] / total for kind in (*KINDS, OTHER)},
        "largest": ", ".join(f"{name} {seconds / total:.0%}" for seconds, name in largest),
    }


class Updates:
    """Updates of a learner of its own on the same batches, `calls` at a time. packed: lay sequences end to end."""

    def __init__(self, learner: Learner, batches: list[Batch], packed: bool = False):
        spec = learner.agent.action_spec
        self.learner = learner
        prepared = [training_batch(batch, spec, learner.device, packed, None) for batch in batches]
        self.ready: cycle[TrainingBatch] = cycle(prepared)
        self.calls = 1

    def once(self) -> None:
        self.learner.update(next(self.ready))

    def __call__(self) -> None:
        for _ in range(self.calls):
            self.once()


def compiled(updates: Updates) -> float | None:
    """Put the agent's forward pass through the compiler. Seconds until it is warm, or None where that fails."""
    started = time.perf_counter()
    learner = updates.learner
    learner._model.forward = torch.compile(learner._model.forward)  # type: ignore[method-assign]
    try:
        for _ in range(3 * NUM_PREPARED):
            updates.once()
    except Exception as error:  # whatever stands in the compiler's way
        measure.say(f"not compiled: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None
    return time.perf_counter() - started


def measure_case(agent: str, encoder: str, actions: str, options: argparse.Namespace) -> Row:
    size, action_spec = SIZES["demo" if options.quick else options.size], ACTIONS[actions]
    reader = ReplayReader([LocalShard(filled_shard(size, action_spec))], size.batch_size, seed=0)
    batches = list(reader.batches(NUM_PREPARED, 0))

    def learner() -> Learner:
        return Learner(LearnerConfig(), configured_spec(size, encoder, action_spec, agent=agent), reader)

    subjects = {"padded": Updates(learner(), batches), "packed": Updates(learner(), batches, packed=True)}
    compile_s = None
    if not options.quick and encoder != NOT_COMPILED:
        subjects["compiled"] = Updates(learner(), batches)
        compile_s = compiled(subjects["compiled"])
        if compile_s is None:
            del subjects["compiled"]
    padded = subjects["padded"]
    calls = measure.calls_within(padded.once, 0.02 if options.quick else 0.4)
    for updates in subjects.values():
        updates.calls = calls
    timings = measure.interleaved(subjects, 0.1 if options.quick else options.seconds)
    return {
        "agent": agent,
        "encoder": encoder,
        "actions": actions,
        "ms": timings["padded"].divided(calls).median * 1e3,
        "updates_per_s": timings["padded"].spread(calls),
        **{name: measure.ratio(timings["padded"], timings[name]) for name in subjects if name != "padded"},
        "compile_s": compile_s,
        "runs": len(timings["padded"].seconds),
        **profiled(padded.once, calls=max(NUM_PREPARED, calls)),
    }


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    cases = list(product(("Agent", "MultiTaskAgent"), ENCODERS, ACTIONS))
    rows = []
    for case in cases[:1] if options.quick else cases:
        if options.only in " ".join(case):
            measure.say(" ".join(case))
            rows.append(measure_case(*case, options))
    return {"size": options.size}, rows


if __name__ == "__main__":
    arguments = measure.parser("update_profile", __doc__, seconds=4.0)
    arguments.add_argument("--size", choices=tuple(SIZES), default="default", help="of the networks (%(default)s)")
    arguments.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parsed = arguments.parse_args()
    torch.set_num_threads(parsed.threads)
    keep_freed_memory()  # as in learner processes
    measure.main(parsed, TABLES, run)
