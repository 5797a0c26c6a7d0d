"""Networks as acting multiplies with them: plain linear layers in place of reparametrised ones, scales of heads in the
matrices that follow. What is exported or compiled then has no arithmetic on weights in it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from amago_ray.nets.sigma_reparam import SigmaReparam
from amago_ray.nets.transformer import AttentionLayer

Module = TypeVar("Module", bound=nn.Module)


def folded(module: Module) -> Module:
    """A copy that computes the same, not to be trained. Layers that are in several places stay one."""
    plain = copy.deepcopy(module).eval().requires_grad_(False)
    linear: dict[SigmaReparam, nn.Linear] = {}
    for layer in [*plain.modules()]:
        if isinstance(layer, AttentionLayer):
            layer.head_scaler = None
        for name, child in [*layer._modules.items()]:
            if isinstance(child, SigmaReparam):
                setattr(layer, name, linear.setdefault(child, child.folded()))
    fold_into(plain, module)
    return plain


@torch.no_grad()
def fold_into(plain: nn.Module, module: nn.Module) -> None:
    """Write the weights that `module` has now into `plain`, which `folded` has made of it, each where it lies."""
    now = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    layers = dict(module.named_modules(remove_duplicate=False))
    for name, layer in layers.items():
        if isinstance(layer, SigmaReparam):
            now[f"{name}.weight"] = layer.effective_weight()
    for name, layer in layers.items():
        if isinstance(layer, AttentionLayer):
            now[f"{name}.out_projection.weight"] = layer.out_weight()
    for name, place in (*plain.named_parameters(), *plain.named_buffers()):
        place.copy_(now[name])
