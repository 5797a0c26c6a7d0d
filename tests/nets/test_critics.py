"""Critic ensembles equal a deliberately naive reading of what they compute."""

from __future__ import annotations

from itertools import pairwise

import gin
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amago_ray.nets import critics as critic_heads
from amago_ray.nets.critics import MAX_CRITIC_ACTION, NCritics, NCriticsTwoHot
from amago_ray.specs import ActionSpec

K, B, L, D, C = 3, 2, 4, 5, 3
GAMMAS = torch.tensor([0.0, 0.9, 0.999])
G = len(GAMMAS)
SPECS = {
    "discrete": ActionSpec("discrete", (), "int64", 4, (4,)),
    "continuous": ActionSpec("continuous", (2,), "float32", 2),
    "multibinary": ActionSpec("multibinary", (3,), "int8", 3),
    "multidiscrete": ActionSpec("multidiscrete", (2,), "int64", 5, (2, 3)),
}
by_kind = pytest.mark.parametrize("kind", SPECS)
torch.set_num_threads(1)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def build_critics(kind: str, n_layers: int = 2) -> NCritics:
    torch.manual_seed(0)
    return NCritics(D, SPECS[kind], GAMMAS, C, n_layers=n_layers, d_hidden=7)


def inputs(kind: str) -> tuple[Tensor, Tensor]:
    """A state (B, L, D) and actions (K, B, L, G, A), some of them outside of what critics accept."""
    torch.manual_seed(1)
    return torch.randn(B, L, D), torch.randn(K, B, L, G, SPECS[kind].vector_size)


def naive_values(critics: NCritics, state_BLD: Tensor, action_KBLGA: Tensor) -> Tensor:
    """Each critic, gamma and action by itself, (K, B, L, C, G, 1)."""
    layers = [critics.inp_layer, *critics.core_layers, critics.output_layer]

    def mlp(critic: int, x: Tensor) -> Tensor:
        for i, layer in enumerate(layers):
            x = x @ layer.weight[critic] + layer.bias[critic, 0]
            x = F.leaky_relu(x) if i < len(layers) - 1 else x
        return x

    values = state_BLD.new_zeros(K, B, L, C, G, 1)
    for k in range(K):
        for c in range(C):
            for g, gamma in enumerate(GAMMAS):
                action = action_KBLGA[k, :, :, g]
                if critics.action_input:
                    horizon = torch.log(1.0 / (1.0 - gamma) + 1.0).expand(B, L, 1)
                    action = action.clamp(-MAX_CRITIC_ACTION, MAX_CRITIC_ACTION)
                    values[k, :, :, c, g] = mlp(c, torch.cat((state_BLD, horizon, action), dim=-1))
                else:
                    table = mlp(c, state_BLD).view(B, L, G, -1)
                    values[k, :, :, c, g, 0] = (table[:, :, g] * action).sum(dim=-1)
    return values


def gradients(out: Tensor, wrt: list[Tensor]) -> list[Tensor]:
    """Of a sum in which every output counts differently."""
    torch.manual_seed(2)
    return list(torch.autograd.grad((out * torch.randn(out.shape)).sum(), wrt))


@by_kind
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_values_and_gradients_equal_a_naive_loop(kind: str, n_layers: int) -> None:
    critics, (state, action) = build_critics(kind, n_layers), inputs(kind)
    state.requires_grad_()
    action.requires_grad_()
    wrt = [state, action, *critics.parameters()]
    actual, expected = critics.values(critics.prepare(state), action), naive_values(critics, state, action)
    assert actual.shape == (K, B, L, C, G, 1)
    close(actual, expected)
    for ours, naive in zip(gradients(actual, wrt), gradients(expected, wrt), strict=True):
        assert naive.abs().max() > 0
        close(ours, naive)


@by_kind
def test_frozen_values_pass_gradient_to_actions_alone(kind: str) -> None:
    critics, (state, action) = build_critics(kind), inputs(kind)
    state.requires_grad_()
    action.requires_grad_()
    prepared = critics.prepare(state)
    frozen, free = critics.values(prepared, action, frozen=True), critics.values(prepared, action)
    torch.testing.assert_close(frozen, free)
    torch.manual_seed(2)
    (frozen * torch.randn(frozen.shape)).sum().backward()
    assert state.grad is None
    assert [name for name, p in critics.named_parameters() if p.grad is not None] == []
    close(action.grad, gradients(naive_values(critics, state, action), [action])[0])


@by_kind
@pytest.mark.parametrize("num_asked", [1, 2, 5])
@pytest.mark.parametrize("part", [critic_heads.CPU_PART, 2 * C * 7 * K * G])
def test_values_of_some_critics_are_those_of_all(
    monkeypatch: pytest.MonkeyPatch, kind: str, num_asked: int, part: int
) -> None:
    """Whichever are asked, more often than once even, and however few states are computed at a time."""
    monkeypatch.setattr(critic_heads, "CPU_PART", part)
    critics, (state, action) = build_critics(kind), inputs(kind)
    prepared = critics.prepare(state)
    members = np.random.default_rng(0).integers(C, size=(B, L, num_asked, G))
    members[0] = 1  # of this state nobody else is asked anything
    asked = critics.values_of(members, prepared, action, read=lambda q: 2 * q)
    assert asked.shape == (K, B, L, num_asked, G, 1) and not asked.requires_grad
    expected = 2 * critics.values(prepared, action).take_along_dim(torch.from_numpy(members)[None, ..., None], dim=3)
    close(asked, expected.detach())


class Bounded(NCritics):
    def values(self, *args: object, **settings: object) -> Tensor:
        return 3 * super().values(*args, **settings).tanh()


@by_kind
def test_a_subclass_with_values_of_its_own_is_asked_for_them(kind: str) -> None:
    torch.manual_seed(0)
    critics, (state, action) = Bounded(D, SPECS[kind], GAMMAS, C, d_hidden=7), inputs(kind)
    prepared, members = critics.prepare(state), np.ones((B, L, 1, G), np.int64)
    close(critics.values_of(members, prepared, action), critics.values(prepared, action)[:, :, :, 1:2].detach())


def test_critics_compute_only_what_they_are_asked() -> None:
    members = np.random.default_rng(0).integers(4, size=(500, 2, G))
    asked = critic_heads.AskedRows.of(members, 4)
    share = asked.row_CR.size / (4 * 500 * G)
    assert 0.4375 <= share < 0.48  # 1 - (3/4)^2 of the rows, and what evens the critics out
    assert all(len(set(row)) == len(row) for row in asked.row_CR.tolist())


def test_critics_compute_few_numbers_of_rows_where_each_is_new_code() -> None:
    numbers = set()
    for seed in range(40):
        members = np.random.default_rng(seed).integers(4, size=(101, 2, G))
        members[: 2 * seed] = 0  # more and more states ask one critic alone
        exact, few = (critic_heads.AskedRows.of(members, 4, few_sizes) for few_sizes in (False, True))
        assert exact.row_CR.shape[1] <= few.row_CR.shape[1] <= 101 * G
        assert all(len(set(row)) == len(row) for row in few.row_CR.tolist())
        critic, place = np.divmod(few.answer_NSG, few.row_CR.shape[1])
        np.testing.assert_array_equal(critic, members)
        np.testing.assert_array_equal(
            few.row_CR[critic, place], np.arange(101 * G).reshape(101, 1, G).repeat(2, axis=1)
        )
        numbers.add((exact.row_CR.shape[1], few.row_CR.shape[1]))
    assert len({few for _, few in numbers}) < 20 < len({exact for exact, _ in numbers})


@by_kind
def test_one_action_may_stand_for_all_gammas(kind: str) -> None:
    critics, (state, action) = build_critics(kind), inputs(kind)
    prepared = critics.prepare(state)
    shared = action[:1, :, :, :1]
    close(critics.values(prepared, shared), critics.values(prepared, shared.expand(1, B, L, G, -1)))


def test_a_one_hot_picks_its_entry_of_the_table() -> None:
    critics, (state, _) = build_critics("discrete"), inputs("discrete")
    table_BLCGA = critics.prepare(state)
    assert table_BLCGA.shape == (B, L, C, G, 4)
    taken = torch.randint(4, (B, L))
    values = critics.values(table_BLCGA, F.one_hot(taken, 4).float()[None, :, :, None])
    assert values[0, 1, 2, 0, 1, 0] == table_BLCGA[1, 2, 0, 1, taken[1, 2]]


def test_critics_are_independent_at_the_start() -> None:
    critics, (state, action) = build_critics("continuous"), inputs("continuous")
    values = critics.values(critics.prepare(state), action)
    for one, other in pairwise(range(C)):
        assert (values[:, :, :, one] - values[:, :, :, other]).abs().mean() > 1e-2


def test_the_width_of_gaussian_labels_is_a_setting() -> None:
    """With sigma 2 the label of a bin's own centre has the entries of a Gaussian of two bin widths."""
    critics = NCriticsTwoHot(
        D, SPECS["discrete"], GAMMAS, C, output_bins=41, min_return=-20.0, max_return=20.0, use_symlog=False,
        label_type="hlgauss", sigma=2.0,
    )  # fmt: skip
    label = critics.bins.encode(torch.tensor([3.0]))
    assert float(label[25] / label[23]) == pytest.approx(np.exp(-0.5), rel=0.02)


def test_how_outputs_are_read_is_no_setting_of_plain_critics() -> None:
    with pytest.raises(ValueError, match="num_outputs"):
        gin.parse_config("NCritics.num_outputs = 3")


@by_kind
def test_under_autocast_hidden_layers_are_in_half_precision(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first on, whatever the dtype of its bias: what is float32 there makes all that follows so."""
    critics, (state, action) = build_critics(kind), inputs(kind)
    seen, activate = [], critics._activate
    monkeypatch.setattr(critics, "_activate", lambda x: seen.append(x.dtype) or activate(x))
    with torch.autocast("cpu", torch.bfloat16):
        values = critics.values(critics.prepare(state.bfloat16()), action)
    assert set(seen) == {torch.bfloat16} and values.dtype == torch.float32
