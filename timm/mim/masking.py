""" Masks for Masked Image Modeling

Masks are made for a batch at once, on the device of the noise that they are made from: nothing is done per sample in
Python and nothing waits for the device. A mask covers a grid of units, one unit is one or more whole patches. Prefix
tokens (class, register, distillation) are no part of the grid.
"""
import math
from fractions import Fraction
from numbers import Real
from typing import List, Tuple

import torch

__all__ = ['masked_count', 'random_mask', 'unit_grid', 'upsample_mask']


def masked_count(num_units: int, ratio: float) -> int:
    """ Number of units to mask, `num_units * ratio` rounded up.

    The ratio counts as the decimal number that it is written as, since 0.55 * 100 as floats is a little above 55.

    Args:
        num_units: Number of units of a sample.
        ratio: Share of units to mask, in (0, 1).

    Raises:
        ValueError: The ratio is not in (0, 1), or masks all units.
    """
    if not isinstance(ratio, Real) or not 0 < ratio < 1:
        raise ValueError(f'mask_ratio must be a number between 0 and 1, both excluded, got {ratio!r}.')
    count = math.ceil(num_units * Fraction(str(ratio)))
    if count == num_units:
        raise ValueError(
            f'mask_ratio {ratio} masks all {num_units} units of the image, take a smaller ratio or smaller units.')
    return count


def random_mask(noise: torch.Tensor, count: int) -> torch.Tensor:
    """ Mask the `count` units of smallest noise in each sample, exactly that many.

    Args:
        noise: Noise of shape (B, N).
        count: Number of units to mask.

    Returns:
        Mask of shape (B, N) bool, True is masked.
    """
    # a stable sort makes equal noise the same choice on every device
    masked = noise.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, masked, True)


def unit_grid(
        img_size: Tuple[int, int],
        mask_unit: Tuple[int, int],
        patch_stride: Tuple[int, int],
) -> Tuple[int, int]:
    """ Grid (H, W) of the mask units of an image.

    Args:
        img_size: Image (height, width) in pixels.
        mask_unit: Mask unit (height, width) in pixels.
        patch_stride: Stride (height, width) of the patch embedding in pixels.

    Raises:
        ValueError: A unit is not made of whole patches, or the image not of whole units.
    """
    for axis, size, unit, stride in zip(('height', 'width'), img_size, mask_unit, patch_stride):
        if unit % stride or size % unit:
            allowed = ', '.join(str(value) for value in _unit_sizes(size, stride))
            raise ValueError(
                f'mask_unit {unit} does not fit image {axis} {size} with patch stride {stride}: it must be a multiple '
                f'of the stride that divides the image, one of {allowed}.')
    return img_size[0] // mask_unit[0], img_size[1] // mask_unit[1]


def _unit_sizes(size: int, stride: int) -> List[int]:
    return [unit for unit in range(stride, size + 1, stride) if size % unit == 0]


def upsample_mask(mask: torch.Tensor, scale: Tuple[int, int]) -> torch.Tensor:
    """ Repeat every cell of a mask, from units to patches or from patches to pixels.

    Args:
        mask: Mask of shape (B, h, w).
        scale: Repeats (height, width) of a cell.

    Returns:
        Mask of shape (B, h * scale[0], w * scale[1]).
    """
    batch_size, height, width = mask.shape
    cells = mask[:, :, None, :, None].expand(-1, -1, scale[0], -1, scale[1])  # (B, h, scale[0], w, scale[1])
    return cells.reshape(batch_size, height * scale[0], width * scale[1])
