"""Image trunks: sizes, layouts, and the random-shift augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amago_ray.nets.cnn import (
    CNN,
    IMPALACNN,
    SMALLEST_IMAGE,
    DrQCNN,
    DrQv2Aug,
    GridworldCNN,
    IMPALAishCNN,
    NatureishCNN,
    fits_a_trunk,
    has_channels_first,
    trunk_for,
)
from amago_ray.nets.packed_sequences import Packing

GOLDEN = Path(__file__).parents[1] / "golden"
TRUNKS = [NatureishCNN, GridworldCNN, IMPALAishCNN, IMPALACNN, DrQCNN]


def test_gridworld_cnn_equals_the_reference() -> None:
    arrays = np.load(GOLDEN / "agent_discrete_cnn_gru.npz")
    state = {
        k.removeprefix("state/tstep_encoder."): torch.from_numpy(arrays[k]) for k in arrays if k.startswith("state/")
    }
    images = torch.from_numpy(arrays["batch/obs/observation"])
    cnn = GridworldCNN(images.shape[2:], channels_first=False, channels=(4, 4, 4))
    cnn.load_state_dict({k.removeprefix("cnn."): v for k, v in state.items() if k.startswith("cnn.")})
    assert cnn.output_size == 4356

    image = F.linear(cnn(images), state["img_features.weight"], state["img_features.bias"])
    rl2 = torch.from_numpy(arrays["batch/rl2s"])
    rl2 = F.linear(rl2.sign() * rl2.abs().log1p(), state["rl2_features.weight"], state["rl2_features.bias"])
    merged = F.linear(F.leaky_relu(torch.cat((image, rl2), dim=-1)), state["merge.weight"], state["merge.bias"])
    out = F.layer_norm(merged, (10,), state["out_norm.norm.weight"], state["out_norm.norm.bias"])
    torch.testing.assert_close(out, torch.from_numpy(arrays["eval/tstep_emb"]), rtol=1e-4, atol=1e-5)


def naive_stages(cnn: IMPALACNN | IMPALAishCNN, x: Tensor, activation: str, padding: int) -> Tensor:
    act = getattr(F, activation)
    for stage in cnn.blocks:
        x = F.max_pool2d(stage.conv(x), 3, stride=2, padding=padding)
        for block in (stage.residual1, stage.residual2):
            x = block.norm(block.conv2(act(block.conv1(act(x)))) + x)
    return x


@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "elu", "gelu"])
def test_residual_trunks_equal_a_naive_reading(activation: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 20, 20)
    papers = IMPALACNN((20, 20, 3), channels_first=False, activation=activation, channels=(4, 5))
    expected = getattr(F, activation)(naive_stages(papers, images, activation, padding=1))
    torch.testing.assert_close(papers.conv_forward(images), expected)
    amagos = IMPALAishCNN((20, 20, 3), channels_first=False, activation=activation, cnn_block_depths=(4, 8))
    expected = naive_stages(amagos, images, activation, padding=0)
    torch.testing.assert_close(amagos.conv_forward(images), expected)
    assert amagos.output_size == 8 * 4 * 4  # 20 -> 9 -> 4
    assert amagos.blocks[1].residual1.norm.num_groups == 4


def test_three_convolutions_take_kernels_and_strides() -> None:
    cnn = NatureishCNN((20, 20, 3), channels_first=False, channels=(4, 5, 6), kernels=(4, 3, 2), strides=(3, 2, 1))
    layers = [cnn.conv1, cnn.conv2, cnn.conv3]
    assert [(c.out_channels, c.kernel_size, c.stride) for c in layers] == [
        (4, (4, 4), (3, 3)),
        (5, (3, 3), (2, 2)),
        (6, (2, 2), (1, 1)),
    ]
    assert cnn.output_size == 6 * 1 * 1  # 20 -> 6 -> 2 -> 1


@pytest.mark.parametrize("trunk", TRUNKS)
def test_layouts_leading_dimensions_and_dtypes_agree(trunk: type[CNN]) -> None:
    torch.manual_seed(0)
    last = trunk((40, 36, 3), channels_first=False)
    first = trunk((3, 40, 36), channels_first=True)
    first.load_state_dict(last.state_dict())
    assert first.output_size == last.output_size
    images = torch.randint(256, (2, 3, 40, 36, 3), dtype=torch.uint8)
    out = last(images)
    assert out.shape == (2, 3, last.output_size)
    torch.testing.assert_close(first(images.movedim(-1, -3)), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last(images / 128 - 1), out)
    torch.testing.assert_close(last(images[0, 0]), out[0, 0], rtol=1e-4, atol=1e-5)


def test_nature_sizes() -> None:
    cnn = NatureishCNN((84, 84, 4), channels_first=False)
    assert cnn.output_size == 64 * 7 * 7
    assert [cnn.conv1.out_channels, cnn.conv2.out_channels, cnn.conv3.out_channels] == [32, 64, 64]


def test_channel_order_and_trunk_follow_from_the_shape() -> None:
    for shape, first, trunk in (
        ((84, 84, 3), False, NatureishCNN),
        ((4, 84, 84), True, NatureishCNN),
        ((36, 36, 1), False, NatureishCNN),
        ((3, 36, 60), True, NatureishCNN),
        ((35, 90, 3), False, DrQCNN),
        ((15, 15, 15), False, DrQCNN),
        ((14, 14, 3), False, GridworldCNN),
        ((7, 7, 3), False, GridworldCNN),
        ((7, 7, 20), False, GridworldCNN),
        ((3, 7, 7), True, GridworldCNN),
        ((4, 4, 1), False, GridworldCNN),
    ):
        assert fits_a_trunk(shape) and has_channels_first(shape) == first, shape
        assert trunk_for(shape, first) is trunk, shape
        cnn = trunk(shape, first)
        assert cnn.output_size > 0
        assert cnn.in_channels == (shape[0] if first else shape[2])
    assert not fits_a_trunk((3, 3, 3)) and not fits_a_trunk((1, 3, 84))
    with pytest.raises(ValueError, match=r"\(3, 90, 3\), read as \(H, W, C\), are too small for a CNN: use FFTstep"):
        trunk_for((3, 90, 3), False)


@pytest.mark.parametrize("trunk", SMALLEST_IMAGE)
def test_smallest_images_are_what_trunks_take(trunk: type[CNN]) -> None:
    smallest = SMALLEST_IMAGE[trunk]
    assert trunk((smallest, smallest, 3), channels_first=False).output_size > 0
    with pytest.raises(ValueError, match="is too small for"):
        _ = trunk((smallest - 1, 90, 3), channels_first=False).output_size


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"img_shape=\(8, 8, 3\), read as \(H, W, C\), is too small for NatureishCNN"):
        _ = NatureishCNN((8, 8, 3), channels_first=False).output_size
    with pytest.raises(ValueError, match="3 dimensions"):
        NatureishCNN((84, 84), channels_first=False)
    for name in ("channels", "kernels", "strides"):
        with pytest.raises(ValueError, match=rf"GridworldCNN.{name}=\[4, 4\]: it must be 3 numbers"):
            GridworldCNN((8, 8, 3), channels_first=False, **{name: (4, 4)})
    with pytest.raises(ValueError, match=r"cnn_block_depths=\[16, 6\]: each must be a multiple of 4"):
        IMPALAishCNN((20, 20, 3), channels_first=False, cnn_block_depths=(16, 6))
    with pytest.raises(ValueError, match="fraction=75"):
        DrQv2Aug(fraction=75)


def shift_of(before: torch.Tensor, after: torch.Tensor, pad: int) -> tuple[int, int]:
    """The only (rows, columns) that takes one image (H, W, C) to the other, the border repeated."""
    padded = F.pad(before.movedim(-1, 0).float()[None], (pad, pad, pad, pad), mode="replicate")[0].movedim(0, -1)
    height, width = before.shape[:2]
    found = [
        (y - pad, x - pad)
        for y in range(2 * pad + 1)
        for x in range(2 * pad + 1)
        if torch.equal(padded[y : y + height, x : x + width], after.float())
    ]
    assert len(found) == 1
    return found[0]


def test_augmentation_shifts_whole_sequences() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (300, 2, 6, 7, 1), dtype=torch.uint8)
    shifted = DrQv2Aug(pad=2)(images)
    assert shifted.dtype == torch.uint8 and shifted.shape == images.shape
    shifts = [shift_of(images[b, 0], shifted[b, 0], pad=2) for b in range(300)]
    assert shifts == [shift_of(images[b, 1], shifted[b, 1], pad=2) for b in range(300)]
    assert {y for y, _ in shifts} == {x for _, x in shifts} == {-2, -1, 0, 1, 2}
    for half in (shifts[:150], shifts[150:]):  # of a batch that may be sorted
        moved = sum(shift != (0, 0) for shift in half) / 150
        assert moved == pytest.approx(0.75 * 24 / 25, abs=0.12)  # three standard deviations


@pytest.mark.parametrize("size", [1, 2, 5])
def test_fraction_of_sequences_that_move(size: int) -> None:
    """Also of a piece of one."""
    torch.manual_seed(0)
    images = torch.rand(size, 1, 9, 9, 1)
    for fraction in (0.0, 0.1, 0.75, 1.0):
        augmentation = DrQv2Aug(fraction=fraction)
        moved = [(augmentation(images) != images).flatten(1).any(dim=1) for _ in range(400 // size)]
        expected = fraction * 80 / 81  # the rest moves by nothing
        assert torch.cat(moved).double().mean() == pytest.approx(expected, abs=0.07)


def test_augmentation_of_packed_sequences_is_that_of_padded_ones() -> None:
    packing = Packing.of(np.array([3, 1, 5, 2]))
    images = torch.rand(4, 5, 8, 8, 3)
    for first in (False, True):
        padded = images.movedim(-1, -3) if first else images
        torch.manual_seed(1)
        expected = packing.pack(DrQv2Aug(channels_first=first)(padded))
        torch.manual_seed(1)
        assert torch.equal(DrQv2Aug(channels_first=first)(packing.pack(padded), packing), expected)


def test_augmentation_layouts_agree_and_evaluation_is_untouched() -> None:
    images = torch.randn(5, 2, 8, 8, 3)
    torch.manual_seed(1)
    last = DrQv2Aug()(images)
    torch.manual_seed(1)
    first = DrQv2Aug(channels_first=True)(images.movedim(-1, -3))
    assert torch.equal(first.movedim(-3, -1), last)
    assert DrQv2Aug().eval()(images) is images
