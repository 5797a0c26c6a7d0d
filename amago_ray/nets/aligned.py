"""Widths that are no multiple of 8, in half precision on a GPU: its fast products of matrices want rows of 16 bytes.

Zeros fill them up, and what comes of the zeros is cut off again. The 35 values of 7 discount factors and 5 actions are
such a width; so is, mostly, what observations and the last action amount to.
"""

from __future__ import annotations

from torch import Tensor, is_autocast_enabled, nn
from torch.nn import functional as F

MULTIPLE = 8


def lacking(width: int, x: Tensor) -> int:
    """Columns to add to `width` for products with x; 0 where its device and precision do not care."""
    cares = x.is_cuda and (x.dtype.itemsize == 2 or is_autocast_enabled("cuda"))
    return -width % MULTIPLE if cares else 0


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), (..., d_in) -> (..., d_out)."""
    if type(layer) is not nn.Linear:
        return layer(x)
    d_out, d_in = layer.weight.shape
    more_in, more_out = lacking(d_in, x), lacking(d_out, x)
    if not (more_in or more_out):
        return layer(x)
    weight = F.pad(layer.weight, (0, more_in, 0, more_out))
    bias = None if layer.bias is None else F.pad(layer.bias, (0, more_out))
    return F.linear(F.pad(x, (0, more_in)), weight, bias)[..., :d_out]
