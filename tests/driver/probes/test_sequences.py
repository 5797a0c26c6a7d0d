"""A sequence model that acts otherwise than it trains is refused before anything starts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from policy_step_cases import MORE_ENCODERS
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.driver.probe import probe
from amago_ray.driver.probes import sequences
from amago_ray.driver.probes.sequences import check_steps
from amago_ray.envs.builtin import Counting
from amago_ray.experiment import Experiment
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TrajEncoder

WIDTH = 6


class Recurrent(TrajEncoder):
    """A user's own, right as it is."""

    def __init__(self, tstep_dim: int, max_seq_len: int):
        super().__init__(tstep_dim, max_seq_len)
        self.rnn = nn.LSTM(tstep_dim, WIDTH, batch_first=True)

    @property
    def emb_dim(self) -> int:
        return WIDTH

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return self.rnn(seq_BLD)[0]

    def initial_memory(self, num_envs: int) -> Any:
        return torch.zeros(1, num_envs, WIDTH), torch.zeros(1, num_envs, WIDTH)

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> tuple[Tensor, Any]:
        state, memory = self.rnn(seq_BD.unsqueeze(1), memory)
        return state.squeeze(1), memory

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        return tuple(x.masked_fill(torch.from_numpy(mask_B)[:, None], 0.0) for x in memory)


class ResetsInPlace(Recurrent):
    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        for x in memory:
            x[:, torch.from_numpy(mask_B)] = 0.0
        return memory


class WithoutSteps(Recurrent):
    initial_memory, step = TrajEncoder.initial_memory, TrajEncoder.step
    reset_memory = TrajEncoder.reset_memory


class WithoutResets(Recurrent):
    reset_memory = TrajEncoder.reset_memory


class ResetsHalf(Recurrent):
    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        hidden, cell = memory
        return hidden.masked_fill(torch.from_numpy(mask_B)[:, None], 0.0), cell


class LooksAhead(Recurrent):
    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return self.rnn(seq_BLD.flip(1))[0].flip(1)


class LooksFarAhead(Recurrent):
    """Without memory, so that steps agree as long as they see no farther than it looks."""

    initial_memory, step = TrajEncoder.initial_memory, TrajEncoder.step
    reset_memory = TrajEncoder.reset_memory

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return F.pad(seq_BLD, (0, WIDTH - self.tstep_dim, 0, 5))[:, 5:] + seq_BLD.sum(-1, keepdim=True)


class RemembersLess(TrajEncoder):
    """`forward` is the mean of all, `step` that of the last eight."""

    @property
    def emb_dim(self) -> int:
        return self.tstep_dim

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return seq_BLD.cumsum(1) / torch.arange(1, seq_BLD.shape[1] + 1).unsqueeze(1)

    def initial_memory(self, num_envs: int) -> Any:
        return torch.zeros(num_envs, 8, self.tstep_dim), torch.zeros(num_envs, 1)

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> tuple[Tensor, Any]:
        last, count = torch.cat((memory[0][:, 1:], seq_BD[:, None]), 1), memory[1] + 1
        return last.sum(1) / count.clamp(max=8), (last, count)

    def reset_memory(self, memory: Any, mask_B: np.ndarray) -> Any:
        keep = torch.from_numpy(~mask_B).float()
        return memory[0] * keep[:, None, None], memory[1] * keep[:, None]


class RemembersOnItself(Recurrent):
    def initial_memory(self, num_envs: int) -> None:
        self.memory = super().initial_memory(num_envs)

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: None) -> tuple[Tensor, None]:
        state, self.memory = super().step(seq_BD, time_idx_B, self.memory)
        return state, None

    def reset_memory(self, memory: None, mask_B: np.ndarray) -> None:
        self.memory = super().reset_memory(self.memory, mask_B)


class Positions(TrajEncoder):
    """Learned ones, as many as sequences are long."""

    def __init__(self, tstep_dim: int, max_seq_len: int, more: int = 0):
        super().__init__(tstep_dim, max_seq_len)
        self.table = nn.Embedding(max_seq_len + more, tstep_dim)

    @property
    def emb_dim(self) -> int:
        return self.tstep_dim

    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return seq_BLD + self.table(time_idx_BL)


class PositionsOfShortRollouts(Positions):
    max_time_idx = 5

    def __init__(self, tstep_dim: int, max_seq_len: int):
        super().__init__(tstep_dim, max_seq_len, more=6 - max_seq_len)


class PlacesInASequence(Positions):
    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Tensor:
        return seq_BLD + self.table(torch.arange(seq_BLD.shape[1]))

    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: None) -> tuple[Tensor, None]:
        return seq_BD, None


class PackedAsOne(GRUTrajEncoder):
    def forward_packed(self, seq_1RD: Tensor, time_idx_1R: Tensor, packing: Packing) -> Tensor:
        return self.forward(seq_1RD, time_idx_1R)


class StepsWithoutMemory(Recurrent):
    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> Any:
        return super().step(seq_BD, time_idx_B, memory)[0]


class StepsOfArrays(Recurrent):
    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> Any:
        states, memory = super().step(seq_BD, time_idx_B, memory)
        return states.numpy(), memory


class StepsNotSqueezed(Recurrent):
    def step(self, seq_BD: Tensor, time_idx_B: Tensor, memory: Any) -> Any:
        return self.rnn(seq_BD.unsqueeze(1), memory)


class ForwardWithMemory(Recurrent):
    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Any:
        return self.rnn(seq_BLD)


class ForwardOfNothing(Recurrent):
    def forward(self, seq_BLD: Tensor, time_idx_BL: Tensor) -> Any:
        return super().forward(seq_BLD, time_idx_BL).log()


class OfAnotherWidth(Recurrent):
    emb_dim = WIDTH + 1  # type: ignore[assignment]


@pytest.mark.parametrize("max_seq_len", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("encoder", [Recurrent, ResetsInPlace, partial(Positions, more=1000), PositionsOfShortRollouts])
def test_a_sequence_model_that_agrees_with_its_steps(encoder: Any, max_seq_len: int) -> None:
    check_steps(encoder(5, max_seq_len), packed=True)


@pytest.mark.parametrize("max_seq_len", [2, 3, 8, 100])
@pytest.mark.parametrize("name", MORE_ENCODERS)
def test_this_packages_own_agree(name: str, max_seq_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is why they are not tried before each run."""
    monkeypatch.setattr(sequences, "is_own", lambda part: True)
    torch.manual_seed(0)
    check_steps(MORE_ENCODERS[name](tstep_dim=5, max_seq_len=max_seq_len), packed=True)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (WithoutSteps, "`step` and `forward` must agree, .* after 2 of 8"),
        (WithoutResets, "`step` and `forward` must agree, .* 1 timesteps after reset_memory of one of two"),
        (ResetsHalf, "`step` and `forward` must agree, .* 1 timesteps after reset_memory of one of two"),
        (LooksAhead, "must not look ahead: its states of the first 1 of 9 timesteps"),
        (LooksFarAhead, "must not look ahead"),
        (RemembersOnItself, "one memory and then of another must not mix"),
        (Positions, r"it fails at time_idx=8 to 15 \(IndexError: index out of range.* max_seq_len=8: .*max_time_idx"),
        (PlacesInASequence, "fails on 9 timesteps .*8 transitions, .* one timestep more"),
        (
            StepsWithoutMemory,
            r"`step` returned a torch.Tensor; it must return a pair, states \(B, D\) and the new memory",
        ),
        (StepsOfArrays, "`step`, in its states, returned a numpy.ndarray; it must return a tensor"),
        (StepsNotSqueezed, r"`step` made states of shape \(2, 1, 6\) of 2 timesteps; it must be \(2, 6\)"),
        (ForwardWithMemory, "`forward` returned a tuple of 2; it must return a tensor"),
        (ForwardOfNothing, "`forward` made nan of numbers that are finite"),
        (OfAnotherWidth, r"shape \(2, 8, 6\) .* must be \(2, 8, 7\)"),
    ],
)
def test_a_sequence_model_that_does_not(encoder: type[TrajEncoder], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{encoder.__name__}: .*{said}"):
        check_steps(encoder(5, 8))


def test_it_is_told_before_a_step_of_all_networks() -> None:
    experiment = Experiment("a", Counting, 8, traj_encoder_type=StepsWithoutMemory)
    with pytest.raises(
        ValueError, match="^the sequence model by steps: ValueError: StepsWithoutMemory: `step` returned"
    ):
        probe(experiment)


def test_what_is_seen_of_sequences_of_two_and_only_of_long_ones() -> None:
    for encoder in (WithoutSteps, WithoutResets, LooksAhead, RemembersOnItself):
        with pytest.raises(ValueError, match=encoder.__name__):
            check_steps(encoder(5, 2))
    check_steps(RemembersLess(5, 8))
    with pytest.raises(ValueError, match=r"RemembersLess: .* after 9 of 32 timesteps.* remembers as much as"):
        check_steps(RemembersLess(5, 32))


def test_packed_sequences_are_tried_where_a_run_packs_them() -> None:
    check_steps(PackedAsOne(5, 8, d_hidden=8, d_output=8))
    with pytest.raises(ValueError, match="PackedAsOne: `forward_packed` must make .*batch_layout='packed'"):
        check_steps(PackedAsOne(5, 8, d_hidden=8, d_output=8), packed=True)
