"""What a GPU makes of it: updates at three sizes and their share of its arithmetic, memory, and acting as one graph.

Needs PyTorch, numpy, gymnasium, gin-config and accelerate. `--device cpu --small` runs all of it anywhere, on networks
that a CPU can carry. Whether a GPU computes the right numbers is asked by `pytest tests/gpu`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from itertools import cycle, product
from typing import Any

import measure
import numpy as np
import torch
from accelerate.state import AcceleratorState
from agents import ACTIONS, RETURN_RANGE, Size, configured_spec
from learner import filled_shard
from measure import Column, Row, Table

from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.messages import Batch
from amago_ray.nets.columns import laid_out_for_acting
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.rollout.policy_step import GraphedPolicyStep, PolicyStep, make_policy_step

# Dense rates that makers name, in FLOP/s: of bfloat16 with float32 sums, and of float32 without TF32.
PEAKS = {
    "H100": {"bf16": 989.4e12, "no": 66.9e12},
    "H200": {"bf16": 989.4e12, "no": 66.9e12},
    "A100": {"bf16": 312.0e12, "no": 19.5e12},
}
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}
NUM_PREPARED = 3
ENVIRONMENTS = (64, 512)
HOW: dict[str, dict[str, Any]] = {
    "launch by launch": {"cuda_graphs": "never"},
    "one graph": {},
    "one graph, compiled": {"compile": True},
    "packed": {"packed": True},
    "recomputed": {"activation_checkpointing": True},
    "in 4 pieces": {"micro_batch_size": 8},
}
EVERYWHERE = ("launch by launch", "one graph")  # the rest where it is for: large, or half precision


def transformer(layers: int, width: int, batch_size: int, max_seq_len: int) -> Size:
    """A Transformer with heads of 64, and heads and timestep encoder of its own width."""
    settings = {
        "TformerTrajEncoder.d_model": width,
        "TformerTrajEncoder.n_layers": layers,
        "TformerTrajEncoder.n_heads": max(width // 64, 2),
        "TformerTrajEncoder.d_ff": 4 * width,
        "GRUTrajEncoder.d_hidden": width,
        "GRUTrajEncoder.d_output": width,
        "SigmaReparam.fast_init": True,  # a singular value decomposition of 4096 x 1024 takes a while
        "FFTstepEncoder.d_hidden": width,
        "FFTstepEncoder.d_output": width,
        "Actor.d_hidden": width,
        "NCritics.d_hidden": width,
    }
    bindings = (*RETURN_RANGE, *(f"{name} = {value}" for name, value in settings.items()))
    return Size(bindings, batch_size, max_seq_len, obs_width=32)


SIZES = {
    "3 x 256": transformer(3, 256, 24, 128),
    "6 x 512": transformer(6, 512, 24, 256),
    "12 x 1024": transformer(12, 1024, 32, 512),
}
SMALL = {
    "3 x 256": transformer(1, 32, 4, 16),
    "6 x 512": transformer(2, 32, 4, 16),
    "12 x 1024": transformer(2, 64, 12, 16),
}

TABLES = (
    Table(
        "Updates of an Agent with a Transformer and discrete actions",
        (
            Column("size", "layers x width"),
            Column("shape", "batch x length"),
            Column("precision", "precision"),
            Column("how", "how"),
            Column("num_graphs", "graphs"),
            Column("parameters", "parameters", ",d"),
            Column("updates_per_s", "updates/s", ".2f"),
            Column("flops_per_update", "GFLOP per update", ",.1f", scale=1e9),
            Column("of_matrix_rate", "of matrix rate", ".1%"),
            Column("utilisation", "of the maker's peak", ".1%"),
            Column("peak_bytes", "peak MB", ",.0f", scale=1e6),
            Column("waits", "waits"),
            Column("other_revision", "of revision"),  # in rows that are kept from another recording
        ),
    ),
    Table(
        "Acting: steps of all environments per second, operation by operation and as one graph",
        (
            Column("encoder", "encoder"),
            Column("num_envs", "environments"),
            Column("eager_steps_per_s", "as it comes", ",.0f"),
            Column("graph_steps_per_s", "one graph", ",.0f"),
            Column("graph_speedup", "graph / as it comes", ".2f"),
            Column("graph_kind", "graph"),
        ),
    ),
)


def peak_rate(device: str, precision: str) -> float | None:
    """The maker's figure for this device; None for one that is not listed."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((rates[precision] for known, rates in PEAKS.items() if known in name), None)


def never_waits(update: Callable[[], object], device: str) -> str:
    """Make one update that PyTorch ends where the host would wait for the device: "never", or where it did."""
    if device == "cpu":
        return "-"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "never"


def learner_and_batches(size: Size, **config: Any) -> tuple[Learner, list[Batch]]:
    AcceleratorState._reset_state()  # accelerate holds a process to one precision
    spec = configured_spec(size, "Transformer", ACTIONS["discrete"])
    reader = ReplayReader([LocalShard(filled_shard(size, ACTIONS["discrete"], 100))], size.batch_size, seed=0)
    return Learner(LearnerConfig(**config), spec, reader), list(reader.batches(NUM_PREPARED, 0))


@cache
def flops_per_update(size: Size, device: str, packed: bool) -> float:
    """Of the model, launched operation by operation on what is real and the padding to the longest sequence."""
    learner, drawn = learner_and_batches(size, device=device, cuda_graphs="never", packed=packed)
    batches = [learner.prepare(batch) for batch in drawn]
    return measure.count_flops(lambda: [learner.update(batch) for batch in batches]) / len(batches)


def measure_update(name: str, size: Size, precision: str, how: str, options: argparse.Namespace, rate: float) -> Row:
    """Utilisation = operations of an update x updates/s / rate. Operations are the model's: those that are done again
    where activations are recomputed, on more padding, and where pieces are encoded twice do not count."""
    device = options.device
    flops = flops_per_update(size, device, how == "packed")
    learner, drawn = learner_and_batches(size, device=device, mixed_precision=precision, **HOW[how])
    ready = cycle([learner.prepare(batch) for batch in drawn])

    def update() -> None:
        learner.update(next(ready))

    for _ in range(3 * NUM_PREPARED):  # compiled, warmed up, recorded
        update()
    graphed = learner._graphed
    calls = measure.calls_within(update, 0.05 if options.small else 0.4, device)
    timing = measure.interleaved(
        {"": lambda: [update() for _ in range(calls)]},
        options.seconds,
        min_rounds=2 if options.small else 3,
        device=device,
    )[""].divided(calls)
    waits, peak = never_waits(update, device), measure.peak_bytes(update, device)
    if graphed is not None and not graphed.failed:
        torch.cuda.empty_cache()  # all but what recordings hold for their intermediate results
        peak = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    maker = peak_rate(device, precision)
    measure.say(f"{timing.spread(1)['median']:.2f} updates/s")
    return {
        "size": name,
        "shape": f"{size.batch_size} x {size.max_seq_len}",
        "precision": str(PRECISIONS[precision]).removeprefix("torch."),
        "how": how,
        "num_graphs": None if graphed is None else len(graphed._recordings),
        "parameters": sum(p.numel() for p in learner.agent.parameters() if p.requires_grad),
        "updates_per_s": timing.spread(1),
        "flops_per_update": flops,
        "of_matrix_rate": flops / timing.median / rate,
        "utilisation": None if maker is None else flops / timing.median / maker,
        "peak_bytes": peak,
        "waits": waits,
    }


def measure_acting(encoder: str, num_envs: int, options: argparse.Namespace) -> Row:
    """As a rollout worker acts, greedily: arrays in, actions out."""
    size, action_spec = (SMALL if options.small else SIZES)["3 x 256"], ACTIONS["discrete"]
    spec = configured_spec(size, encoder, action_spec)
    policy = laid_out_for_acting(spec.build().policy.to(options.device).eval())
    eager = PolicyStep(policy, action_spec, num_envs, options.device, False)
    graph = make_policy_step(policy, action_spec, spec.obs_spec, num_envs, options.device, False)
    random, time_idx = np.random.default_rng(0), np.zeros(num_envs, np.int64)
    rl2 = np.zeros((num_envs, 1 + action_spec.vector_size), np.float32)
    for step in (eager, graph):
        step.begin_all()
    for _ in range(2 * size.max_seq_len if options.small else size.max_seq_len + 10):
        obs = {"observation": random.standard_normal((num_envs, size.obs_width), np.float32)}
        differ = (eager.act(obs, rl2, time_idx) != graph.act(obs, rl2, time_idx)).mean()
        assert differ <= 0.05, f"{differ:.0%} of the actions differ"  # some are, where two are as good to three digits
        time_idx += 1
    timings = measure.interleaved(
        {"eager": lambda: eager.act(obs, rl2, time_idx), "graph": lambda: graph.act(obs, rl2, time_idx)},
        options.seconds / 2,
        min_rounds=10,
        device=options.device,
    )
    return {
        "encoder": encoder,
        "num_envs": num_envs,
        "eager_steps_per_s": timings["eager"].spread(1),
        "graph_steps_per_s": timings["graph"].spread(1),
        "graph_speedup": measure.ratio(timings["eager"], timings["graph"]),
        "graph_kind": "CUDA graph" if isinstance(graph, GraphedPolicyStep) else "plain",
    }


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    options.small = options.small or options.quick
    sizes = SMALL if options.small else SIZES
    if options.quick:
        options.seconds = 0.1
    rates = {p: measure.fastest_product(options.device, dtype, options.small)[1] for p, dtype in PRECISIONS.items()}
    updates, acting = [], []
    for (name, size), precision in product(sizes.items(), PRECISIONS):
        large, half = name == "12 x 1024", precision == "bf16"
        for how in HOW if large and half else [*EVERYWHERE, "one graph, compiled"] if half else EVERYWHERE:
            if options.small and HOW[how].get("compile"):
                continue  # a CPU's compiler takes minutes
            if options.only in f"update {name} {precision} {how}":
                measure.say(f"update {name} {precision} {how}")
                updates.append(measure_update(name, size, precision, how, options, rates[precision]))
    for encoder, num_envs in product(("GRU", "Transformer"), ENVIRONMENTS):
        if options.only in f"acting {encoder} {num_envs}":
            measure.say(f"acting {encoder} {num_envs}")
            acting.append(measure_acting(encoder, num_envs, options))
    facts = {"small": options.small, "float32_flops_per_s": rates["no"], "bfloat16_flops_per_s": rates["bf16"]}
    return facts, updates + acting


if __name__ == "__main__":
    arguments = measure.parser("gpu", __doc__, seconds=5.0)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--small", action="store_true", help="networks that a CPU can carry: shows that it runs")
    parsed = arguments.parse_args()
    if parsed.device == "cpu" and not (parsed.small or parsed.quick or parsed.markdown):
        arguments.error("there is no GPU here; add --small to see it run on the CPU")
    measure.main(parsed, TABLES, run, parsed.device)
