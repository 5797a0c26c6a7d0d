"""The benchmarks run, briefly, and write what they promise; what they share measures what it says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from amago_ray.nets.recurrent import gru_sequence

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

COMMON = {"benchmark", "date", "revision", "machine", "quick", "seconds_per_case", "total_s", "rows"}
MACHINE = {"cpu", "cores", "device", "torch", "numpy", "python", "torch_threads", "load_average"}
# name -> (more options, facts about the run, positive numbers of every row, ranges of every row)
EXPECTED: dict[str, tuple[list[str], set[str], set[str], set[str]]] = {
    "rollout": (
        [],
        set(),
        {"num_envs", "runs", "act_us", "step_us", "rest_us", "bare_act_us", "bare_step_us"},
        {"worker_frames_per_s", "bare_frames_per_s", "ratio"},
    ),
    "slow_environments": (
        [],
        set(),
        {"step_ms", "num_envs", "runs"},
        {"sleepers", "sync", "processes", "double_buffer", "speedup"},
    ),
    "learner": (
        ["--threads", "1", "--only", "demo Agent GRU"],
        {"precision", "float32_flops_per_s", "bfloat16_flops_per_s"},
        {"parameters", "runs", "train_ratio", "padding", "flops_per_update", "flops_per_s", "fraction_of_matrix_rate"}
        | {"peak_bytes", "plain_flops_per_update", "plain_peak_bytes", "float32_fraction", "bfloat16_fraction"},
        {"updates_per_s", "train_updates_per_s", "plain_updates_per_s", "speedup", "bfloat16_updates_per_s"}
        | {"float32_updates_per_s", "bfloat16_speedup"},
    ),
    "update_profile": (
        [],
        {"size"},
        {"ms", "runs", "matrix products", "elementwise"},
        {"updates_per_s", "packed"},
    ),
    "long_context": (
        ["--threads", "1", "--only", "64", "--figure", "long_context.png"],
        {"batch_size", "width", "window"},
        {"length", "timesteps_per_s", "peak_bytes", "runs"},
        {"seconds", "speedup"},
    ),
    "replay": (
        ["--only", "10,000"],
        {"memcpy_bytes_per_s", "peak_resident_bytes"},
        {"num_shards", "runs", "push_bytes_per_s", "push_copy_bytes_per_s", "stored_fraction", "npz_steps_per_s"}
        | {"sample_bytes_per_s", "batch_bytes_per_s"},
        {"push_trajectories_per_s", "push_ratio", "sample_steps_per_s", "sample_ratio", "npz_ratio"}
        | {"batch_steps_per_s", "batch_ratio"},
    ),
    "replay_disk": (
        ["--only", "10,000"],
        {"machine_memory_bytes", "dropped_from_page_cache"},
        {"stored_bytes", "sample_bytes_per_s", "read_bytes_per_s", "npz_steps_per_s", "runs"},
        {"sample_steps_per_s", "read_ratio", "npz_ratio"},
    ),
    "replay_memory": (
        ["--only", "files"],
        set(),
        {"pushed", "held", "held_bytes", "anonymous_bytes", "resident_bytes"},
        set(),
    ),
    "saving": ([], set(), {"parameters", "bytes", "first_s", "memcpy_s"}, {"copy_s", "write_s"}),
}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("measure")


# The benchmarks also run where PyTorch is and Ray, wandb and rich are not: here these three cannot be imported.
RUN_WITHOUT_RAY = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "wandb", "rich")))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name: str, *options: str, cwd: Path | None = None) -> str:
    """What the benchmark prints to its standard output."""
    command = [sys.executable, "-c", RUN_WITHOUT_RAY, (BENCHMARKS / f"{name}.py").as_posix(), *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_a_quick_run_writes_its_results(name: str, tmp_path: Path) -> None:
    more, facts, numbers, ranges = EXPECTED[name]
    printed = run(name, "--quick", "--out", str(tmp_path), *more, cwd=tmp_path)
    result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert COMMON | facts <= set(result)
    assert set(result["machine"]) == MACHINE
    assert result["benchmark"] == name and result["quick"] and result["rows"]
    for row in result["rows"]:
        assert all(row[key] > 0 for key in numbers), row
        assert all(0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"] for key in ranges), row
    assert "A --quick run" in printed
    if name == "long_context":
        assert (tmp_path / "long_context.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_meant_for_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    """Updates and acting, the latter with the same actions as one graph as step by step."""
    printed = run("gpu", "--quick", "--device", "cpu", "--only", "512", "--out", str(tmp_path), cwd=tmp_path)
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    updates = [row for row in result["rows"] if "size" in row]
    acting = [row for row in result["rows"] if "encoder" in row]
    assert {(row["size"], row["precision"]) for row in updates} == {("6 x 512", "float32"), ("6 x 512", "bfloat16")}
    assert {(row["encoder"], row["num_envs"]) for row in acting} == {("GRU", 512), ("Transformer", 512)}
    assert all(row["of_matrix_rate"] > 0 and row["peak_bytes"] > 0 and row["waits"] == "-" for row in updates)
    assert [line.split()[0] for line in printed.splitlines() if "512" in line] == ["6"] * 4 + ["GRU", "Transformer"]


def test_recorded_results_are_printed_as_markdown(
    measure: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = measure.Table("Title", (measure.Column("name", "name"),))
    options = measure.parser("made_up", "", seconds=1.0).parse_args(["--markdown", "--out", str(tmp_path)])

    def must_not_run(options: object) -> None:
        raise AssertionError("--markdown measures nothing")

    with pytest.raises(SystemExit, match="nothing is recorded"):
        measure.main(options, [table], must_not_run)
    recorded = {"date": "2000-01-01", "revision": "abc", "machine": measure.machine(), "quick": False}
    (tmp_path / "made_up.json").write_text(json.dumps({**recorded, "rows": [{"name": "a"}]}), encoding="utf-8")
    measure.main(options, [table], must_not_run)
    printed = capsys.readouterr().out
    assert "**Title**\n\n| name |\n| :-- |\n| a |\n\n2000-01-01, revision abc; " in printed


def test_subjects_take_turns(measure: ModuleType) -> None:
    calls: list[str] = []
    timings = measure.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        seconds=0.0,
        min_rounds=3,
        before={"b": lambda: calls.append("before b")},
    )
    assert calls == ["a", "before b", "b"] * 4  # one round warms up
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_ratios_are_of_medians_with_the_range_over_rounds(measure: ModuleType) -> None:
    slow, fast = measure.Timing((2.0, 8.0, 4.0)), measure.Timing((1.0, 2.0, 4.0))
    assert measure.ratio(slow, fast) == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert fast.spread(work=8.0) == {"median": 4.0, "min": 2.0, "max": 8.0}


def test_tables_align_and_turn_into_markdown(measure: ModuleType) -> None:
    columns = (
        measure.Column("name", "name"),
        measure.Column("rate", "GB/s", ".1f", scale=1e9),
        measure.Column("x", "x"),
    )
    table = measure.Table("Title", columns)
    rows = [{"name": "a", "rate": 1.5e9}, {"name": "long", "rate": {"median": 2e9, "min": 1e9, "max": 3e9}, "x": 7}]
    assert table.render(rows) == ("Title\n\nname           GB/s  x\na               1.5  -\nlong  2.0 (1.0-3.0)  7")
    assert table.render(rows, markdown=True) == (
        "**Title**\n\n| name | GB/s | x |\n| :-- | --: | --: |\n| a | 1.5 | - |\n| long | 2.0 (1.0-3.0) | 7 |"
    )


def test_operations_of_the_gru_are_counted(measure: ModuleType) -> None:
    """Its recurrence adds products to what is there, inside an autograd.Function; every one is counted once."""
    B, L, D, H = 3, 5, 8, 16
    rnn, x = nn.GRU(D, H, batch_first=True), torch.randn(B, L, D, requires_grad=True)
    forward = 2 * B * L * (D * 3 * H + H * 3 * H)
    assert measure.count_flops(lambda: gru_sequence(rnn, x)) == forward
    # Backward: as much again for the gradient of each product's input, and of its weight; the first state has none.
    nowhere = 2 * B * H * 3 * H
    assert measure.count_flops(lambda: gru_sequence(rnn, x).sum().backward()) == 3 * forward - nowhere


def test_operations_of_matrix_vector_products_are_counted(measure: ModuleType) -> None:
    matrix, vector = torch.randn(6, 5), torch.randn(5)
    assert measure.count_flops(lambda: matrix @ vector) == 2 * 6 * 5


def test_operations_of_fused_attention_are_counted_on_cpus(measure: ModuleType) -> None:
    B, H, L, K = 2, 4, 16, 8
    q = torch.randn(B, H, L, K, requires_grad=True)

    def attend() -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    forward = 2 * (2 * B * H * L * L * K)  # q k^T, and its product with v
    assert measure.count_flops(attend) == forward
    # PyTorch's convention for backward: q k^T again, and the gradients of q, k, v and of the attention weights.
    assert measure.count_flops(lambda: attend().sum().backward()) == forward + 5 * forward // 2


def test_operations_of_cudnn_recurrent_networks_follow_their_matrices(measure: ModuleType) -> None:
    formula = measure._uncounted_by_torch()[torch.ops.aten._cudnn_rnn]
    x, weights = (5, 3, 8), [(48, 8), (48, 16), (48,), (48,)]
    assert formula(x, weights) == 2 * 15 * (48 * 8 + 48 * 16)


def test_peak_memory_is_the_most_that_is_held_at_a_time(measure: ModuleType) -> None:
    held = torch.zeros(1000, 1000)

    def run() -> None:
        first = held + 1  # 4 MB
        second = first.exp() * 2  # 8 MB more while the product is made, 4 MB afterwards
        del first
        assert second.sum() > 0

    assert measure.peak_bytes(run) == pytest.approx(12e6, rel=0.01)
    assert measure.peak_bytes(lambda: None) == 0


def test_peak_memory_sees_what_is_kept_for_the_backward_pass(measure: ModuleType) -> None:
    layer, x = nn.Linear(100, 1000, bias=False), torch.randn(1000, 100)
    assert measure.peak_bytes(lambda: layer(x).exp().sum()) == pytest.approx(8e6, rel=0.01)
    # Backward: the result of exp is kept, the gradient before it is made from it, and the weight's from that.
    layer(x).exp().sum().backward()
    peak = measure.peak_bytes(lambda: layer(x).exp().sum().backward())
    assert 8e6 <= peak <= 12.5e6


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("learner")


@pytest.mark.parametrize("agent", ["Agent", "MultiTaskAgent"])
@pytest.mark.parametrize("encoder", ["FF", "GRU", "Transformer", "Mamba"])
def test_learners_of_both_precisions_share_a_process(learner: ModuleType, agent: str, encoder: str) -> None:
    """Each computes in its own, and bfloat16 gives nearly the same loss."""
    from agents import ACTIONS, SIZES, configured_spec

    size, action_spec = SIZES["demo"], ACTIONS["continuous"]
    shard = learner.filled_shard(size, action_spec, num_trajectories=4)
    reader = learner.ReplayReader([learner.LocalShard(shard)], batch_size=2, seed=0)
    spec = configured_spec(size, encoder, action_spec, agent=agent)
    made = learner.learners(learner.LearnerConfig(), spec, reader, learner.DTYPES)
    logs = []
    for one, dtype in zip(made, learner.DTYPES.values()):
        dtypes: set[torch.dtype] = set()
        for module in one.agent.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, args, out, seen=dtypes: seen.add(out.dtype))
        batch = learner.training_batch(next(iter(reader.batches(1, 0))), action_spec, one.device)
        torch.manual_seed(0)
        logs.append(one.update(batch, log=True))
        assert dtypes == {dtype}
        assert all(p.isfinite().all() for p in one.agent.parameters())
    # A fresh critic's loss is that of a uniform guess, and may round to the same number in both; the gradient does not.
    torch.testing.assert_close(logs[1]["Critic Loss"], logs[0]["Critic Loss"], rtol=0.05, atol=0.0)
    assert logs[0]["Gradient Norm"] != logs[1]["Gradient Norm"]


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::add_", "elementwise"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm_backward", "reductions, norms"),
        ("aten::index_select", "copies"),
        ("AddmmBackward0", "python and bookkeeping"),
    ],
)
def test_operations_are_sorted_by_kind(monkeypatch: pytest.MonkeyPatch, operation: str, kind: str) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    assert importlib.import_module("update_profile").kind_of(operation) == kind
