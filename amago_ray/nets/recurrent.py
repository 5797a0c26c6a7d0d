"""The recurrent half of a GRU layer over whole sequences, with its backward pass written out.

On CPUs, PyTorch's GRU runs some ten small operations per timestep and differentiates them one by one, weight gradients
included. Here the backward loop is four operations per timestep and every weight gradient is one matrix product over
all timesteps; where there is a compiler, both loops are C++ (gru_recurrence.cpp), which takes about half of their
time. (On GPUs cuDNN does the same and more, and is used there.)

Shape letters: L timesteps, B sequences, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from amago_ray.nets.kernels import call
from amago_ray.nets.packed_sequences import Packing

SOURCE, KERNEL_WIDTH = "gru_recurrence", 32  # of the kernel, which takes multiples of that width


def times_tanh_slope_(x: Tensor, tanh: Tensor) -> Tensor:
    """x * (1 - tanh^2), in place."""
    return torch.ops.aten.tanh_backward.grad_input(x, tanh, grad_input=x)


def times_sigmoid_slope_(x: Tensor, sigmoid: Tensor) -> Tensor:
    """x * sigmoid * (1 - sigmoid), in place."""
    return torch.ops.aten.sigmoid_backward.grad_input(x, sigmoid, grad_input=x)


class GRURecurrence(torch.autograd.Function):
    """h_t = (1 - z_t) n_t + z_t h_{t-1}, from gates_x = x W_ih^T + b_ih that were computed for all t at once.

    With the gate order of `torch.nn.GRU` (reset, update, new):
    [r z] = sigmoid(gates_x + h W_hh^T + b_hh), n = tanh(gates_x + r * (h W_hh^T + b_hh)).
    """

    @staticmethod
    def forward(ctx: Any, gates_LBG: Tensor, weight_GH: Tensor, bias_G: Tensor) -> Tensor:
        """gates (L, B, 3H), weight (3H, H), bias (3H,) -> hidden states (L, B, H), from h = 0."""
        length, batch, width = gates_LBG.shape[0], gates_LBG.shape[1], weight_GH.shape[1]
        weight_HG = weight_GH.t()
        hidden = gates_LBG.new_empty(length + 1, batch, width)
        hidden[0] = 0.0
        new = gates_LBG.new_empty(length, batch, width)
        # What the products are added to: for r and z gates_x + b_hh, which become r and z in their place; for n b_hh.
        gates = gates_LBG + torch.cat((bias_G[: 2 * width], torch.zeros_like(bias_G[2 * width :])))
        given_new = gates_LBG[..., 2 * width :]
        gates[..., 2 * width :] = bias_G[2 * width :]
        # All views are made before the loop: one at a time they were a sixth of its time.
        reset, update, recurrent_new = (part.unbind() for part in gates.chunk(3, dim=2))
        reset_update, states = gates[..., : 2 * width].unbind(), hidden.unbind()
        for t, (all_gates, given, n) in enumerate(zip(gates.unbind(), given_new.unbind(), new.unbind(), strict=True)):
            all_gates.addmm_(states[t], weight_HG)
            reset_update[t].sigmoid_()
            torch.addcmul(given, reset[t], recurrent_new[t], out=n).tanh_()
            torch.lerp(n, states[t], update[t], out=states[t + 1])
        ctx.save_for_backward(weight_GH, hidden, gates, new)
        return hidden[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_GH, hidden, gates, new = ctx.saved_tensors
        length, batch, width = grad_LBH.shape
        reset, update, recurrent_new = gates.chunk(3, dim=2)
        # What a gradient at h_t is multiplied with on its way to each pre-activation: known before the loop starts.
        factors = gates.new_empty(length, batch, 3, width)
        to_reset, to_update, to_recurrent_new = factors.unbind(2)
        to_new = times_tanh_slope_(1 - update, new)
        times_sigmoid_slope_(torch.mul(to_new, recurrent_new, out=to_reset), reset)
        times_sigmoid_slope_(torch.sub(hidden[:-1], new, out=to_update), update)
        torch.mul(to_new, reset, out=to_recurrent_new)
        grad_hidden = torch.empty_like(grad_LBH, memory_format=torch.contiguous_format)
        states, coming, kept = grad_hidden.unbind(), grad_LBH.unbind(), update.unbind()
        grads_LBG = factors.flatten(2)  # in the place of the factors, one timestep after the other
        each_gate, in_place, grads = grad_hidden.unsqueeze(2).unbind(), factors.unbind(), grads_LBG.unbind()
        states[-1].copy_(coming[-1])
        in_place[-1].mul_(each_gate[-1])
        for t in range(length - 2, -1, -1):
            torch.addcmul(coming[t], states[t + 1], kept[t + 1], out=states[t]).addmm_(grads[t + 1], weight_GH)
            in_place[t].mul_(each_gate[t])
        grad_recurrent = grads_LBG.view(length * batch, 3 * width)
        grad_weight = grad_recurrent.t() @ hidden[:-1].reshape(length * batch, width)
        grad_bias = grad_recurrent.sum(dim=0)
        # The new gate sees gates_x directly, not through r.
        torch.mul(grad_hidden, to_new, out=to_recurrent_new)
        return grads_LBG, grad_weight, grad_bias


class CompiledGRURecurrence(torch.autograd.Function):
    """A `GRURecurrence` in float32 whose width is a multiple of `KERNEL_WIDTH`, by a kernel on a processor.

    Its results depend neither on the number of threads nor on what else is in the batch.
    """

    @staticmethod
    def forward(ctx: Any, gates_LBG: Tensor, weight_GH: Tensor, bias_G: Tensor) -> Tensor:
        """As `GRURecurrence.forward`. Raises OSError where `kernels.compiled` does."""
        sizes = length, batch, width = *gates_LBG.shape[:2], weight_GH.shape[1]
        gates_LBG, weight_GH = gates_LBG.contiguous(), weight_GH.contiguous()
        hidden = gates_LBG.new_empty(length + 1, batch, width)
        hidden[0] = 0.0
        new, gates = hidden.new_empty(sizes), torch.empty_like(gates_LBG)
        call(SOURCE, "gru_forward", gates_LBG, weight_GH, bias_G.contiguous(), hidden, gates, new, sizes=sizes)
        ctx.save_for_backward(weight_GH, hidden, gates, new)
        return hidden[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_GH, hidden, gates, new = ctx.saved_tensors
        sizes = length, batch, width = new.shape
        # The new gate sees gates_x directly, and the recurrent product through r.
        grads_LBG, grad_product = torch.empty_like(gates), torch.empty_like(new)
        given = grad_LBH.contiguous(), weight_GH, hidden, gates, new
        call(SOURCE, "gru_backward", *given, grads_LBG, grad_product, sizes=sizes)
        before = hidden[:-1].reshape(length * batch, width)
        parts = grads_LBG.view(length * batch, 3 * width)[:, : 2 * width], grad_product.view(length * batch, width)
        grad_weight = torch.cat([part.t() @ before for part in parts])
        return grads_LBG, grad_weight, torch.cat([part.sum(dim=0) for part in parts])


def gru_sequence(rnn: nn.GRU, x: Tensor, packing: Packing | None = None, kernel: bool = False) -> Tensor:
    """What `rnn(x)[0]` computes for a batch-first GRU that starts from zeros: (B, L, D) -> (B, L, H).

    packing: of sequences that lie end to end, (1, R, D) -> (1, R, H). kernel: use `CompiledGRURecurrence` where it can.
    """
    if x.device.type != "cpu":
        return rnn(x)[0] if packing is None else packing.pack(rnn(packing.pad(x))[0])
    if packing is None:
        x = x.transpose(0, 1).contiguous()  # (L, B, D): timesteps stay outermost through all layers
    by_kernel = kernel and rnn.weight_hh_l0.dtype == torch.float32 and rnn.hidden_size % KERNEL_WIDTH == 0
    recurrence = CompiledGRURecurrence if by_kernel else GRURecurrence
    for layer in range(rnn.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        # Under autocast the large product runs in low precision; the recurrence itself stays in float32.
        gates = F.linear(x, w_ih, b_ih).to(w_hh.dtype)
        if packing is None:
            x = recurrence.apply(gates, w_hh, b_hh)
        else:
            gates_LBG = packing.pad(gates).transpose(0, 1).contiguous()
            x = packing.pack(recurrence.apply(gates_LBG, w_hh, b_hh).transpose(0, 1))
    return x if packing is not None else x.transpose(0, 1)


def gru_step(rnn: nn.GRU, x_BD: Tensor, hidden_LBH: Tensor) -> tuple[Tensor, Tensor]:
    """What `rnn` makes of one timestep: ((B, H), hidden states after it). Here L counts layers.

    On CPUs six operations per layer, where PyTorch's GRU takes some twenty for a sequence of one.
    """
    if x_BD.device.type != "cpu":
        out_B1H, hidden_LBH = rnn(x_BD.unsqueeze(1), hidden_LBH)
        return out_B1H.squeeze(1), hidden_LBH
    width, x, after = rnn.hidden_size, x_BD, []
    for (w_ih, w_hh, b_ih, b_hh), h_BH in zip(rnn.all_weights, hidden_LBH.unbind(), strict=True):
        x_rz, x_new = F.linear(x, w_ih, b_ih).split_with_sizes((2 * width, width), dim=1)
        h_rz, h_new = F.linear(h_BH, w_hh, b_hh).split_with_sizes((2 * width, width), dim=1)
        reset, update = (x_rz + h_rz).sigmoid_().chunk(2, dim=1)
        x = torch.lerp(torch.addcmul(x_new, reset, h_new).tanh_(), h_BH, update)
        after.append(x)
    return x, torch.stack(after)
