"""Mixed precision "auto" is bfloat16 exactly where that is fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amago_ray.learner.precision import precision_on


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, "no"),
        ({}, "no"),
    ],
)
def test_on_cpus_their_instructions_tell(monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert precision_on("cpu", "auto") == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_on_gpus_emulation_does_not_count(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert precision_on("cuda", "auto") == expected


@pytest.mark.parametrize("wanted", ["no", "bf16", "fp16"])
def test_what_is_asked_for_is_taken(wanted: Any) -> None:
    assert precision_on("cuda", wanted) == wanted
    if wanted != "fp16":
        assert precision_on("cpu", wanted) == wanted


def test_a_loss_scale_needs_a_gpu() -> None:
    """Accelerate would compute in float32 without a word."""
    with pytest.raises(ValueError, match="Experiment.mixed_precision='fp16': its loss scale needs a GPU"):
        precision_on("cpu", "fp16")
