"""Timestep encoders read every array as the specification says, each timestep alone."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from amago_ray.envs.spaces import obs_spec as spec_of
from amago_ray.nets.cnn import GridworldCNN
from amago_ray.nets.tstep_encoders import (
    CNNTstepEncoder,
    FFTstepEncoder,
    one_hot_categories,
)
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


def test_too_many_categories_for_one_hots_are_refused() -> None:
    with pytest.raises(ValueError, match="'id' has 1,000,000 categories, too many for one-hots.*MixedTstepEncoder"):
        ff_encoder({"id": ArraySpec((), "int32", (1_000_000,))})


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


def test_only_the_specified_arrays_are_read() -> None:
    spec = {"c": STATE, "a": STATE, "b": ArraySpec((), "int64", (3,))}
    encoder = ff_encoder(spec, specify_obs_keys=("c", "b"), normalize_inputs=False).eval()
    obs = {"a": torch.full((1, 1, 2), 9.0), "b": torch.tensor([[2]]), "c": torch.tensor([[[0.5, -0.5]]])}
    assert inputs_of(encoder, obs, torch.ones(1, 1, 3)).tolist() == [[[0, 0, 1, 0.5, -0.5, 1, 1, 1]]]
    with pytest.raises(ValueError, match=r"specify_obs_keys=\['cc'\]: no observation is named 'cc'; did you mean 'c'"):
        ff_encoder({"c": STATE, "other": STATE}, specify_obs_keys=["cc"])


def test_auto_scale_brings_arrays_to_their_bounds() -> None:
    space = gym.spaces.Dict(
        a=gym.spaces.Box(np.float32([0, -10, -np.inf]), np.float32([4, 10, np.inf])),
        b=gym.spaces.Box(0, 255, (1,), np.uint8),
        c=gym.spaces.Discrete(2),
    )
    encoder = ff_encoder(spec_of(space), normalize_inputs=False, auto_scale=True).eval()
    obs = {"a": torch.tensor([[[1.0, 5.0, 7.0]]]), "b": torch.tensor([[[64]]]), "c": torch.tensor([[1]])}
    assert inputs_of(encoder, obs, torch.zeros(1, 1, 3)).tolist() == [[[-0.5, 0.5, 7, -0.5, 0, 1, 0, 0, 0]]]


def test_statistics_are_kept_where_inputs_are_not_normalised() -> None:
    """As AMAGO keeps them: weights are alike with and without."""
    spec = {"x": STATE}
    encoder, normal = ff_encoder(spec, normalize_inputs=False).train(), ff_encoder(spec).train()
    obs, rl2 = {"x": 5 + torch.randn(8, 3, 2)}, torch.randn(8, 3, 3)
    assert torch.equal(inputs_of(encoder, obs, rl2), torch.cat((obs["x"], rl2), dim=-1))
    normal(obs, rl2)
    assert torch.equal(encoder.in_norm.mu, normal.in_norm.mu) and encoder.in_norm.mu.abs().min() > 0


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
def test_hide_rewards(encoder_of: type) -> None:
    spec = {"o": IMAGE}
    obs = {"o": torch.randint(256, (2, 4, *IMAGE.shape), dtype=torch.uint8)}
    rl2 = torch.randn(2, 4, 3)
    hidden, shown = encoder_of(spec, hide_rewards=True).eval(), encoder_of(spec).eval()
    without = torch.cat((torch.zeros(2, 4, 1), rl2[..., 1:]), dim=-1)
    assert torch.equal(hidden(obs, rl2), shown(obs, without))
    assert (shown(obs, rl2) - shown(obs, without)).abs().max() > 1e-3
    both = encoder_of(spec, hide_rewards=True, hide_rl2s=True).eval()
    assert torch.equal(both(obs, rl2), shown(obs, torch.zeros_like(rl2)))


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
    assert cnn_encoder({"camera": IMAGE}).obs_key == "camera"
    two = {"left": IMAGE, "right": IMAGE}
    encoder = cnn_encoder(two, obs_key="right").eval()
    obs, rl2 = {k: torch.randint(256, (1, 2, *IMAGE.shape), dtype=torch.uint8) for k in two}, torch.randn(1, 2, 3)
    before = encoder(obs, rl2)
    assert torch.equal(encoder(obs | {"left": 255 - obs["left"]}, rl2), before)
    assert not torch.allclose(encoder(obs | {"right": 255 - obs["right"]}, rl2), before)


def test_errors_name_what_was_found() -> None:
    with pytest.raises(ValueError, match=r"obs_key='x': it must name an image.*x: \(2,\)"):
        cnn_encoder({"x": STATE})
    with pytest.raises(ValueError, match=r"reads one image, but found.*left.*right.*obs_key.*MixedTstepEncoder"):
        cnn_encoder({"left": IMAGE, "right": IMAGE})
    with pytest.raises(ValueError, match=r"reads one image, but found.*MixedTstepEncoder"):
        cnn_encoder({"x": STATE, "camera": IMAGE})
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
    assert torch.equal(seen[0], image.float() / 128 - 1)


def seen_by_cnn(space: gym.spaces.Box, image: np.ndarray, **settings: object) -> Tensor:
    """What reaches the CNN of one image of a space."""
    (name, spec), *_ = spec_of(space).items()
    encoder, seen = cnn_encoder({name: spec}, **settings).eval(), []
    encoder.cnn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder({name: torch.from_numpy(image.astype(spec.dtype))[None, None]}, torch.zeros(1, 1, 3))
    return seen[0][0, 0]


@pytest.mark.parametrize(
    "low, high, dtype",
    [
        (0, 1, "float32"),
        (-1, 1, "float32"),
        (0, 1, "float64"),
        (0, 10, "uint8"),
        (-5, 3, "int16"),
        (-0.5, 0.5, "float32"),
    ],
)
def test_images_are_scaled_by_the_bounds_of_their_space(low: float, high: float, dtype: str) -> None:
    space = gym.spaces.Box(low, high, (6, 5, 3), dtype)
    image = np.linspace(low, high, 90).reshape(6, 5, 3).round(0 if np.dtype(dtype).kind != "f" else 9)
    expected = torch.from_numpy(2 * (image - low) / (high - low) - 1).float()
    torch.testing.assert_close(seen_by_cnn(space, image), expected, rtol=1e-5, atol=1e-6)


def test_bytes_are_scaled_as_amago_does_and_a_range_may_be_given() -> None:
    image = np.arange(90).reshape(6, 5, 3)
    for dtype in ("uint8", "float32"):
        space = gym.spaces.Box(0, 255, (6, 5, 3), dtype)
        assert torch.equal(seen_by_cnn(space, image), torch.from_numpy(image) / 128 - 1)
        in_range = torch.from_numpy(2 * image / 10 - 1).float()
        torch.testing.assert_close(seen_by_cnn(space, image, img_range=(0, 10)), in_range)


def test_unknown_bounds_leave_pixels_as_they_are_and_channels_have_their_own() -> None:
    image = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    for low, high in ((-np.inf, np.inf), (0.0, np.inf), (-3e38, 3e38), (2.0, 2.0)):
        space = gym.spaces.Box(np.float32(low), np.float32(high), (6, 5, 3), np.float32)
        assert torch.equal(seen_by_cnn(space, image), torch.from_numpy(image))
    high = np.broadcast_to(np.float32([1.0, 50.0, np.inf]), (6, 5, 3))
    depth = gym.spaces.Box(np.zeros_like(high), high, dtype=np.float32)
    expected = np.stack((2 * image[..., 0] - 1, image[..., 1] / 25 - 1, image[..., 2]), axis=-1)
    torch.testing.assert_close(seen_by_cnn(depth, image), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


def test_shapes_that_a_space_may_have_find_their_trunk() -> None:
    for shape, description in {
        (4, 84, 84): "o (4, 84, 84) with channels first through NatureishCNN",
        (7, 7, 3): "o (7, 7, 3) with channels last through GridworldCNN",
        (84, 84, 3): "o (84, 84, 3) with channels last through NatureishCNN",
    }.items():
        encoder = CNNTstepEncoder({"o": ArraySpec(shape, "uint8")}, 3, d_output=8)
        assert encoder.description == f"CNNTstepEncoder: {description}"
        assert encoder({"o": torch.zeros(2, 3, *shape, dtype=torch.uint8)}, torch.zeros(2, 3, 3)).shape == (2, 3, 8)
    told = CNNTstepEncoder({"o": ArraySpec((4, 36, 36), "uint8")}, 3, cnn_type=GridworldCNN, channels_first=False)
    assert told.cnn.in_channels == 36


def test_augmentation_is_for_training_alone() -> None:
    encoder, plain = cnn_encoder({"o": IMAGE}, drqv2_aug=True), cnn_encoder({"o": IMAGE})
    obs, rl2 = {"o": torch.randint(256, (8, 2, *IMAGE.shape), dtype=torch.uint8)}, torch.randn(8, 2, 3)
    torch.testing.assert_close(encoder.eval()(obs, rl2), plain.eval()(obs, rl2))
    assert not torch.allclose(encoder.train()(obs, rl2), plain.train()(obs, rl2))
