"""Time and memory that sequence models take to train on long sequences, and a figure of both.

One forward and backward of the trajectory encoder alone, in AMAGO's default size, on one sequence: the Transformer with
full causal attention, the same with a sliding window, and Mamba, in turn at every length.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import torch
from measure import Column, Row, Table

from amago_ray.driver.malloc import keep_freed_memory
from amago_ray.nets.attention import SlidingWindowAttention
from amago_ray.nets.traj_encoders import MambaTrajEncoder, TformerTrajEncoder, TrajEncoder
from amago_ray.watch.curves import COLOURS, DPI, FAINT, INK, PANEL_SIZE_IN, STYLE

LENGTHS, QUICK_LENGTHS = (128, 512, 2048, 8192), (64, 128)
WINDOW = 128
WIDTH = 256  # of the timestep embeddings, and of every encoder by default
TRANSFORMER = "Transformer"
ENCODERS: dict[str, Callable[..., TrajEncoder]] = {
    TRANSFORMER: TformerTrajEncoder,
    f"Transformer, window {WINDOW}": partial(
        TformerTrajEncoder, attention_type=partial(SlidingWindowAttention, WINDOW)
    ),
    "Mamba": MambaTrajEncoder,
}
FIGURE = measure.ROOT / "docs" / "long_context.png"

TABLES = (
    Table(
        "Forward and backward of a trajectory encoder on one long sequence",
        (
            Column("encoder", "encoder"),
            Column("length", "timesteps", ",d"),
            Column("seconds", "ms", ",.0f", scale=1e-3),
            Column("timesteps_per_s", "timesteps/s", ",.0f"),
            Column("speedup", "full attention's time / its", ".2f"),
            Column("peak_bytes", "peak MB", ",.0f", scale=1e6),
            Column("runs", "runs"),
        ),
    ),
)


class TrainingPass:
    """A call is one forward and backward in training mode, over one sequence of `length` timesteps."""

    def __init__(self, encoder_type: Callable[..., TrajEncoder], length: int, device: str):
        torch.manual_seed(0)
        self.encoder = encoder_type(tstep_dim=WIDTH, max_seq_len=length).to(device).train()
        # As after a timestep encoder, whose output takes a gradient too.
        self.seq_BLD = torch.randn(1, length, WIDTH, device=device, requires_grad=True)
        self.time_idx_BL = torch.arange(length, device=device).unsqueeze(0)

    def __call__(self) -> None:
        self.encoder(self.seq_BLD, self.time_idx_BL).sum().backward()
        self.encoder.zero_grad()
        self.seq_BLD.grad = None


def measure_length(length: int, options: argparse.Namespace) -> list[Row]:
    passes = {name: TrainingPass(encoder_type, length, options.device) for name, encoder_type in ENCODERS.items()}
    timings = measure.interleaved(
        passes, 0.1 if options.quick else options.seconds, min_rounds=2 if options.quick else 3, device=options.device
    )
    return [
        {
            "encoder": name,
            "length": length,
            "seconds": {
                "median": timing.median,
                "min": min(timing.seconds),
                "max": max(timing.seconds),
            },
            "timesteps_per_s": length / timing.median,
            "speedup": measure.ratio(timings[TRANSFORMER], timing),
            "peak_bytes": measure.peak_bytes(passes[name], options.device),
            "runs": len(timing.seconds),
        }
        for name, timing in timings.items()
    ]


def run(options: argparse.Namespace) -> tuple[Row, list[Row]]:
    rows = []
    for length in QUICK_LENGTHS if options.quick else LENGTHS:
        if options.only in str(length):
            measure.say(f"{length} timesteps")
            rows += measure_length(length, options)
    return {"batch_size": 1, "width": WIDTH, "window": WINDOW}, rows


def draw(result: Row, figure: Path) -> None:
    """Time (the median, and the range as a band) and peak memory against length, into a PNG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, its = result["rows"], result["machine"]
    width_in, height_in = PANEL_SIZE_IN
    with rc_context(STYLE):
        picture = Figure(figsize=(2 * width_in, height_in + 0.6), layout="constrained")
        time_axes, memory_axes = picture.subplots(1, 2)
        for colour, name in zip(COLOURS, dict.fromkeys(row["encoder"] for row in rows)):
            its_rows = [row for row in rows if row["encoder"] == name]
            lengths = [row["length"] for row in its_rows]
            seconds = {part: [row["seconds"][part] for row in its_rows] for part in ("median", "min", "max")}
            time_axes.plot(lengths, seconds["median"], color=colour, marker="o", markersize=4, label=name)
            time_axes.fill_between(lengths, seconds["min"], seconds["max"], color=colour, alpha=0.15, linewidth=0)
            memory = [row["peak_bytes"] / 1e6 for row in its_rows]
            memory_axes.plot(lengths, memory, color=colour, marker="o", markersize=4)
        for axes, title in ((time_axes, "Forward and backward, s"), (memory_axes, "Peak memory, MB")):
            axes.set(title=title, xscale="log", yscale="log", xlabel="timesteps in the sequence")
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.minorticks_off()
        picture.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor=INK)
        where = its["cpu"] if its["device"] == "cpu" else its["device"]
        measured = f"torch threads: {its['torch_threads']}; {where}; {result['date'][:10]}; medians, ranges as bands"
        picture.supxlabel(measured, fontsize=6, color=FAINT)
        figure.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(picture).print_figure(figure, dpi=DPI)


if __name__ == "__main__":
    arguments = measure.parser("long_context", __doc__, seconds=5.0)
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    arguments.add_argument(
        "--figure", type=Path, default=FIGURE, metavar="PNG", help="the figure (default: docs/long_context.png)"
    )
    parsed = arguments.parse_args()
    torch.set_num_threads(parsed.threads)
    keep_freed_memory()  # as in learner processes
    measure.main(parsed, TABLES, run, parsed.device)
    draw(json.loads((parsed.out / f"{parsed.label}.json").read_text(encoding="utf-8")), parsed.figure)
