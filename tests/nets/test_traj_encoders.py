"""Every sequence model acts step by step as it trains on whole sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amago_ray.nets.attention import SlidingSinkAttention
from amago_ray.nets.traj_encoders import (
    FFTrajEncoder,
    GRUTrajEncoder,
    IdentityTrajEncoder,
    MambaTrajEncoder,
    TformerTrajEncoder,
    TrajEncoder,
)

small_tformer = partial(TformerTrajEncoder, d_model=8, n_heads=2, d_ff=12, n_layers=2)
ENCODERS: dict[str, Callable[..., TrajEncoder]] = {
    "identity": IdentityTrajEncoder,
    "ff": partial(FFTrajEncoder, d_model=8, n_layers=2),
    "ff_narrow": partial(FFTrajEncoder, d_model=8, d_ff=5, n_layers=2),
    "gru": partial(GRUTrajEncoder, d_hidden=6, n_layers=2, d_output=8),
    "tformer": small_tformer,
    "tformer_plain": partial(small_tformer, sigma_reparam=False),
    "mamba": partial(MambaTrajEncoder, d_model=8, n_layers=2),
}
WITH_MEMORY = ["gru", "tformer", "tformer_plain", "mamba"]
TSTEP_DIM, MAX_SEQ_LEN = 8, 12
torch.set_num_threads(1)


def build(name: str) -> TrajEncoder:
    torch.manual_seed(0)
    return ENCODERS[name](tstep_dim=TSTEP_DIM, max_seq_len=MAX_SEQ_LEN).eval()


@pytest.mark.parametrize("name", ENCODERS)
@settings(derandomize=True, max_examples=10, deadline=None)
@given(num_envs=st.integers(1, 4), length=st.integers(1, MAX_SEQ_LEN), seed=st.integers(0, 1000))
def test_steps_equal_whole_sequences(name: str, num_envs: int, length: int, seed: int) -> None:
    """Environments are reset at different times; each rollout equals a `forward` of it alone."""
    random, encoder = np.random.default_rng(seed), build(name)
    x_BLD = torch.from_numpy(random.normal(size=(num_envs, length, TSTEP_DIM)).astype(np.float32))
    ends_BL = random.random((num_envs, length)) < 0.25
    memory, steps, started = encoder.initial_memory(num_envs), [], np.zeros(num_envs, dtype=np.int64)
    with torch.no_grad():
        for t in range(length):
            state, memory = encoder.step(x_BLD[:, t], torch.from_numpy(t - started), memory)
            assert state.shape == (num_envs, encoder.emb_dim)
            steps.append(state)
            memory = encoder.reset_memory(memory, ends_BL[:, t])
            started[ends_BL[:, t]] = t + 1
        for b in range(num_envs):
            starts = [0, *(np.flatnonzero(ends_BL[b]) + 1), length]
            whole = [
                encoder(x_BLD[b : b + 1, i:j], torch.arange(j - i).unsqueeze(0)) for i, j in pairwise(starts) if j > i
            ]
            actual = torch.stack(steps, dim=1)[b]
            torch.testing.assert_close(actual, torch.cat(whole, dim=1)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", ["initial_memory", "recordable_memory", "compilable_memory"])
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_what_is_no_number_ends_with_its_rollout(name: str, kept: str) -> None:
    """Beside another environment that goes on, and is none the wiser."""
    encoder = build(name)
    x_LD, t = torch.randn(6, TSTEP_DIM), np.array([0, 0])
    memory, states = getattr(encoder, kept)(2), []
    with torch.no_grad():
        for step in range(6):
            x = torch.stack((x_LD[step], x_LD[step]))
            if step == 2:
                x[0] = torch.nan
            if step == 3:
                memory, t = encoder.reset_memory(memory, np.array([True, False])), np.array([0, t[1]])
            state, memory = encoder.step(x, torch.from_numpy(t.copy()), memory)
            states.append(state)
            t += 1
        anew = encoder(x_LD[None, 3:], torch.arange(3)[None])[0]
        all_along = encoder(x_LD[None], torch.arange(6)[None])[0]
    torch.testing.assert_close(torch.stack(states[3:])[:, 0], anew, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(states)[:, 1], all_along, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*ENCODERS, "sinks"])
def test_portable_steps_equal_steps(name: str) -> None:
    """Over rings that come round, with resets, from zeros, and nothing that is given is written into."""
    random = np.random.default_rng(0)
    sinks = partial(small_tformer, attention_type=partial(SlidingSinkAttention, window_size=3, sink_size=2))
    torch.manual_seed(0)
    encoder = ENCODERS.get(name, sinks)(tstep_dim=TSTEP_DIM, max_seq_len=5).eval()
    memory, portable = encoder.initial_memory(3), encoder.portable_memory(3)
    assert all(value.shape[0] == 3 and not value.any() for value in portable.values())
    time_idx_B = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(20):
            x_BD, before = torch.randn(3, TSTEP_DIM), {key: value.clone() for key, value in portable.items()}
            expected, memory = encoder.step(x_BD, time_idx_B, memory)
            state, after = encoder.portable_step(x_BD, time_idx_B, portable)
            torch.testing.assert_close(state, expected)
            assert all(torch.equal(portable[key], before[key]) for key in before)
            ended_B = random.random(3) < 0.1
            memory, time_idx_B = encoder.reset_memory(memory, ended_B), time_idx_B + 1
            time_idx_B[ended_B] = 0
            portable = {key: value.clone() for key, value in after.items()}
            for value in portable.values():
                value[ended_B] = 0


@pytest.mark.parametrize("name", ENCODERS)
def test_causality_and_gradients(name: str) -> None:
    """Output t depends on input t, on earlier ones if there is memory, never on later ones; no parameter is idle."""
    encoder = build(name).train()
    x_BLD = torch.randn(2, 7, TSTEP_DIM, requires_grad=True)
    states = encoder(x_BLD, torch.arange(7).expand(2, -1))
    assert states.shape == (2, 7, encoder.emb_dim)
    states[:, 4].sin().sum().backward()
    reached = (x_BLD.grad.abs().sum(dim=-1) > 0).all(dim=0)
    past = name in WITH_MEMORY
    assert reached.tolist() == [past, past, past, past, True, False, False]
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_reset_leaves_other_environments_alone(name: str) -> None:
    encoder = build(name)
    first_BD, second_BD = torch.randn(2, 3, TSTEP_DIM)
    time_idx = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        outputs = []
        for mask in ([False] * 3, [False, True, False]):
            _, memory = encoder.step(first_BD, time_idx, encoder.initial_memory(3))
            memory = encoder.reset_memory(memory, np.array(mask))
            outputs.append(encoder.step(second_BD, time_idx, memory)[0])
    torch.testing.assert_close(outputs[0][[0, 2]], outputs[1][[0, 2]])
    assert (outputs[0][1] - outputs[1][1]).abs().max() > 1e-3


def test_identity_is_the_input() -> None:
    encoder, x_BLD = build("identity"), torch.randn(2, 3, TSTEP_DIM)
    assert encoder.emb_dim == TSTEP_DIM
    assert encoder(x_BLD, torch.arange(3).expand(2, -1)) is x_BLD


def test_learnable_positions_clamp() -> None:
    """Timesteps from `max_time_idx` - 1 on share one position; earlier ones differ."""
    torch.manual_seed(0)
    encoder = small_tformer(TSTEP_DIM, MAX_SEQ_LEN, pos_emb="learnable", max_time_idx=5).eval()
    x_BLD = torch.randn(1, 1, TSTEP_DIM).expand(6, -1, -1)
    states = encoder(x_BLD, torch.tensor([[2], [3], [4], [5], [6], [10_000]])).squeeze(1)
    for late in states[3:]:
        torch.testing.assert_close(late, states[2])
    assert (states[1] - states[2]).abs().max() > 1e-2
    assert (states[0] - states[1]).abs().max() > 1e-2


def test_sinks_must_leave_room_in_memory() -> None:
    attention = partial(SlidingSinkAttention, sink_size=4)
    with pytest.raises(ValueError, match=r"SlidingSinkAttention.sink_size=4 must be below max_seq_len=4"):
        TformerTrajEncoder(TSTEP_DIM, 4, d_model=8, n_heads=2, attention_type=attention)
    encoder = TformerTrajEncoder(TSTEP_DIM, 5, d_model=8, n_heads=2, attention_type=attention)
    assert encoder.initial_memory(3).keys.shape == (3, 3, 2, 5, 4)
