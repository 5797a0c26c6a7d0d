"""Matrices in the order of memory that acting wants on a processor.

A step of B environments multiplies a few rows with each matrix of weights: x W^T. From one to a few dozen rows the
product takes a half to nine tenths of its time where W lies column by column, so that W^T lies row by row, and from
hundreds on it makes no difference. (Kernels for few rows stream W^T; for many they copy it into their own order.)
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def by_columns(matrix: Tensor) -> Tensor:
    """The same numbers (d_out, d_in), column after column in memory. Where they lie on a GPU: as they are."""
    return matrix if matrix.is_cuda else matrix.t().contiguous().t()


def laid_out_for_acting(module: Module) -> Module:
    """`module` itself, whose linear and recurrent layers' matrices lie by columns from now on.

    What is loaded into it later keeps that order, as `copy_` and `load_state_dict` do.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.GRU):
            for parameter in layer.parameters(recurse=False):
                if parameter.dim() == 2:
                    parameter.data = by_columns(parameter.data)
    return module
