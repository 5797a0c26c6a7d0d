"""In which precision a learner's matrix products are computed."""

from __future__ import annotations

from typing import Literal

import torch

MixedPrecision = Literal["no", "bf16", "fp16", "auto"]


def precision_on(device: str, wanted: MixedPrecision) -> Literal["no", "bf16", "fp16"]:
    """What `wanted` is on this machine's "cpu" or "cuda": "auto" is "bf16" where that has instructions of its own.

    Where it has none it is emulated, at a fraction of the speed of float32. Raises ValueError for "fp16" on "cpu".
    """
    if wanted == "fp16" and device == "cpu":
        raise ValueError(
            "Experiment.mixed_precision='fp16': its loss scale needs a GPU; on a processor take 'auto' or 'bf16'"
        )
    if wanted != "auto":
        return wanted
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()  # what this kind of processor does not know is not in it
        fast = any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if fast else "no"
