"""Timestep encoders: one timestep's observation, previous action and previous reward to a vector.

Shape letters: B sequences, L timesteps, D embedding width, A action vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import gin
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.nets.cnn import CNN, DrQv2Aug, NatureishCNN
from amago_ray.nets.feedforward import MLP, Normalization
from amago_ray.nets.scaling import InputNorm, symlog
from amago_ray.specs import ObsSpec


def one_hot_categories(obs: Mapping[str, Tensor], obs_spec: ObsSpec) -> dict[str, Tensor]:
    """Observations with every categorical array (..., n) replaced by its one-hots end to end (..., sum(nvec))."""
    encoded = {}
    for name, spec in obs_spec.items():
        value = obs[name]
        if spec.nvec:
            entries = value.long().flatten(value.dim() - len(spec.shape)) if spec.shape else value.long().unsqueeze(-1)
            value = torch.cat([F.one_hot(entries[..., i], n) for i, n in enumerate(spec.nvec)], dim=-1)
        encoded[name] = value
    return encoded


class TstepEncoder(nn.Module, ABC):
    """Base class of timestep encoders. A subclass defines `emb_dim` and `encode`.

    obs_spec: name -> `ArraySpec` of every observation array. rl2_dim: 1 + A, the previous reward and action vector.
    """

    def __init__(self, obs_spec: ObsSpec, rl2_dim: int):
        super().__init__()
        self.obs_spec = dict(obs_spec)
        self.rl2_dim = rl2_dim

    @property
    @abstractmethod
    def emb_dim(self) -> int:
        """Width D of the embedding."""

    @abstractmethod
    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        """Map obs (B, L, ...) and rl2 (B, L, 1 + A) to (B, L, D), each timestep alone.

        Categorical observations arrive as one-hots, everything else in its own dtype.
        mask: (B, L) bool, True for real timesteps; None when all are. Only running statistics need it.
        """

    def forward(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encode(one_hot_categories(obs, self.obs_spec), rl2, mask)


@gin.configurable
class FFTstepEncoder(TstepEncoder):
    """State arrays: everything flattened, concatenated in alphabetical order, normalised, through an MLP."""

    def __init__(
        self,
        obs_spec: ObsSpec,
        rl2_dim: int,
        n_layers: int = 2,
        d_hidden: int = 512,
        d_output: int = 256,
        norm: str = "layer",
        activation: str = "leaky_relu",
        normalize_inputs: bool = True,
        hide_rl2s: bool = False,
    ):
        super().__init__(obs_spec, rl2_dim)
        d_inp = sum(spec.num_features for spec in obs_spec.values()) + rl2_dim
        self.in_norm = InputNorm(d_inp) if normalize_inputs else None
        self.base = MLP(d_inp, d_hidden, n_layers, d_output, activation=activation)
        self.out_norm = Normalization(norm, d_output)
        self.d_output = d_output
        self.hide_rl2s = hide_rl2s

    @property
    def emb_dim(self) -> int:
        return self.d_output

    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        arrays = [obs[name].reshape(*rl2.shape[:-1], -1).to(rl2.dtype) for name in sorted(obs)]
        x = torch.cat([*arrays, torch.zeros_like(rl2) if self.hide_rl2s else rl2], dim=-1)
        if self.in_norm is not None:
            if self.training:
                self.in_norm.update(x, mask)
            x = self.in_norm(x)
        return self.out_norm(self.base(x))


@gin.configurable
class CNNTstepEncoder(TstepEncoder):
    """One image per timestep: a CNN's features merged with the previous reward and action.

    obs_key: which array is the image, (H, W, C), or (C, H, W) with `channels_first`; by default the only one that has
    three dimensions. drqv2_aug: pad-and-crop augmentation in training (Yarats et al. 2021, arXiv 2107.09645).
    """

    def __init__(
        self,
        obs_spec: ObsSpec,
        rl2_dim: int,
        cnn_type: type[CNN] = NatureishCNN,
        channels_first: bool = False,
        img_features: int = 256,
        rl2_features: int = 12,
        d_output: int = 256,
        norm: str = "layer",
        activation: str = "leaky_relu",
        hide_rl2s: bool = False,
        drqv2_aug: bool = False,
        obs_key: str | None = None,
    ):
        super().__init__(obs_spec, rl2_dim)
        self.obs_key = obs_key or self._only_image(obs_spec)
        if self.obs_key not in obs_spec or len(obs_spec[self.obs_key].shape) != 3:
            raise ValueError(
                f"CNNTstepEncoder.obs_key={self.obs_key!r}: it must name an image with three dimensions; "
                f"the observation has {{{', '.join(f'{k}: {s.shape}' for k, s in obs_spec.items())}}}"
            )
        self.cnn = cnn_type(obs_spec[self.obs_key].shape, channels_first, activation=activation)
        self.img_features = nn.Linear(self.cnn.output_size, img_features)
        self.rl2_features = nn.Linear(rl2_dim, rl2_features)
        self.merge = nn.Linear(img_features + rl2_features, d_output)
        self.out_norm = Normalization(norm, d_output)
        self.augmentation = DrQv2Aug(channels_first=channels_first) if drqv2_aug else None
        self.d_output = d_output
        self.hide_rl2s = hide_rl2s

    @staticmethod
    def _only_image(obs_spec: ObsSpec) -> str:
        images = [name for name, spec in obs_spec.items() if len(spec.shape) == 3]
        if len(images) != 1:
            found = {name: spec.shape for name, spec in obs_spec.items()}
            raise ValueError(
                f"CNNTstepEncoder needs exactly one observation with three dimensions, but found {found}; "
                "set CNNTstepEncoder.obs_key to choose one, or subclass TstepEncoder to use several"
            )
        return images[0]

    @property
    def emb_dim(self) -> int:
        return self.d_output

    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        image = obs[self.obs_key].to(rl2.dtype)
        if self.augmentation is not None and self.training:
            image = self.augmentation(image)
        image = self.img_features(self.cnn(image / 128.0 - 1.0))
        rl2 = self.rl2_features(symlog(torch.zeros_like(rl2) if self.hide_rl2s else rl2))
        merged = F.leaky_relu(torch.cat((image, rl2), dim=-1))
        return self.out_norm(self.merge(merged))
