"""The encoder of observations that are several things at once, and the choice of one where nobody made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import gin
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.config import nearest
from amago_ray.nets.cnn import CNN
from amago_ray.nets.feedforward import Normalization
from amago_ray.nets.scaling import BoundsScale
from amago_ray.nets.tstep_encoders import (
    MAX_ONE_HOT,
    CNNTstepEncoder,
    FFTstepEncoder,
    TstepEncoder,
    image_trunk,
    is_image,
    is_too_wide,
)
from amago_ray.specs import ObsSpec

Pooling = Literal["gru", "mean"]


class TokenReader(nn.Module):
    """Sequences of integer tokens to one vector, (..., n) -> (..., d_token): the words of a mission, say.

    size: how many different tokens there are; those from `max_tokens` on share the embeddings of others (token modulo
        `max_tokens`), so that the table stays bounded.
    pooling: "gru", the state of a GRU after the last token, or "mean" of the embeddings, which knows no order.
    pad_token: what fills up the end of shorter sequences, and is not read; None if nothing does. A sequence of nothing
        else is zeros.
    """

    def __init__(self, size: int, d_token: int, max_tokens: int, pooling: Pooling, pad_token: int | None):
        super().__init__()
        self.embedding = nn.Embedding(min(size, max_tokens), d_token)
        self.rnn = nn.GRU(d_token, d_token, batch_first=True) if pooling == "gru" else None
        self.pad_token = pad_token

    def forward(self, tokens: Tensor) -> Tensor:
        flat = tokens.long().reshape(-1, tokens.shape[-1])
        real = torch.ones_like(flat) if self.pad_token is None else (flat != self.pad_token).long()
        count = real.sum(dim=1, keepdim=True)
        vectors = self.embedding(flat % self.embedding.num_embeddings)
        if self.rnn is None:
            pooled = (vectors * real.unsqueeze(2)).sum(dim=1) / count.clamp(min=1)
        else:
            last = (count - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, vectors.shape[2])
            pooled = self.rnn(vectors)[0].gather(1, last).squeeze(1) * count.clamp(max=1)
        return pooled.reshape(*tokens.shape[:-1], -1)


@gin.configurable
class MixedTstepEncoder(TstepEncoder):
    """Images, tokens and anything else: a CNN for every image, a `TokenReader` for every array of tokens, an
    `FFTstepEncoder` for all other arrays and rl2, and a linear layer over what they say.

    Images are the arrays with three dimensions that a CNN can take. cnn_type, channels_first, img_range, as in
    `CNNTstepEncoder`, hold for all of them.
    token_keys: categorical arrays (Discrete, MultiDiscrete) to be read as tokens; those with too many categories for
        one-hots are, named or not. d_token, max_tokens, pooling, pad_token: see `TokenReader`.
    hide_rl2s, hide_rewards: see `TstepEncoder`.

    A subclass that knows better which arrays are tokens overrides `find_tokens`. Raises ValueError where there is
    neither image nor token: that is what `FFTstepEncoder` is for.
    """

    one_hot = False  # the encoder of the other arrays sees to it

    def __init__(
        self,
        obs_spec: ObsSpec,
        rl2_dim: int,
        cnn_type: type[CNN] | None = None,
        channels_first: bool | None = None,
        img_features: int = 256,
        img_range: tuple[float, float] | None = None,
        token_keys: Sequence[str] = (),
        d_token: int = 64,
        max_tokens: int = MAX_ONE_HOT,
        pooling: Pooling = "gru",
        pad_token: int | None = None,
        d_output: int = 256,
        norm: str = "layer",
        activation: str = "leaky_relu",
        hide_rl2s: bool = False,
        hide_rewards: bool = False,
    ):
        super().__init__(obs_spec, rl2_dim, hide_rl2s, hide_rewards)
        if pooling not in get_args(Pooling):
            raise ValueError(f"MixedTstepEncoder.pooling={pooling!r}: use 'gru' or 'mean'")
        sizes = self.find_tokens(obs_spec, token_keys)
        self.tokens = sorted(sizes)
        self.images = [name for name in sorted(obs_spec) if is_image(obs_spec[name]) and name not in sizes]
        if not self.images and not self.tokens:
            found = {name: spec.shape for name, spec in obs_spec.items()}
            raise ValueError(f"MixedTstepEncoder found no image and no tokens in {found}: use FFTstepEncoder")
        others = {k: v for k, v in obs_spec.items() if k not in self.images and k not in sizes}
        specs = [obs_spec[name] for name in self.images]
        self.pixel_scales = nn.ModuleList(BoundsScale(spec, img_range) for spec in specs)
        self.cnns = nn.ModuleList(image_trunk(spec, cnn_type, channels_first, activation) for spec in specs)
        self.readers = nn.ModuleList(
            # A single token has no order.
            TokenReader(
                sizes[name], d_token, max_tokens, pooling if len(obs_spec[name].nvec) > 1 else "mean", pad_token
            )
            for name in self.tokens
        )
        pixels = sum(cnn.output_size for cnn in self.cnns if isinstance(cnn, CNN))
        self.img_features = nn.Linear(pixels, img_features) if self.images else None
        self.others = FFTstepEncoder(others, rl2_dim)
        seen = img_features * bool(self.images) + d_token * len(self.tokens) + self.others.emb_dim
        self.merge = nn.Linear(seen, d_output)
        self.out_norm = Normalization(norm, d_output)
        self.d_output = d_output

    @property
    def emb_dim(self) -> int:
        return self.d_output

    @property
    def description(self) -> str:
        images = [
            f"{name} {cnn.description}"
            for name, cnn in zip(self.images, self.cnns, strict=True)
            if isinstance(cnn, CNN)
        ]
        tokens = [f"{name} as tokens" for name in self.tokens]
        others = [f"{', '.join(self.others.obs_spec)} through FFTstepEncoder"] if self.others.obs_spec else []
        return f"MixedTstepEncoder: {'; '.join(images + tokens + others)}"

    def find_tokens(self, obs_spec: ObsSpec, token_keys: Sequence[str]) -> dict[str, int]:
        """Name -> number of different tokens of every array to be read as tokens."""
        for name in token_keys:
            if name not in obs_spec or not obs_spec[name].nvec:
                known = [name for name, spec in obs_spec.items() if spec.nvec]
                raise ValueError(
                    f"MixedTstepEncoder.token_keys={tuple(token_keys)!r}: no categorical array is named {name!r}"
                    f"{nearest(name, known)}"
                )
        wide = [name for name, spec in obs_spec.items() if is_too_wide(spec)]
        return {name: max(obs_spec[name].nvec) for name in {*wide, *token_keys}}

    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        seen = [self.others(obs, rl2, mask)]
        if self.img_features is not None:
            images = zip(self.images, self.pixel_scales, self.cnns, strict=True)
            features = [cnn(scale(obs[name].to(rl2.dtype))) for name, scale, cnn in images]
            seen.append(F.leaky_relu(self.img_features(torch.cat(features, dim=-1))))
        for name, reader in zip(self.tokens, self.readers, strict=True):
            seen.append(reader(obs[name].reshape(*rl2.shape[:-1], -1)))
        return self.out_norm(self.merge(torch.cat(seen, dim=-1)))


def default_tstep_encoder(obs_spec: ObsSpec) -> type[TstepEncoder]:
    """The encoder for observations that nobody chose one for.

    `CNNTstepEncoder` for one image, `MixedTstepEncoder` for images beside other arrays and for arrays of more
    categories than one-hots are good for, else `FFTstepEncoder`.
    """
    images = [name for name, spec in obs_spec.items() if is_image(spec)]
    if len(images) == len(obs_spec) == 1:
        return CNNTstepEncoder
    wide = any(is_too_wide(spec) for spec in obs_spec.values())
    return MixedTstepEncoder if images or wide else FFTstepEncoder
