"""The recurrent half of a GRU layer over whole sequences, with its backward pass written out.

On CPUs, PyTorch's GRU runs some ten small operations per timestep and differentiates them one by one, weight gradients
included. Here the backward loop is four operations per timestep and every weight gradient is one matrix product over
all timesteps. (On GPUs cuDNN does the same and more, and is used there.)

Shape letters: L timesteps, B sequences, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from amago_ray.nets.packed_sequences import Packing


class GRURecurrence(torch.autograd.Function):
    """h_t = (1 - z_t) n_t + z_t h_{t-1}, from gates_x = x W_ih^T + b_ih that were computed for all t at once.

    With the gate order of `torch.nn.GRU` (reset, update, new):
    [r z] = sigmoid(gates_x + h W_hh^T + b_hh), n = tanh(gates_x + r * (h W_hh^T + b_hh)).
    """

    @staticmethod
    def forward(ctx: Any, gates_LBG: Tensor, weight_GH: Tensor, bias_G: Tensor) -> Tensor:
        """gates (L, B, 3H), weight (3H, H), bias (3H,) -> hidden states (L, B, H), from h = 0."""
        length, batch, width = gates_LBG.shape[0], gates_LBG.shape[1], weight_GH.shape[1]
        hidden = gates_LBG.new_empty(length + 1, batch, width)
        hidden[0] = 0.0
        recurrent = torch.empty_like(gates_LBG).copy_(bias_G)
        reset_update = gates_LBG.new_empty(length, batch, 2 * width)
        new = gates_LBG.new_empty(length, batch, width)
        weight_HG = weight_GH.t()
        # All views are made before the loop: one at a time they were a sixth of its time.
        states, (reset, update) = hidden.unbind(), (x.unbind() for x in reset_update.chunk(2, dim=2))
        (given_rz, given_n), (rec_rz, rec_n) = (
            [part.unbind() for part in x.split((2 * width, width), dim=2)] for x in (gates_LBG, recurrent)
        )
        for t, (rec, rz, n) in enumerate(zip(recurrent.unbind(), reset_update.unbind(), new.unbind(), strict=True)):
            rec.addmm_(states[t], weight_HG)
            torch.add(given_rz[t], rec_rz[t], out=rz).sigmoid_()
            torch.addcmul(given_n[t], reset[t], rec_n[t], out=n).tanh_()
            torch.lerp(n, states[t], update[t], out=states[t + 1])
        ctx.save_for_backward(weight_GH, hidden, recurrent, reset_update, new)
        return hidden[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_GH, hidden, recurrent, reset_update, new = ctx.saved_tensors
        length, batch, width = grad_LBH.shape
        reset, update = reset_update[..., :width], reset_update[..., width:]
        # What a gradient at h_t is multiplied with on its way to each pre-activation: known before the loop starts.
        to_new = (1 - update) * (1 - new.square())
        factors_LB4H = torch.stack(
            (
                to_new * recurrent[..., 2 * width :] * reset * (1 - reset),
                (hidden[:-1] - new) * update * (1 - update),
                to_new * reset,
                to_new,
            ),
            dim=2,
        )
        grads_LB4H = torch.empty_like(factors_LB4H)
        recurrent_grads = grads_LB4H.flatten(2)[..., : 3 * width].unbind()
        factors, grads, coming, kept = (x.unbind() for x in (factors_LB4H, grads_LB4H, grad_LBH, update))
        grad_h = torch.zeros_like(grad_LBH[0])
        for t in range(length - 1, -1, -1):
            grad_h.add_(coming[t])
            torch.mul(grad_h.unsqueeze(1), factors[t], out=grads[t])
            grad_h.mul_(kept[t]).addmm_(recurrent_grads[t], weight_GH)
        grad_recurrent = grads_LB4H[:, :, :3].reshape(length * batch, 3 * width)
        # The new gate sees gates_x directly, not through r: its own factor is the fourth.
        grad_gates = torch.cat((grads_LB4H[:, :, :2], grads_LB4H[:, :, 3:]), dim=2).view(length, batch, 3 * width)
        grad_weight = grad_recurrent.t() @ hidden[:-1].reshape(length * batch, width)
        return grad_gates, grad_weight, grad_recurrent.sum(dim=0)


def gru_sequence(rnn: nn.GRU, x: Tensor, packing: Packing | None = None) -> Tensor:
    """What `rnn(x)[0]` computes for a batch-first GRU that starts from zeros: (B, L, D) -> (B, L, H).

    packing: of sequences that lie end to end, (1, R, D) -> (1, R, H).
    """
    if x.device.type != "cpu":
        return rnn(x)[0] if packing is None else packing.pack(rnn(packing.pad(x))[0])
    for layer in range(rnn.num_layers):
        w_ih, w_hh, b_ih, b_hh = (
            getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        # Under autocast the large product runs in low precision; the recurrence itself stays in float32.
        gates = F.linear(x, w_ih, b_ih).to(w_hh.dtype)
        gates_BLG = gates if packing is None else packing.pad(gates)
        hidden_BLH = GRURecurrence.apply(gates_BLG.transpose(0, 1).contiguous(), w_hh, b_hh).transpose(0, 1)
        x = hidden_BLH if packing is None else packing.pack(hidden_BLH)
    return x


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
