"""Convolutional trunks for image observations, and the random-shift augmentation of DrQ-v2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import gin
import torch
from torch import Tensor, nn

from amago_ray.nets.feedforward import activation as activation_fn


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
        self.activation = activation_fn(activation)
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
            raise ValueError(f"img_shape={self.img_shape} is too small for {type(self).__name__}") from error

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
        if len(channels) != 3:
            raise ValueError(f"{type(self).__name__} channels={list(channels)} must name 3 widths")
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
    """The DQN trunk (Mnih et al., Nature 2015): kernels 8, 4, 3 at strides 4, 2, 1."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: Sequence[int] = (32, 64, 64),
    ):
        super().__init__(img_shape, channels_first, activation, channels, kernels=(8, 4, 3), strides=(4, 2, 1))


@gin.configurable
class GridworldCNN(_ThreeConvCNN):
    """Three 2 x 2 convolutions at stride 1, for small symbolic grids."""

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: Sequence[int] = (16, 32, 48),
    ):
        super().__init__(img_shape, channels_first, activation, channels, kernels=(2, 2, 2), strides=(1, 1, 1))


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
    """x + conv(act(conv(act(x)))), the width and the size unchanged."""

    def __init__(self, channels: int, activation: str):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = activation_fn(activation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.activation(self.conv1(self.activation(x))))


@gin.configurable
class IMPALAishCNN(CNN):
    """The deep residual trunk of IMPALA (arXiv 1802.01561, fig. 3).

    One stage per entry of `channels`: convolution, 3 x 3 max pooling at stride 2, two residual blocks.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        channels_first: bool,
        activation: str = "leaky_relu",
        channels: Sequence[int] = (16, 32, 32),
    ):
        super().__init__(img_shape, channels_first, activation)
        widths = (self.in_channels, *channels)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(d_inp, d_output, 3, padding=1),
                    nn.MaxPool2d(3, stride=2, padding=1),
                    _ResidualBlock(d_output, activation),
                    _ResidualBlock(d_output, activation),
                )
                for d_inp, d_output in pairwise(widths)
            )
        )

    def conv_forward(self, imgs: Tensor) -> Tensor:
        return self.activation(self.stages(imgs))


@gin.configurable
class DrQv2Aug(nn.Module):
    """Shifts images by up to `pad` whole pixels in each direction, repeating the border (DrQ-v2, arXiv 2107.09645).

    (B, L, H, W, C), or (B, L, C, H, W) if `channels_first`, -> the same shape and dtype. Every timestep of a sequence
    moves alike; each sequence moves with probability `fraction`. Does nothing in evaluation mode.
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

    def forward(self, imgs: Tensor) -> Tensor:
        if not self.training:
            return imgs
        if self.channels_first:
            return self._shift(imgs.movedim(-3, -1)).movedim(-1, -3)
        return self._shift(imgs)

    def _shift(self, imgs_BLHWC: Tensor) -> Tensor:
        B, L, H, W, _ = imgs_BLHWC.shape
        device = imgs_BLHWC.device
        shift = torch.randint(-self.pad, self.pad + 1, (2, B, 1), device=device)
        shift = shift * (torch.rand((B, 1), device=device) < self.fraction)
        # clamping the pixel index is replicate padding that allocates nothing
        row_BH = (torch.arange(H, device=device) + shift[0]).clamp(0, H - 1)
        column_BW = (torch.arange(W, device=device) + shift[1]).clamp(0, W - 1)
        sequence = torch.arange(B, device=device).view(B, 1, 1, 1)
        timestep = torch.arange(L, device=device).view(1, L, 1, 1)
        return imgs_BLHWC[sequence, timestep, row_BH.view(B, 1, H, 1), column_BW.view(B, 1, 1, W)]
