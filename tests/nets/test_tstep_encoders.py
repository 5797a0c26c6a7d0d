"""Timestep encoders read every array as the specification says, each timestep alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amago_ray.nets.cnn import GridworldCNN
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder, one_hot_categories
from amago_ray.specs import ArraySpec

IMAGE = ArraySpec((6, 5, 3), "uint8")
STATE = ArraySpec((2,), "float32")
torch.set_num_threads(1)


def ff_encoder(obs_spec: dict[str, ArraySpec], rl2_dim: int = 3, **settings: object) -> FFTstepEncoder:
    torch.manual_seed(0)
    return FFTstepEncoder(obs_spec, rl2_dim, d_hidden=16, d_output=8, **settings)


def cnn_encoder(obs_spec: dict[str, ArraySpec], **settings: object) -> CNNTstepEncoder:
    torch.manual_seed(0)
    return CNNTstepEncoder(obs_spec, 3, cnn_type=GridworldCNN, img_features=8, d_output=8, **settings)


def inputs_of(encoder: FFTstepEncoder, obs: dict[str, Tensor], rl2: Tensor) -> Tensor:
    """What the encoder's first layer gets to see."""
    seen: list[Tensor] = []
    handle = encoder.base.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(obs, rl2)
    handle.remove()
    return seen[0]


# --- categories ------------------------------------------------------------------------------------------------------


def test_discrete_and_multidiscrete_observations_become_one_hots() -> None:
    spec = {
        "d": ArraySpec((), "int64", (3,)),
        "m": ArraySpec((2,), "int32", (2, 4)),
        "grid": ArraySpec((2, 2), "uint8", (2, 3, 2, 2)),
        "x": STATE,
    }
    obs = {
        "d": torch.tensor([[2, 0]]),
        "m": torch.tensor([[[1, 3], [0, 2]]], dtype=torch.int32),
        "grid": torch.tensor([[[[0, 2], [1, 1]], [[1, 0], [0, 0]]]], dtype=torch.uint8),
        "x": torch.randn(1, 2, 2),
    }
    encoded = one_hot_categories(obs, spec)
    assert encoded["d"].tolist() == [[[0, 0, 1], [1, 0, 0]]]
    assert encoded["m"].tolist() == [[[0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]]]
    assert encoded["grid"].tolist() == [[[1, 0, 0, 0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1, 0, 1, 0]]]
    assert encoded["x"] is obs["x"]
    assert {k: v.shape[-1] for k, v in encoded.items()} == {k: s.num_features for k, s in spec.items()}


def test_categories_outside_the_space_are_refused() -> None:
    with pytest.raises(RuntimeError):
        one_hot_categories({"d": torch.tensor([[3]])}, {"d": ArraySpec((), "int64", (3,))})


# --- FFTstepEncoder --------------------------------------------------------------------------------------------------


def test_arrays_are_concatenated_in_alphabetical_order() -> None:
    spec = {"z": STATE, "b": ArraySpec((), "int64", (3,)), "a": ArraySpec((2, 2), "uint8")}
    encoder = ff_encoder(spec, normalize_inputs=False).eval()
    obs = {
        "z": torch.tensor([[[0.5, -0.5]]]),
        "b": torch.tensor([[1]]),
        "a": torch.tensor([[[[7, 8], [9, 255]]]], dtype=torch.uint8),
    }
    rl2 = torch.tensor([[[0.1, 0.2, 0.3]]])
    expected = torch.tensor([[[7.0, 8.0, 9.0, 255.0, 0.0, 1.0, 0.0, 0.5, -0.5, 0.1, 0.2, 0.3]]])
    assert torch.equal(inputs_of(encoder, obs, rl2), expected)
    reordered = ff_encoder(dict(reversed(spec.items())), normalize_inputs=False).eval()
    assert torch.equal(reordered(dict(reversed(obs.items())), rl2), encoder(obs, rl2))


def test_masks_affect_statistics_alone() -> None:
    spec, mask = {"x": STATE}, torch.arange(5) < torch.tensor([[5], [2], [3]])
    obs, rl2 = {"x": 3 + torch.randn(3, 5, 2)}, torch.randn(3, 5, 3)
    padded_obs = {"x": torch.where(mask[..., None], obs["x"], 1e3)}
    padded_rl2 = torch.where(mask[..., None], rl2, 1e3)

    encoder, unmasked = ff_encoder(spec).eval(), ff_encoder(spec).eval()
    assert torch.equal(encoder(obs, rl2, mask), encoder(obs, rl2))
    assert encoder.in_norm.t == 1.0

    clean = ff_encoder(spec).train()
    out, expected = encoder.train()(padded_obs, padded_rl2, mask), clean(obs, rl2, mask)
    torch.testing.assert_close(out[mask], expected[mask])
    torch.testing.assert_close(encoder.in_norm.mu, clean.in_norm.mu)
    torch.testing.assert_close(encoder.in_norm.nu, clean.in_norm.nu)
    unmasked.train()(padded_obs, padded_rl2)
    assert (unmasked.in_norm.mu - clean.in_norm.mu).abs().min() > 1.0


def test_statistics_update_in_training_before_use() -> None:
    encoder, obs, rl2 = ff_encoder({"x": STATE}).train(), {"x": 5 + torch.randn(8, 3, 2)}, torch.randn(8, 3, 3)
    x = torch.cat((obs["x"], rl2), dim=-1)
    before = encoder.in_norm(x)
    seen = inputs_of(encoder, obs, rl2)
    torch.testing.assert_close(seen, encoder.in_norm(x))
    assert (seen - before).abs().max() > 0.5
    for _ in range(300):
        encoder(obs, rl2)
    seen = inputs_of(encoder, obs, rl2)
    assert seen.mean(dim=(0, 1)).abs().max() < 0.05
    assert (seen.std(dim=(0, 1)) - 1).abs().max() < 0.1


@pytest.mark.parametrize("encoder_of", [ff_encoder, cnn_encoder])
def test_hide_rl2s(encoder_of: type) -> None:
    spec = {"o": IMAGE}
    obs = {"o": torch.randint(256, (2, 4, *IMAGE.shape), dtype=torch.uint8)}
    rl2, other = torch.randn(2, 2, 4, 3)
    hidden, shown = encoder_of(spec, hide_rl2s=True).eval(), encoder_of(spec).eval()
    assert torch.equal(hidden(obs, rl2), hidden(obs, other))
    torch.testing.assert_close(hidden(obs, rl2), shown(obs, torch.zeros_like(rl2)))
    assert (shown(obs, rl2) - shown(obs, other)).abs().max() > 1e-3


@pytest.mark.parametrize("encoder_of", [ff_encoder, cnn_encoder])
def test_each_timestep_alone_and_every_parameter_used(encoder_of: type) -> None:
    obs = {"o": torch.randint(256, (2, 4, *IMAGE.shape), dtype=torch.uint8)}
    encoder, rl2 = encoder_of({"o": IMAGE}).eval(), torch.randn(2, 4, 3)
    embedding = encoder(obs, rl2)
    assert embedding.shape == (2, 4, encoder.emb_dim)
    alone = encoder({"o": obs["o"][1:, 2:3]}, rl2[1:, 2:3])
    torch.testing.assert_close(embedding[1:, 2:3], alone, rtol=1e-4, atol=1e-5)
    embedding.sin().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# --- CNNTstepEncoder -------------------------------------------------------------------------------------------------


def test_the_image_is_found_or_chosen() -> None:
    assert cnn_encoder({"x": STATE, "camera": IMAGE}).obs_key == "camera"
    two = {"left": IMAGE, "right": IMAGE}
    encoder = cnn_encoder(two, obs_key="right").eval()
    obs, rl2 = {k: torch.randint(256, (1, 2, *IMAGE.shape), dtype=torch.uint8) for k in two}, torch.randn(1, 2, 3)
    before = encoder(obs, rl2)
    assert torch.equal(encoder(obs | {"left": 255 - obs["left"]}, rl2), before)
    assert not torch.allclose(encoder(obs | {"right": 255 - obs["right"]}, rl2), before)


def test_errors_name_what_was_found() -> None:
    with pytest.raises(ValueError, match=r"exactly one observation with three dimensions.*'x': \(2,\).*obs_key"):
        cnn_encoder({"x": STATE})
    with pytest.raises(ValueError, match=r"exactly one observation.*left.*right.*obs_key"):
        cnn_encoder({"left": IMAGE, "right": IMAGE})
    with pytest.raises(ValueError, match=r"obs_key='camra'.*camera: \(6, 5, 3\)"):
        cnn_encoder({"camera": IMAGE}, obs_key="camra")
    with pytest.raises(ValueError, match=r"obs_key='x'.*x: \(2,\)"):
        cnn_encoder({"camera": IMAGE, "x": STATE}, obs_key="x")


def test_pixels_are_scaled_once_whatever_their_dtype() -> None:
    encoder, rl2 = cnn_encoder({"o": IMAGE}).eval(), torch.randn(1, 2, 3)
    image = torch.randint(256, (1, 2, *IMAGE.shape), dtype=torch.uint8)
    seen: list[Tensor] = []
    encoder.cnn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert torch.equal(encoder({"o": image}, rl2), encoder({"o": image.float()}, rl2))
    torch.testing.assert_close(seen[0], image.float() / 128 - 1)


def test_augmentation_is_for_training_alone() -> None:
    encoder, plain = cnn_encoder({"o": IMAGE}, drqv2_aug=True), cnn_encoder({"o": IMAGE})
    obs, rl2 = {"o": torch.randint(256, (8, 2, *IMAGE.shape), dtype=torch.uint8)}, torch.randn(8, 2, 3)
    torch.testing.assert_close(encoder.eval()(obs, rl2), plain.eval()(obs, rl2))
    assert not torch.allclose(encoder.train()(obs, rl2), plain.train()(obs, rl2))
