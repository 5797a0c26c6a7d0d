"""Observations of several kinds are read whole, each part as what it is."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from amago_ray.envs.spaces import obs_spec as spec_of
from amago_ray.nets.feedforward import MLP
from amago_ray.nets.mixed_encoder import MixedTstepEncoder, TokenReader, default_tstep_encoder
from amago_ray.nets.tstep_encoders import MAX_ONE_HOT, CNNTstepEncoder, FFTstepEncoder
from amago_ray.specs import ArraySpec

IMAGE = ArraySpec((6, 5, 3), "uint8")
STATE = ArraySpec((2,), "float32")
torch.set_num_threads(1)


def mixed_encoder(obs_spec: dict[str, ArraySpec], **settings: object) -> MixedTstepEncoder:
    torch.manual_seed(0)
    return MixedTstepEncoder(obs_spec, 3, img_features=8, d_token=4, d_output=8, **settings)


MIXED = {
    "rgb": IMAGE,
    "depth": ArraySpec((8, 7, 1), "float32"),
    "state": STATE,
    "mission": ArraySpec((4,), "uint8", (9,) * 4),
    "kind": ArraySpec((), "int64", (3,)),
    "id": ArraySpec((), "int32", (MAX_ONE_HOT + 1,)),
}


def mixed_obs(*leading: int) -> dict[str, Tensor]:
    obs = {}
    for name, spec in MIXED.items():
        shape = (*leading, *spec.shape)
        obs[name] = torch.randint(spec.nvec[0] if spec.nvec else 256, shape).to(getattr(torch, spec.dtype))
    return obs


def test_every_array_is_read_and_each_timestep_alone() -> None:
    encoder, obs, rl2 = mixed_encoder(MIXED, token_keys=("mission",)).eval(), mixed_obs(2, 4), torch.randn(2, 4, 3)
    assert (encoder.images, encoder.tokens) == (["depth", "rgb"], ["id", "mission"])
    assert set(encoder.others.obs_spec) == {"state", "kind"}
    embedding = encoder(obs, rl2)
    assert embedding.shape == (2, 4, encoder.emb_dim)
    alone = encoder({name: value[1:, 2:3] for name, value in obs.items()}, rl2[1:, 2:3])
    torch.testing.assert_close(embedding[1:, 2:3], alone, rtol=1e-4, atol=1e-5)
    for name, value in mixed_obs(2, 4).items():
        assert (encoder(obs | {name: value}, rl2) - embedding).abs().max() > 1e-4, name
    assert (encoder(obs, rl2 + 1) - embedding).abs().max() > 1e-4
    embedding.sin().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert encoder.description == (
        "MixedTstepEncoder: depth (8, 7, 1) with channels last through GridworldCNN; rgb (6, 5, 3) with channels last "
        "through GridworldCNN; id as tokens; mission as tokens; state, kind through FFTstepEncoder"
    )


def test_the_default_encoder_follows_from_the_observation() -> None:
    box, wide = gym.spaces.Box, MAX_ONE_HOT + 1
    image, vector = box(0, 255, (8, 8, 3), np.uint8), box(0, 1, (3,))
    for space, expected in (
        (image, CNNTstepEncoder),
        (box(0, 255, (4, 84, 84), np.uint8), CNNTstepEncoder),
        (box(0, 1, (3, 3, 3)), FFTstepEncoder),
        (vector, FFTstepEncoder),
        (gym.spaces.MultiDiscrete(np.full((8, 8, 3), 4)), FFTstepEncoder),
        (gym.spaces.Dict(image=image, vector=vector), MixedTstepEncoder),
        (gym.spaces.Dict(left=image, right=image), MixedTstepEncoder),
        (gym.spaces.Discrete(1_000_000), MixedTstepEncoder),
        (gym.spaces.Dict(mission=gym.spaces.MultiDiscrete([wide] * 3), vector=vector), MixedTstepEncoder),
    ):
        spec = spec_of(space)
        assert default_tstep_encoder(spec) is expected, space
        obs = {name: torch.zeros(2, 1, *s.shape, dtype=getattr(torch, s.dtype)) for name, s in spec.items()}
        assert expected(spec, 3)(obs, torch.zeros(2, 1, 3)).shape == (2, 1, 256)


def test_too_many_categories_are_embedded() -> None:
    spec = {"id": ArraySpec((), "int32", (1_000_000,))}
    encoder = mixed_encoder(spec).eval()
    assert sum(p.numel() for p in encoder.readers.parameters()) < 4 * MAX_ONE_HOT + 1000
    with torch.no_grad():
        out = encoder({"id": torch.tensor([[5, 999_999, 6]])}, torch.zeros(1, 3, 3))
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-3 and (out[0, 0] - out[0, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["gru", "mean"])
def test_tokens_are_read_up_to_their_padding(pooling: str) -> None:
    torch.manual_seed(0)
    reader = TokenReader(size=20, d_token=4, max_tokens=10, pooling=pooling, pad_token=0)
    long, short = torch.tensor([[[3, 7, 5, 0, 0]]]), torch.tensor([[[3, 7, 5]]])
    assert reader(long).shape == (1, 1, 4)
    torch.testing.assert_close(reader(long), reader(short))
    torch.testing.assert_close(reader(torch.tensor([[[13, 7, 5]]])), reader(short))  # 13 shares what 3 has
    assert torch.equal(reader(torch.zeros(1, 1, 3, dtype=torch.uint8)), torch.zeros(1, 1, 4))
    swapped = (reader(torch.tensor([[[7, 3, 5]]])) - reader(short)).abs().max()
    assert swapped > 1e-3 if pooling == "gru" else swapped < 1e-6
    if pooling == "mean":
        torch.testing.assert_close(reader(short)[0, 0], reader.embedding.weight[[3, 7, 5]].mean(dim=0))


def test_mixed_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="found no image and no tokens in .*: use FFTstepEncoder"):
        mixed_encoder({"x": STATE})
    with pytest.raises(ValueError, match="pooling='max': use 'gru' or 'mean'"):
        mixed_encoder(MIXED, pooling="max")
    with pytest.raises(ValueError, match="token_keys=.*no categorical array is named 'misson'; did you mean 'mission'"):
        mixed_encoder(MIXED, token_keys=("misson",))


@pytest.mark.parametrize("dtype, white", [("uint8", 255), ("float32", 1.0)])
def test_what_only_both_parts_together_tell_is_learned(dtype: str, white: float) -> None:
    """Whether the white half of the picture is the one that the vector names."""
    space = gym.spaces.Dict(
        picture=gym.spaces.Box(0, white, (8, 8, 1), np.dtype(dtype).type), half=gym.spaces.Box(0, 1, (1,), np.float32)
    )
    torch.manual_seed(0)
    encoder = MixedTstepEncoder(spec_of(space), 3, img_features=16, d_output=16)
    head = MLP(16, 32, 1, 2)  # the encoder puts parts side by side; what follows relates them
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(100):
        side, half = torch.randint(2, (2, 32, 1))
        picture = torch.zeros(32, 1, 8, 8, 1, dtype=getattr(torch, dtype))
        for right in (0, 1):
            picture[side[:, 0] == right, :, :, 4 * right : 4 * right + 4] = white
        logits = head(encoder({"picture": picture, "half": half.float().unsqueeze(-1)}, torch.zeros(32, 1, 3)))
        loss = torch.nn.functional.cross_entropy(logits[:, 0], (side == half)[:, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
