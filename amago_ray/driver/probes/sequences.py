"""A user's sequence model is tried before any process starts: whole sequences, steps, resets, and both in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from amago_ray.driver.probes.inputs import apart, check_numbers, is_own, kind_of
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.traj_encoders import TrajEncoder

LONGEST = 64  # timesteps that steps are compared for: as many as one is trained on, or so
IN_TURN = 4
TOLERANCE = 1e-3  # of states, which are of the order of 1: the rounding of float32, over many steps


def check_steps(encoder: TrajEncoder, packed: bool = False) -> None:
    """Raises ValueError where a user's sequence model acts step by step as it does not train on whole sequences.

    packed: it is trained on sequences that lie end to end.
    """
    if not is_own(encoder):
        return
    encoder.eval()
    num = min(LONGEST, encoder.max_seq_len, *(() if encoder.max_time_idx is None else (encoder.max_time_idx,)))
    # As many timesteps as training hands over: the last one is what a transition leads to.
    seq = torch.randn(2, num + 1, encoder.tstep_dim, generator=torch.Generator().manual_seed(0))
    time_idx = torch.arange(num + 1).expand(2, -1)
    with torch.no_grad():
        _check_shape(encoder, encoder(seq[:, :num], time_idx[:, :num]), num)
        _check_late(encoder, seq[:, :num])
        whole = _whole(encoder, seq, time_idx)
        _check_looks_back(encoder, seq, time_idx, whole)
        if packed and type(encoder).forward_packed is not TrajEncoder.forward_packed:
            _check_packed(encoder, seq, time_idx)
    with torch.inference_mode():  # as acting does
        _check_steps(encoder, seq, time_idx, whole)
        _check_in_turn(encoder, seq, time_idx, whole)


def _check_shape(encoder: TrajEncoder, states: Tensor, num: int) -> None:
    check_numbers(f"{type(encoder).__name__}: `forward`", states)
    expected = (2, num, encoder.emb_dim)
    if tuple(states.shape) != expected:
        raise ValueError(
            f"{type(encoder).__name__}: `forward` made states of shape {tuple(states.shape)} of 2 sequences of {num} "
            f"timesteps; with emb_dim={encoder.emb_dim} it must be {expected}"
        )


def _check_late(encoder: TrajEncoder, seq: Tensor) -> None:
    """A sequence is a slice of a rollout, which may be longer than any of them: so are its indices of time."""
    late = encoder.max_seq_len + torch.arange(seq.shape[1]).expand(2, -1)
    late = late if encoder.max_time_idx is None else late.clamp(max=encoder.max_time_idx)
    try:
        encoder(seq, late)
        with torch.inference_mode():
            encoder.step(seq[:, 0], late[:, -1], encoder.initial_memory(2))
    except Exception as error:
        raise ValueError(
            f"{type(encoder).__name__}: it fails at time_idx={int(late[0, 0])} to {int(late[0, -1])} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). time_idx counts from the start of a "
            f"rollout, which may be longer than max_seq_len={encoder.max_seq_len}: clamp it, or, if no rollout is, set "
            "the class's max_time_idx to the largest one that it takes"
        ) from error


def _whole(encoder: TrajEncoder, seq: Tensor, time_idx: Tensor) -> Tensor:
    try:
        return encoder(seq, time_idx)
    except Exception as error:
        raise ValueError(
            f"{type(encoder).__name__}: `forward` fails on {seq.shape[1]} timesteps ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): {encoder.max_seq_len} transitions, as many as max_seq_len, are "
            "one timestep more"
        ) from error


def _check_looks_back(encoder: TrajEncoder, seq: Tensor, time_idx: Tensor, whole: Tensor) -> None:
    length = seq.shape[1]
    for t in sorted({1, length // 2, length - 1} - {0}):
        changed = seq.clone()
        changed[:, t:] = seq[:, t:].flip(-1) + 1.0
        off = apart(encoder(changed, time_idx)[:, :t], whole[:, :t], TOLERANCE)
        if off is not None:
            raise ValueError(
                f"{type(encoder).__name__}: `forward` must not look ahead: its states of the first {t} of {length} "
                f"timesteps differ by {off:.2g} with what comes after them"
            )


def _check_packed(encoder: TrajEncoder, seq: Tensor, time_idx: Tensor) -> None:
    length = seq.shape[1]
    packing = Packing.of(np.array([length, max(length // 2, 1)]))
    seq_1RD, time_idx_1R = packing.pack(seq), packing.pack(time_idx)
    expected = packing.pack(encoder(packing.pad(seq_1RD), packing.pad(time_idx_1R)))
    states = encoder.forward_packed(seq_1RD, time_idx_1R, packing)
    if states.shape != expected.shape or apart(states, expected, TOLERANCE) is not None:
        raise ValueError(
            f"{type(encoder).__name__}: `forward_packed` must make of sequences that lie end to end what `forward` "
            "makes of them padded, and does not (Experiment.batch_layout='packed'); leave it out, and `forward` is used"
        )


def _check_steps(encoder: TrajEncoder, seq: Tensor, time_idx: Tensor, whole: Tensor) -> None:
    num = seq.shape[1] - 1
    half, memory = max(num // 2, 1), encoder.initial_memory(2)
    for t in range(half):
        states, memory = _step(encoder, seq[:, t], time_idx[:, t], memory)
        _check_same(encoder, states, whole[:, t], f"after {t + 1} of {num} timesteps")
    # The first environment begins anew, the other goes on.
    memory = encoder.reset_memory(memory, np.array([True, False]))
    for t in range(max(num - half, 1)):
        on = half + t
        at = torch.tensor([t, on])
        states, memory = _step(encoder, torch.stack((seq[0, t], seq[1, on])), at, memory)
        _check_same(encoder, states[0], whole[0, t], f"{t + 1} timesteps after reset_memory of one of two")
        if on < num:  # as many as acting has to remember
            _check_same(encoder, states[1], whole[1, on], f"after {on + 1} of {num} timesteps")


def _check_in_turn(encoder: TrajEncoder, seq: Tensor, time_idx: Tensor, whole: Tensor) -> None:
    memories = [encoder.initial_memory(1) for _ in range(2)]
    for t in range(min(seq.shape[1] - 1, IN_TURN)):
        for row, memory in enumerate(memories):
            states, memories[row] = _step(encoder, seq[row : row + 1, t], time_idx[row : row + 1, t], memory)
            off = apart(states[0], whole[row, t], TOLERANCE)
            if off is not None:
                raise ValueError(
                    f"{type(encoder).__name__}: `step` of one memory and then of another must not mix them, and is "
                    f"{off:.2g} off: what is remembered belongs into the memory that `step` is given and returns, not "
                    "on the module"
                )


def _step(encoder: TrajEncoder, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> tuple[Tensor, Any]:
    """`encoder.step`. Raises ValueError where it returns something else than it should."""
    answer, called = encoder.step(seq_BD, time_idx_B, memory), f"{type(encoder).__name__}: `step`"
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ValueError(
            f"{called} returned a {kind_of(answer)}; it must return a pair, states (B, D) and the new memory"
        )
    states, memory = answer
    check_numbers(f"{called}, in its states,", states)
    expected = (len(seq_BD), encoder.emb_dim)
    if tuple(states.shape) != expected:
        raise ValueError(
            f"{called} made states of shape {tuple(states.shape)} of {len(seq_BD)} timesteps; it must be {expected}"
        )
    return states, memory


def _check_same(encoder: TrajEncoder, stepped: Tensor, whole: Tensor, when: str) -> None:
    off = apart(stepped, whole, TOLERANCE)
    if off is not None:
        raise ValueError(
            f"{type(encoder).__name__}: `step` and `forward` must agree, and are {off:.2g} apart {when}. One that has "
            "memory defines initial_memory, step and reset_memory, and `step` remembers as much as `forward` sees"
        )
