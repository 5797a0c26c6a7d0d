"""Matrices that lie by columns: the same numbers, and they stay where they are put."""

from __future__ import annotations

import copy

import torch
from torch import nn

from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.nets.columns import by_columns, laid_out_for_acting


def small_module() -> nn.ModuleDict:
    return nn.ModuleDict({"linear": nn.Linear(5, 7), "gru": nn.GRU(7, 3, 2), "norm": nn.LayerNorm(3)})


def lies_by_columns(matrix: torch.Tensor) -> bool:
    return matrix.t().is_contiguous() and not matrix.is_contiguous()


def test_every_matrix_lies_by_columns_and_has_its_numbers() -> None:
    module = small_module()
    before = copy.deepcopy(module.state_dict())
    assert laid_out_for_acting(module) is module
    matrices = [name for name, value in module.state_dict().items() if value.dim() == 2]
    assert len(matrices) == 5 and all(lies_by_columns(module.state_dict()[name]) for name in matrices)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_is_loaded_keeps_the_order() -> None:
    learner, worker = small_module(), laid_out_for_acting(small_module())
    load_flat_state(worker, flatten_state(learner))
    assert lies_by_columns(worker["linear"].weight) and lies_by_columns(worker["gru"].weight_hh_l1)
    for (name, ours), theirs in zip(worker.state_dict().items(), learner.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    worker.load_state_dict(small_module().state_dict())
    assert lies_by_columns(worker["linear"].weight)


def test_flattened_it_is_what_it_was() -> None:
    module = small_module()
    before = flatten_state(module)
    assert (flatten_state(laid_out_for_acting(module)) == before).all()


def test_one_matrix() -> None:
    matrix = torch.randn(4, 6)
    assert lies_by_columns(by_columns(matrix)) and torch.equal(by_columns(matrix), matrix)
