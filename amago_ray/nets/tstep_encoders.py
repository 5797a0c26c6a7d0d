"""Timestep encoders: one timestep's observation, previous action and previous reward to a vector.

Shape letters: B sequences, L timesteps, D embedding width, A action vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import gin
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amago_ray.config import nearest
from amago_ray.nets.cnn import CNN, DrQv2Aug, fits_a_trunk, has_channels_first, trunk_for
from amago_ray.nets.feedforward import MLP, Normalization
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.scaling import BoundsScale, InputNorm, symlog
from amago_ray.specs import ArraySpec, ObsSpec

MAX_ONE_HOT = 10_000  # categories of one array: beyond, one-hots cost more than everything else in a batch


def is_too_wide(spec: ArraySpec) -> bool:
    """Whether an array has more categories than one-hots are good for."""
    return sum(spec.nvec) > MAX_ONE_HOT


def is_image(spec: ArraySpec) -> bool:
    """Whether an array is an image that some trunk can take (see `fits_a_trunk`)."""
    return not spec.nvec and len(spec.shape) == 3 and fits_a_trunk(spec.shape)


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
    hide_rl2s, hide_rewards: `encode` gets zeros in place of both, or of the reward alone.
    one_hot: categories reach `encode` as one-hots. A subclass that embeds them sets it False and gets integers, counted
        from 0.

    Raises ValueError for an array of more than `MAX_ONE_HOT` categories where they are to be one-hots.
    """

    one_hot = True

    def __init__(self, obs_spec: ObsSpec, rl2_dim: int, hide_rl2s: bool = False, hide_rewards: bool = False):
        super().__init__()
        self.obs_spec = dict(obs_spec)
        self.rl2_dim = rl2_dim
        self.hide_rl2s = hide_rl2s
        self.hide_rewards = hide_rewards
        for name, spec in obs_spec.items():
            if self.one_hot and is_too_wide(spec):
                raise ValueError(
                    f"observation {name!r} has {sum(spec.nvec):,} categories, too many for one-hots (at most "
                    f"{MAX_ONE_HOT:,}): take Experiment.tstep_encoder_type=MixedTstepEncoder, which learns a bounded "
                    f"number of embeddings, or leave {name!r} out of the observation"
                )

    @property
    @abstractmethod
    def emb_dim(self) -> int:
        """Width D of the embedding."""

    @property
    def description(self) -> str:
        """What it reads and how, in a line: said before a run starts."""
        return f"{type(self).__name__} of {', '.join(sorted(self.obs_spec))}"

    @abstractmethod
    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        """Map obs (B, L, ...) and rl2 (B, L, 1 + A) to (B, L, D), each timestep alone.

        Categorical observations arrive as one-hots (unless `one_hot` is off), everything else in its own dtype.
        mask: (B, L) bool, True for real timesteps; None when all are. Only running statistics need it.
        """

    def augment(self, obs: Mapping[str, Tensor], packing: Packing | None) -> Mapping[str, Tensor]:
        """Observations as `encode` is to see them in training: where random changes to them belong."""
        return obs

    def forward(
        self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """Embeddings (B, L, D). packing: of sequences that lie end to end, where B is 1."""
        if self.training:
            obs = self.augment(obs, packing)
        if self.hide_rl2s:
            rl2 = torch.zeros_like(rl2)
        elif self.hide_rewards:
            rl2 = torch.cat((torch.zeros_like(rl2[..., :1]), rl2[..., 1:]), dim=-1)
        return self.encode(one_hot_categories(obs, self.obs_spec) if self.one_hot else obs, rl2, mask)


class FlatArrays(nn.Module):
    """Arrays of an observation and rl2 as one vector, (B, L, ...) each -> (B, L, size), in alphabetical order.

    auto_scale: bring arrays to [-1, 1] by their own bounds first (see `BoundsScale`); categories are one-hots already.
    """

    def __init__(self, obs_spec: ObsSpec, rl2_dim: int, auto_scale: bool):
        super().__init__()
        self.names = sorted(obs_spec)
        self.scales = nn.ModuleList(
            BoundsScale(obs_spec[name]) if auto_scale and not obs_spec[name].nvec else nn.Identity()
            for name in self.names
        )
        self.size = sum(spec.num_features for spec in obs_spec.values()) + rl2_dim

    def forward(self, obs: Mapping[str, Tensor], rl2: Tensor) -> Tensor:
        arrays = [
            scale(obs[name].to(rl2.dtype)).reshape(*rl2.shape[:-1], -1)
            for name, scale in zip(self.names, self.scales, strict=True)
        ]
        return torch.cat([*arrays, rl2], dim=-1)


@gin.configurable
class FFTstepEncoder(TstepEncoder):
    """State arrays: everything flattened, concatenated in alphabetical order, normalised, through an MLP.

    specify_obs_keys: names of the arrays to read; None for all. normalize_inputs: by running statistics (`InputNorm`).
    auto_scale: bring arrays to [-1, 1] by the bounds that their spaces declare, before that (see `BoundsScale`).
    hide_rl2s, hide_rewards: see `TstepEncoder`.
    """

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
        hide_rewards: bool = False,
        specify_obs_keys: Sequence[str] | None = None,
        auto_scale: bool = False,
    ):
        for name in specify_obs_keys or ():
            if name not in obs_spec:
                raise ValueError(
                    f"FFTstepEncoder.specify_obs_keys={specify_obs_keys!r}: no observation is named {name!r}"
                    f"{nearest(name, obs_spec)}"
                )
        read = {name: spec for name, spec in obs_spec.items() if specify_obs_keys is None or name in specify_obs_keys}
        super().__init__(read, rl2_dim, hide_rl2s, hide_rewards)
        self.arrays = FlatArrays(read, rl2_dim, auto_scale)
        # Given only where it is meant, so that gin may say it too.
        self.in_norm = InputNorm(self.arrays.size, **({} if normalize_inputs else {"skip": True}))
        self.base = MLP(self.arrays.size, d_hidden, n_layers, d_output, activation=activation)
        self.out_norm = Normalization(norm, d_output)
        self.d_output = d_output

    @property
    def emb_dim(self) -> int:
        return self.d_output

    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        x = self.arrays(obs, rl2)
        if self.training:
            self.in_norm.update(x, mask)
        return self.out_norm(self.base(self.in_norm(x)))


def image_trunk(spec: ArraySpec, cnn_type: type[CNN] | None, channels_first: bool | None, activation: str) -> CNN:
    """The CNN for images of `spec`.

    cnn_type: None for the default of that size (see `trunk_for`). channels_first: whether shapes read (C, H, W); None
    for what the shape looks like (see `has_channels_first`).
    """
    first = has_channels_first(spec.shape) if channels_first is None else channels_first
    return (cnn_type or trunk_for(spec.shape, first))(spec.shape, first, activation=activation)


@gin.configurable
class CNNTstepEncoder(TstepEncoder):
    """One image per timestep: a CNN's features merged with the previous reward and action.

    cnn_type: the trunk; None for NatureishCNN, or one for smaller images where it does not fit.
    channels_first: whether images are (C, H, W); None for what their shape looks like.
    hide_rl2s, hide_rewards: see `TstepEncoder`.
    drqv2_aug: pad-and-crop augmentation in training (Yarats et al. 2021, arXiv 2107.09645), of the part
        `aug_pct_of_batch` of each batch.
    obs_key: which array is the image, all others being ignored; by default the observation must be one image.
    img_range: least and largest pixel. None for the bounds of the image's space, where bytes become x / 128 - 1 (see
        `BoundsScale`). Set it for symbolic grids of small integers that are declared as bytes.
    """

    def __init__(
        self,
        obs_spec: ObsSpec,
        rl2_dim: int,
        cnn_type: type[CNN] | None = None,
        channels_first: bool | None = None,
        img_features: int = 256,
        rl2_features: int = 12,
        d_output: int = 256,
        norm: str = "layer",
        activation: str = "leaky_relu",
        hide_rl2s: bool = False,
        hide_rewards: bool = False,
        drqv2_aug: bool = False,
        aug_pct_of_batch: float = 0.75,
        obs_key: str | None = None,
        img_range: tuple[float, float] | None = None,
    ):
        self.obs_key = obs_key or self._only_array(obs_spec)
        if self.obs_key not in obs_spec or len(obs_spec[self.obs_key].shape) != 3:
            raise ValueError(
                f"CNNTstepEncoder.obs_key={self.obs_key!r}: it must name an image with three dimensions; "
                f"the observation has {{{', '.join(f'{k}: {s.shape}' for k, s in obs_spec.items())}}}"
            )
        spec = obs_spec[self.obs_key]
        super().__init__({self.obs_key: spec}, rl2_dim, hide_rl2s, hide_rewards)
        self.pixel_scale = BoundsScale(spec, img_range)
        self.cnn = image_trunk(spec, cnn_type, channels_first, activation)
        self.img_features = nn.Linear(self.cnn.output_size, img_features)
        self.rl2_features = nn.Linear(rl2_dim, rl2_features)
        self.merge = nn.Linear(img_features + rl2_features, d_output)
        self.out_norm = Normalization(norm, d_output)
        self.augmentation = (
            DrQv2Aug(channels_first=self.cnn.channels_first, fraction=aug_pct_of_batch) if drqv2_aug else None
        )
        self.d_output = d_output

    @staticmethod
    def _only_array(obs_spec: ObsSpec) -> str:
        if len(obs_spec) != 1:
            found = {name: spec.shape for name, spec in obs_spec.items()}
            raise ValueError(
                f"CNNTstepEncoder reads one image, but found {found}; set CNNTstepEncoder.obs_key to choose it, or "
                "Experiment.tstep_encoder_type=MixedTstepEncoder to read all arrays"
            )
        return next(iter(obs_spec))

    @property
    def emb_dim(self) -> int:
        return self.d_output

    @property
    def description(self) -> str:
        return f"CNNTstepEncoder: {self.obs_key} {self.cnn.description}"

    def augment(self, obs: Mapping[str, Tensor], packing: Packing | None) -> Mapping[str, Tensor]:
        if self.augmentation is None:
            return obs
        return {**obs, self.obs_key: self.augmentation(obs[self.obs_key], packing)}

    def encode(self, obs: Mapping[str, Tensor], rl2: Tensor, mask: Tensor | None) -> Tensor:
        image = self.img_features(self.cnn(self.pixel_scale(obs[self.obs_key].to(rl2.dtype))))
        merged = F.leaky_relu(torch.cat((image, self.rl2_features(symlog(rl2))), dim=-1))
        return self.out_norm(self.merge(merged))
