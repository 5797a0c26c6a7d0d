"""Actors equal a deliberately naive reading of what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amago_ray import config
from amago_ray.nets.actors import Actor, ActorHead, ResidualActor
from amago_ray.nets.policy_outputs import GMM, Beta, Discrete, Multidiscrete
from amago_ray.specs import ActionSpec

B, L, D, G = 2, 4, 5, 3
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


def residual_actor(kind: str, **settings: object) -> ResidualActor:
    torch.manual_seed(0)
    sizes = {"feature_dim": 6, "residual_ff_dim": 9, "residual_blocks": 2}
    return ResidualActor(D, SPECS[kind], num_gammas=G, **{**sizes, **settings})


@pytest.mark.parametrize("blocks", [1, 3])
def test_residual_actor_equals_a_naive_reading(blocks: int) -> None:
    actor, state = residual_actor("continuous", residual_blocks=blocks, activation="relu"), torch.randn(B, L, D)
    with torch.no_grad():
        for parameter in actor.parameters():  # norms that do something, too
            parameter.add_(0.1 * torch.randn_like(parameter))

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    def linear(x: Tensor, layer: torch.nn.Linear) -> Tensor:
        return x @ layer.weight.T + layer.bias

    x = linear(linear(state, actor.inp.in_layer).clamp(min=0), actor.inp.out_layer)
    assert len(actor.blocks) == blocks
    for block in actor.blocks:
        hidden = norm(linear(x, block.ff1), block.norm1.norm).clamp(min=0)
        x = x + norm(linear(hidden, block.ff2), block.norm2.norm)
    close(actor.params(state, main_gamma_only=False, obs={}), linear(x, actor.out_layer))


def test_residual_actor_drops_out_in_training_only() -> None:
    actor, state = residual_actor("discrete", dropout_p=0.5), torch.randn(B, L, D)
    assert not torch.equal(actor(state).probs, actor(state).probs)
    actor.eval()
    assert torch.equal(actor(state).probs, actor(state).probs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"residual_blocks": 0}, "ResidualActor.residual_blocks=0"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
        ({"normalization": "layr"}, "did you mean 'layer'"),
    ],
)
def test_residual_actor_checks_its_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_actor("discrete", **settings)


def plain_actor(kind: str) -> Actor:
    torch.manual_seed(0)
    return Actor(D, SPECS[kind], num_gammas=G, d_hidden=9)


@by_kind
@pytest.mark.parametrize("make_actor", [plain_actor, residual_actor])
def test_main_gamma_equals_the_last_gamma(kind: str, make_actor: Callable[[str], ActorHead]) -> None:
    actor, state = make_actor(kind), torch.randn(B, L, D)
    whole, main = actor(state), actor.main_gamma(state.reshape(B * L, D))
    assert whole.mean.shape == (B, L, G, SPECS[kind].vector_size)
    close(main.mean, whole.mean[:, :, -1].reshape(B * L, -1))
    assert (whole.mean[:, :, -1] - whole.mean[:, :, 0]).abs().max() > 1e-3
    torch.testing.assert_close(main.mode, whole.mode[:, :, -1].reshape(B * L, -1))
    actions = whole.sample()[:, :, -1]
    close(main.log_prob(actions.reshape(B * L, -1)), whole.log_prob(actions.unsqueeze(2))[:, :, -1].reshape(-1, 1))


@pytest.mark.parametrize("owner", ["Actor", "ResidualActor"])
def test_families_by_kind_of_action(owner: str) -> None:
    """By gin, one setting for each kind of space, and one that goes before both."""
    config.load([], [f"{owner}.continuous_dist_type = @Beta", f"{owner}.discrete_dist_type = @Discrete"])
    make = {"Actor": Actor, "ResidualActor": ResidualActor}[owner]
    families = {kind: type(make(D, spec, G).policy_output) for kind, spec in SPECS.items() if kind != "multibinary"}
    assert families == {"discrete": Discrete, "continuous": Beta, "multidiscrete": Multidiscrete}
    config.load([], [f"{owner}.policy_output_type = @GMM"])
    assert type(make(D, SPECS["continuous"], G).policy_output) is GMM


@pytest.mark.parametrize("kind", ["discrete", "multidiscrete"])
@pytest.mark.parametrize("make_actor", [plain_actor, residual_actor])
def test_every_actor_leaves_out_illegal_actions(kind: str, make_actor: Callable[[str], ActorHead]) -> None:
    """The same ones for every discount factor, and for the main one alone."""
    actor, state = make_actor(kind), torch.randn(B, L, D)
    legal = torch.ones(B, L, SPECS[kind].vector_size, dtype=torch.bool)
    legal[0, :, 0], legal[1, :, 1] = False, False
    whole, main = actor(state, legal_BLA=legal), actor.main_gamma(state[:, 0], legal_BA=legal[:, 0])
    assert torch.equal(whole.probs == 0.0, ~legal.unsqueeze(2).expand(whole.probs.shape))
    close(main.probs, whole.probs[:, 0, -1])
    assert (actor(state).probs > 0.0).all()
