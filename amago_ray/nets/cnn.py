"""Convolutional trunks for image observations, and the random-shift augmentation of DrQ-v2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import gin
import torch
from torch import Tensor, nn

from amago_ray.nets.feedforward import activation as activation_fn
from amago_ray.nets.packed_sequences import Packing

NORM_GROUPS = 4


class CNN(nn.Module, ABC):
    """Turns images with any leading dimensions into flat features; a subclass brings the convolutions.

    forward: (..., H, W, C), or (..., C, H, W) if `channels_first`, -> (..., output_size). uint8 pixels are scaled to
    x / 128 - 1; floats are taken to be scaled already.

    img_shape: one image, in the order that `channels_first` says.
    """

    def __init__(self, img_shape: Sequence[int], channels_first: bool, activation: str = "leaky_relu"):
        super().__init__()
        if len(img_shape) != 3:
            raise ValueError(f"{type(self).__name__} img_shape={tuple(img_shape)} must have 3 dimensions")
        self.img_shape = tuple(img_shape)
        self.channels_first = channels_first
        self.activation: Callable[[Tensor], Tensor] = activation_fn(activation)
        self.in_channels = img_shape[0] if channels_first else img_shape[-1]

    @abstractmethod
    def conv_forward(self, imgs: Tensor) -> Tensor:
        """Feature maps (N, C', H', W') of float images (N, C, H, W)."""

    @property
    def output_size(self) -> int:
        """Number of features of one image. Raises ValueError where the image is too small for the trunk."""
        weights = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        image = torch.empty(self.img_shape, device="meta")
        try:
            return torch.func.functional_call(self, weights, (image,)).shape[-1]
        except RuntimeError as error:
            order = "(C, H, W)" if self.channels_first else "(H, W, C)"
            raise ValueError(
                f"img_shape={self.img_shape}, read as {order}, is too small for {type(self).__name__}: take another "
                "trunk (CNNTstepEncoder.cnn_type), or the other order (CNNTstepEncoder.channels_first)"
            ) from error

    @property
    def description(self) -> str:
        """How images are read, in words."""
        order = "channels first" if self.channels_first else "channels last"
        return f"{self.img_shape} with {order} through {type(self).__name__}"

    def forward(self, imgs: Tensor) -> Tensor:
        leading = imgs.shape[:-3]
        imgs = imgs.reshape(-1, *self.img_shape)
        if not self.channels_first:
            imgs = imgs.movedim(-1, 1)
        if imgs.dtype == torch.uint8:
            imgs = imgs / 128 - 1
        return self.conv_forward(imgs).reshape(*leading, -1)


class _ThreeConvCNN(CNN):
    """Three convolutions without padding, each followed by the activation."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
    ):
        super().__init__(img_shape, channels_first, activation)
        for name, values in (("channels", channels), ("kernels", kernels), ("strides", strides)):
            if len(values) != 3:
                raise ValueError(f"{type(self).__name__}.{name}={list(values)}: it must be 3 numbers")
        first, second, third = channels
        self.conv1 = nn.Conv2d(self.in_channels, first, kernels[0], strides[0])
        self.conv2 = nn.Conv2d(first, second, kernels[1], strides[1])
        self.conv3 = nn.Conv2d(second, third, kernels[2], strides[2])

    def conv_forward(self, imgs: Tensor) -> Tensor:
        x = self.activation(self.conv1(imgs))
        x = self.activation(self.conv2(x))
        return self.activation(self.conv3(x))


@gin.configurable
class NatureishCNN(_ThreeConvCNN):
    """The DQN trunk (Mnih et al., Nature 2015): by default kernels 8, 4, 3 at strides 4, 2, 1."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: Sequence[int] = (32, 64, 64),
        kernels: Sequence[int] = (8, 4, 3),
        strides: Sequence[int] = (4, 2, 1),
    ):
        super().__init__(img_shape, channels_first, activation, channels, kernels, strides)


@gin.configurable
class GridworldCNN(_ThreeConvCNN):
    """For small symbolic grids: by default three 2 x 2 convolutions at stride 1."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: Sequence[int] = (16, 32, 48),
        kernels: Sequence[int] = (2, 2, 2),
        strides: Sequence[int] = (1, 1, 1),
    ):
        super().__init__(img_shape, channels_first, activation, channels, kernels, strides)


@gin.configurable
class DrQCNN(CNN):
    """The DrQ-v2 trunk (arXiv 2107.09645): four 3 x 3 convolutions, the first at stride 2."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: int = 32,
    ):
        super().__init__(img_shape, channels_first, activation)
        self.conv1 = nn.Conv2d(self.in_channels, channels, 3, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3)
        self.conv3 = nn.Conv2d(channels, channels, 3)
        self.conv4 = nn.Conv2d(channels, channels, 3)

    def conv_forward(self, imgs: Tensor) -> Tensor:
        x = self.activation(self.conv1(imgs))
        x = self.activation(self.conv2(x))
        x = self.activation(self.conv3(x))
        return self.activation(self.conv4(x))


class _ResidualBlock(nn.Module):
    """norm(x + conv(act(conv(act(x))))), the width and the size unchanged. group_norm: over 4 groups, else no norm."""

    def __init__(self, channels: int, activation: str, group_norm: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = activation_fn(activation)
        self.norm = nn.GroupNorm(NORM_GROUPS, channels) if group_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.conv2(self.activation(self.conv1(self.activation(x)))))


class _ResidualStage(nn.Module):
    """Convolution 3 x 3, max pooling 3 x 3 at stride 2, two residual blocks: about half the size comes out."""

    def __init__(self, d_inp: int, d_output: int, activation: str, pool_padding: int, group_norm: bool):
        super().__init__()
        self.conv = nn.Conv2d(d_inp, d_output, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=pool_padding)
        self.residual1 = _ResidualBlock(d_output, activation, group_norm)
        self.residual2 = _ResidualBlock(d_output, activation, group_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual2(self.residual1(self.pool(self.conv(x))))


class _ResidualCNN(CNN):
    """One stage per entry of `depths`, then the activation."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str,
        depths: Sequence[int],
        pool_padding: int,
        group_norm: bool,
    ):
        super().__init__(img_shape, channels_first, activation)
        self.blocks = nn.Sequential(
            *(
                _ResidualStage(d_inp, d_output, activation, pool_padding, group_norm)
                for d_inp, d_output in pairwise((self.in_channels, *depths))
            )
        )

    def conv_forward(self, imgs: Tensor) -> Tensor:
        return self.activation(self.blocks(imgs))


@gin.configurable
class IMPALAishCNN(_ResidualCNN):
    """AMAGO's version of IMPALA's residual trunk: pooling without padding, group norm after every residual sum.

    cnn_block_depths: width of each stage; one stage halves the image. post_group_norm: GroupNorm of 4 groups, which
    must divide every width (ValueError).
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        cnn_block_depths: Sequence[int] = (16, 32, 32),
        post_group_norm: bool = True,
    ):
        if post_group_norm and any(depth % NORM_GROUPS for depth in cnn_block_depths):
            raise ValueError(
                f"IMPALAishCNN.cnn_block_depths={list(cnn_block_depths)}: each must be a multiple of {NORM_GROUPS}, "
                "the groups of its norm, or set post_group_norm=False"
            )
        super().__init__(img_shape, channels_first, activation, cnn_block_depths, 0, post_group_norm)
        self.activation = nn.Identity()  # nothing follows the last stage


@gin.configurable
class IMPALACNN(_ResidualCNN):
    """The deep residual trunk of IMPALA itself (arXiv 1802.01561, fig. 3): pooling with padding, no norms.

    channels: width of each stage.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: Sequence[int] = (16, 32, 32),
    ):
        super().__init__(img_shape, channels_first, activation, channels, pool_padding=1, group_norm=False)


def has_channels_first(shape: Sequence[int]) -> bool:
    """Whether an image's shape reads (C, H, W): the first dimension is smaller than both others. Else (H, W, C)."""
    return shape[0] < min(shape[1:])


def fits_a_trunk(shape: Sequence[int]) -> bool:
    """Whether images of `shape` are large enough for the smallest trunk."""
    height, width = shape[1:] if has_channels_first(shape) else shape[:2]
    return min(height, width) >= min(SMALLEST_IMAGE.values())


def trunk_for(shape: Sequence[int], channels_first: bool) -> type[CNN]:
    """The default trunk for images of `shape`: the first of NatureishCNN, DrQCNN and GridworldCNN that takes them.

    Raises ValueError where none does.
    """
    height, width = shape[1:] if channels_first else shape[:2]
    for trunk, smallest in SMALLEST_IMAGE.items():
        if min(height, width) >= smallest:
            return trunk
    order = "(C, H, W)" if channels_first else "(H, W, C)"
    raise ValueError(f"images of shape {tuple(shape)}, read as {order}, are too small for a CNN: use FFTstepEncoder")


# Fewest pixels on a side that the trunks take as they are by default.
SMALLEST_IMAGE: dict[type[CNN], int] = {NatureishCNN: 36, DrQCNN: 15, GridworldCNN: 4}


@gin.configurable(denylist=["fraction"])
class DrQv2Aug(nn.Module):
    """Shifts images by up to `pad` whole pixels in each direction, repeating the border (DrQ-v2, arXiv 2107.09645).

    (B, L, H, W, C), or (B, L, C, H, W) if `channels_first`, -> the same shape and dtype. Every timestep of a sequence
    moves alike, and each sequence moves with probability `fraction`, whatever its place in a batch (which may be sorted
    by length) and however few a piece of it holds. Does nothing in evaluation mode.
    """

    def __init__(self, pad: int = 4, channels_first: bool = False, fraction: float = 0.75):
        super().__init__()
        if pad < 0:
            raise ValueError(f"DrQv2Aug pad={pad} must not be negative")
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"DrQv2Aug fraction={fraction} must lie in [0, 1]")
        self.pad = pad
        self.channels_first = channels_first
        self.fraction = fraction

    def forward(self, imgs: Tensor, packing: Packing | None = None) -> Tensor:
        """packing: of sequences that lie end to end, (1, R, H, W, C): each of them moves for itself."""
        if not self.training:
            return imgs
        if self.channels_first:
            imgs = imgs.movedim(-3, -1)
        if packing is None:
            imgs = self._shift(imgs, self._draw(imgs.shape[0], imgs.device))
        else:
            shift = self._draw(packing.num, imgs.device)[:, packing.cell_R // packing.longest]
            imgs = self._shift(imgs.transpose(0, 1), shift).transpose(0, 1)
        return imgs.movedim(-1, -3) if self.channels_first else imgs

    def _draw(self, num: int, device: torch.device) -> Tensor:
        """Rows and columns that each of `num` sequences moves by, (2, num)."""
        shift = torch.randint(-self.pad, self.pad + 1, (2, num), device=device)
        return shift * (torch.rand(num, device=device) < self.fraction)

    def _shift(self, imgs_BLHWC: Tensor, shift_2B: Tensor) -> Tensor:
        B, L, H, W, _ = imgs_BLHWC.shape
        device = imgs_BLHWC.device
        shift = shift_2B.unsqueeze(2)
        # clamping the pixel index is replicate padding that allocates nothing
        row_BH = (torch.arange(H, device=device) + shift[0]).clamp(0, H - 1)
        column_BW = (torch.arange(W, device=device) + shift[1]).clamp(0, W - 1)
        sequence = torch.arange(B, device=device).view(B, 1, 1, 1)
        timestep = torch.arange(L, device=device).view(1, L, 1, 1)
        return imgs_BLHWC[sequence, timestep, row_BH.view(B, 1, H, 1), column_BW.view(B, 1, 1, W)]
