"""Linear layers that are reparametrised by their spectral norm (sigma-reparam, Zhai et al. 2023, arXiv 2303.06296)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import gin
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from amago_ray.nets.recomputation import statistics_are_held


@gin.configurable(allowlist=["fast_init"])
class SigmaReparam(nn.Module):
    """y = x (gamma W / sigma(W))^T + b, with sigma(W) = u^T W v the largest singular value of W (arXiv 2303.06296).

    u and v start as the true singular vectors and follow W by one power iteration per training step.

    iterates: whether a training step of this layer makes that iteration itself; else whoever has it calls
        `power_iterations`.
    fast_init: W and b start as those of `nn.Linear`, u and v as random unit vectors, which needs no singular value
        decomposition; sigma, and with it the scale of the layer, is then right only after some training steps.
    """

    u: Tensor
    v: Tensor

    def __init__(self, d_in: int, d_out: int, bias: bool = True, fast_init: bool = False):
        super().__init__()
        self.iterates = True
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        self.gamma = nn.Parameter(torch.ones(1))
        if fast_init:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
            if self.bias is not None:
                nn.init.uniform_(self.bias, -1 / math.sqrt(d_in), 1 / math.sqrt(d_in))
            u, v = F.normalize(torch.randn(d_out), dim=0), F.normalize(torch.randn(d_in), dim=0)
        else:
            nn.init.trunc_normal_(self.weight, std=0.02)
            left, _, right = torch.linalg.svd(self.weight.detach(), full_matrices=False)
            u, v = left[:, 0].clone(), right[0].clone()  # no views: files of weights refuse parts of a storage
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What the effective weight is made of."""
        return self.weight, self.gamma, self.u, self.v

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """gamma W / sigma(W), without gradient."""
        return self.weight * (self.gamma / torch.dot(self.u, self.weight.float() @ self.v))

    def folded(self) -> nn.Linear:
        """The same layer as a plain linear one, not to be trained."""
        d_out, d_in = self.weight.shape
        linear = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=self.bias is not None)  # (draws nothing)
        with torch.no_grad():
            linear.weight.copy_(self.effective_weight())
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.requires_grad_(False)

    def forward(self, x: Tensor, scale_D: Tensor | None = None) -> Tensor:
        """x (..., d_in) -> (..., d_out), of x * scale_D where a scale (d_in,) is given."""
        if self.iterates and self.training and not statistics_are_held():
            power_iterations([self])
        # Copies, because the next power iteration writes into the buffers before backward may have read them.
        u, v = (self.u.clone(), self.v.clone()) if self.training else (self.u, self.v)
        with torch.autocast(device_type=x.device.type, enabled=False):
            weight = _EffectiveWeight.apply(self.weight, self.gamma, u, v)
            weight = weight if scale_D is None else weight * scale_D
        return F.linear(x, weight, self.bias)


class _EffectiveWeight(torch.autograd.Function):
    """gamma W / sigma with sigma = u^T W v; u and v take no gradient.

    With G the gradient of the result, that of W is (gamma / sigma) (G - <G, W> / sigma u v^T), and <G, W> / sigma that
    of gamma: written down, three passes over a matrix where autograd makes five.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gamma: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = torch.dot(u, weight.float() @ v)
        scale = gamma / sigma
        ctx.save_for_backward(weight, scale, sigma, u, v)
        return weight * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, scale, sigma, u, v = ctx.saved_tensors
        inner = torch.dot(gradient.flatten(), weight.flatten()) / sigma
        return (gradient * scale).addr_(u * (-inner * scale), v), inner.reshape(1), None, None


@torch.no_grad()
def power_iterations(layers: Iterable[SigmaReparam]) -> None:
    """One power iteration of each layer, in float32 whatever the precision: u and v follow its weight.

    Layers of one shape are normalised together: on a GPU the launches take longer than what they do.
    """
    by_shape: dict[torch.Size, list[SigmaReparam]] = {}
    for layer in layers:
        by_shape.setdefault(layer.weight.shape, []).append(layer)
    for alike in by_shape.values():
        with torch.autocast(alike[0].weight.device.type, enabled=False):
            weights = [layer.weight.float() for layer in alike]
            u_XO = torch.stack([weight @ layer.v for weight, layer in zip(weights, alike, strict=True)])
            u_XO = F.normalize(u_XO, dim=1)
            v_XI = torch.stack([u_O @ weight for u_O, weight in zip(u_XO, weights, strict=True)])
            v_XI = F.normalize(v_XI, dim=1)
        torch._foreach_copy_([layer.u for layer in alike], list(u_XO))
        torch._foreach_copy_([layer.v for layer in alike], list(v_XI))
