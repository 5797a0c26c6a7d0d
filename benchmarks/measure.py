"""What the benchmarks share: fair timing, what the machine can do at best, and tables.

A time on a shared machine says little by itself, so every benchmark times two or more things in one run, in turn
(A B A B ...), and reports the ratio of their medians: what slows the machine down slows down both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"

Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Timing:
    """Seconds that each run of one thing took."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def spread(self, work: float) -> dict[str, float]:
        """Work per second: of the median run, the slowest and the fastest."""
        return {"median": work / self.median, "min": work / max(self.seconds), "max": work / min(self.seconds)}

    def divided(self, calls: int) -> Timing:
        """Seconds per call, where each run was so many of them."""
        return Timing(tuple(seconds / calls for seconds in self.seconds))


def interleaved(
    subjects: Mapping[str, Callable[[], object]],
    seconds: float,
    min_rounds: int = 3,
    before: Mapping[str, Callable[[], object]] | None = None,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Run all subjects in turn, once each per round, until `seconds` are over and `min_rounds` are done.

    before: what to do before a run of a subject, outside its time. A first round warms up and is not counted. On cuda,
    a run ends when the device has finished.
    """
    before = before or {}
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    ends = None
    while ends is None or time.perf_counter() < ends or len(next(iter(taken.values()))) < min_rounds:
        for name, run in subjects.items():
            if name in before:
                before[name]()
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            taken[name].append(time.perf_counter() - started)
        if ends is None:
            taken = {name: [] for name in subjects}
            ends = time.perf_counter() + seconds
    return {name: Timing(tuple(times)) for name, times in taken.items()}


def ratio(numerator: Timing, denominator: Timing) -> dict[str, float]:
    """Ratio of the medians, and the least and greatest ratio within one round."""
    rounds = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    return {"median": numerator.median / denominator.median, "min": min(rounds), "max": max(rounds)}


def calls_within(run: Callable[[], object], seconds: float, device: str = "cpu", least: int = 1) -> int:
    """How many calls of `run` fit into `seconds`, by trying (after one call that warms up)."""
    run()
    synchronize(device)
    calls, started = 0, time.perf_counter()
    while calls < 3 and time.perf_counter() - started < seconds:
        run()
        synchronize(device)
        calls += 1
    return max(least, int(seconds * calls / (time.perf_counter() - started)))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------------------------------- the machine at its best


class MatrixProduct:
    """Products of two square matrices in preallocated memory; a call makes `repeats` of them."""

    def __init__(self, device: str, dtype: torch.dtype, size: int, repeats: int = 1):
        self.a, self.b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        self.out = torch.empty_like(self.a)
        self.repeats = repeats

    @property
    def flops(self) -> int:
        """Floating-point operations of a call."""
        return 2 * len(self.a) ** 3 * self.repeats

    def once(self) -> None:
        torch.mm(self.a, self.b, out=self.out)

    def fill(self, seconds: float, device: str) -> None:
        """Set `repeats` such that a call takes about so long."""
        self.repeats = calls_within(self.once, seconds, device)

    def __call__(self) -> None:
        for _ in range(self.repeats):
            self.once()


def fastest_product(device: str, dtype: torch.dtype, quick: bool = False) -> tuple[MatrixProduct, float]:
    """The size of product with the highest rate here, and its FLOP/s (best of several runs)."""
    sizes = (512, 1024) if quick else (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048)
    best, best_rate = None, 0.0
    for size in sizes:
        product = MatrixProduct(device, dtype, size)
        product.fill(0.02 if quick else 0.1, device)
        timing = interleaved({"": product}, seconds=0.05 if quick else 0.5, device=device)[""]
        rate = product.flops / min(timing.seconds)
        if rate > best_rate:
            best, best_rate = product, rate
    assert best is not None
    return best, best_rate


def memcpy_bytes_per_s(num_bytes: int = 1 << 28) -> float:
    """Rate of one thread's copy of a large array into memory that is there already (best of five)."""
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    timing = interleaved({"": lambda: np.copyto(target, source)}, seconds=0.0, min_rounds=5)[""]
    return num_bytes / min(timing.seconds)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What this was measured on. `load_average` is that of the minute before: above 0, something else was running."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def revision() -> str:
    """The commit that was measured, "+" if tracked files differed from it; "unknown" outside a git checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


# ------------------------------------------------------------------------------------- floating-point operations


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of one call, backward included.

    By PyTorch's own counter, which sees single operations, also those inside an autograd.Function (such as
    the GRU's recurrence), and four kinds that it does not know. As it does, attention counts all pairs of timesteps,
    masked ones too. Elementwise work, softmax, norms and the optimiser are not counted.
    """
    with FlopCounterMode(display=False, custom_mapping=_uncounted_by_torch()) as counter:
        run()
    return counter.get_total_flops()


def _uncounted_by_torch() -> dict[Any, Callable[..., int]]:
    """Formulas of the shapes: of matrix-vector products, products added to what is there, fused attention on CPUs, and
    cuDNN's recurrent networks."""

    def added_product(out: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    def attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def attention_backward(grad_out: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(grad_out, q, k, v)

    def recurrent(x: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
        # Every matrix (not the biases) meets every timestep of every sequence once.
        return 2 * x[0] * x[1] * sum(w[0] * w[1] for w in weights if len(w) == 2)

    def recurrent_backward(x: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
        return 2 * recurrent(x, weights)

    def matrix_vector(matrix: Any, vector: Any, *args: Any, **kwargs: Any) -> int:
        return 2 * matrix[0] * matrix[1]

    aten = torch.ops.aten
    return {
        aten.mv: matrix_vector,
        aten.addmm_: added_product,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        aten._cudnn_rnn: recurrent,
        aten._cudnn_rnn_backward: recurrent_backward,
    }


# ---------------------------------------------------------------------------------------------------- memory


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Most memory that one call holds at a time beyond what was held when it began, in bytes of PyTorch's allocator.

    Traced, not sampled: on CPUs every allocation of every operation, temporary ones inside operations too. There, what
    was held before and is freed during the call is not subtracted, so that the figure is an upper bound.
    What libraries below PyTorch keep for themselves (oneDNN, cuDNN, thread stacks) is not seen.
    """
    if device == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


# ---------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """key: of a row; a value {"median", "min", "max"} is shown with its range. scale: the value is divided by it."""

    key: str
    heading: str
    spec: str = ""
    scale: float = 1.0

    def cell(self, row: Row) -> str:
        value = row.get(self.key)
        if value is None:
            return "-"
        if isinstance(value, dict):
            middle, low, high = (self._format(value[part]) for part in ("median", "min", "max"))
            return f"{middle} ({low}-{high})"
        return self._format(value)

    def _format(self, value: Any) -> str:
        return format(value / self.scale if self.scale != 1.0 else value, self.spec)


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]

    def render(self, rows: Sequence[Row], markdown: bool = False) -> str:
        """Aligned plain text, or a Markdown table. Text columns to the left, numbers to the right."""
        headings = [column.heading for column in self.columns]
        cells = [[column.cell(row) for column in self.columns] for row in rows]
        is_text = [all(isinstance(row.get(c.key), str) for row in rows) for c in self.columns]
        if markdown:
            lines = [headings, [":--" if text else "--:" for text in is_text], *cells]
            return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])
        widths = [max(map(len, column)) for column in zip(headings, *cells)]
        return "\n".join([self.title, "", *(_aligned(line, widths, is_text) for line in (headings, *cells))])


def _aligned(cells: Sequence[str], widths: Sequence[int], is_text: Sequence[bool]) -> str:
    pairs = zip(cells, widths, is_text)
    return "  ".join(c.ljust(width) if text else c.rjust(width) for c, width, text in pairs).rstrip()


# ------------------------------------------------------------------------------------------------ command lines


def parser(name: str, description: str, seconds: float) -> argparse.ArgumentParser:
    """The options that all benchmarks share. seconds: default time per case."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="few cases, briefly: shows that it runs, not how fast")
    options.add_argument("--seconds", type=float, default=seconds, help="time per case (default: %(default)s)")
    options.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    options.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of the results")
    options.add_argument("--label", default=name, help="the results' file is LABEL.json (default: %(default)s)")
    options.add_argument("--markdown", action="store_true", help="print the recorded results; measure nothing")
    return options


def main(
    options: argparse.Namespace,
    tables: Sequence[Table],
    run: Callable[[argparse.Namespace], tuple[Row, list[Row]]],
    device: str = "cpu",
) -> None:
    """Measure, print `tables` and write <out>/<label>.json; or, with --markdown, print what that file holds.

    run: options -> (facts about the whole run, rows of the tables).
    """
    path = options.out / f"{options.label}.json"
    if not options.markdown:
        started = time.perf_counter()
        described, commit = machine(device), revision()  # beforehand: the tree may change while this runs
        facts, rows = run(options)
        if not rows:
            raise SystemExit(f"--only {options.only!r} leaves no case")
        result = {
            "benchmark": Path(sys.argv[0]).stem,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "revision": commit,
            "machine": described,
            "quick": options.quick,
            "seconds_per_case": options.seconds,
            "total_s": round(time.perf_counter() - started, 1),
            **facts,
            "rows": rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not path.is_file():
        raise SystemExit(f"nothing is recorded in {path}: run this without --markdown first")
    result = json.loads(path.read_text(encoding="utf-8"))
    for table in tables:
        rows = [row for row in result["rows"] if table.columns[0].key in row]
        if rows:
            print("\n" + table.render(rows, options.markdown))
    print("\n" + describe(result))


def describe(result: Row) -> str:
    """One paragraph: where, when and on what these rows were measured."""
    its = result["machine"]
    on = its["cpu"] if its["device"] == "cpu" else f"{its['device']}, {its['cpu']}"
    text = (
        f"{result['date'][:10]}, revision {result['revision']}; {on}, {its['cores']} cores, torch {its['torch']}, "
        f"{its['torch_threads']} threads; load average before the run {its['load_average']}."
    )
    for key, name in (("float32_flops_per_s", "float32"), ("bfloat16_flops_per_s", "bfloat16")):
        if key in result:
            text += f" Matrix products in {name}: {result[key] / 1e9:,.0f} GFLOP/s."
    if "memcpy_bytes_per_s" in result:
        text += f" Copying memory: {result['memcpy_bytes_per_s'] / 1e9:.1f} GB/s."
    for name, error in result.get("failed", {}).items():
        text += f" Failed: {name} ({error})."
    return text + (" A --quick run: no measure of speed." if result["quick"] else "")


def say(text: str) -> None:
    """Progress, kept apart from the tables."""
    print(text, file=sys.stderr, flush=True)
