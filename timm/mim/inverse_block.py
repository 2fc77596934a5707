"""Masks that leave blocks visible instead of masking them: one rectangle (CAPI), or several squares (data2vec 2.0).

The formulas are those of facebookresearch/capi, `data.py`, and of facebookresearch/fairseq, `data/data_utils.py`,
`compute_block_mask_2d` with `inverse_mask`.
"""
import math
from typing import Tuple

import torch

from .masking import random_mask

__all__ = ['inverse_block_mask', 'inverse_block_noise_size', 'inverse_squares_mask', 'inverse_squares_noise_size']


def inverse_block_noise_size() -> int:
    """Return the number of noise values per sample that `inverse_block_mask` needs."""
    return 5


def inverse_block_mask(
        noise: torch.Tensor,
        grid_size: Tuple[int, int],
        num_visible: int,
        aspect: Tuple[float, float] = (0.5, 2.),
        roll: bool = True,
) -> torch.Tensor:
    """Mask all cells but a rectangular block, as in CAPI.

    The logarithm of the block's aspect ratio (height divided by width) and its position are uniform. Its sides are
    rounded up, and its last cells in row-major order are masked, until the number of visible cells is exact. It is then
    shifted by a random offset, around the border, so that all cells are visible equally often.

    Args:
        noise: Uniform noise in [0, 1) of shape (B, inverse_block_noise_size).
        grid_size: Grid (H, W).
        num_visible: Number of visible cells.
        aspect: Smallest and largest aspect ratio; ratios for which the block would not fit the grid are left out.
        roll: Shift the block.

    Returns:
        Mask of shape (B, H, W) bool, True is masked.
    """
    height, width = grid_size
    fits = math.log(num_visible / width ** 2), math.log(height ** 2 / (num_visible + 1e-5))
    low, high = (min(max(math.log(limit), fits[0]), fits[1]) for limit in aspect)
    ratio = torch.exp(low + (high - low) * noise[:, 0])
    rows = (num_visible * ratio).sqrt().ceil().clamp(max=height)  # (B,)
    columns = (num_visible / ratio).sqrt().ceil().clamp(max=width)
    offsets = []  # of each cell from the first cell of the block, per axis
    for number, (cells, side) in enumerate(((height, rows), (width, columns))):
        first = (noise[:, 1 + number] * (cells - side + 1)).floor()
        shift = (noise[:, 3 + number] * cells).floor() if roll else torch.zeros_like(first)
        cell = torch.arange(cells, device=noise.device)
        offsets.append((cell - shift.unsqueeze(1)) % cells - first.unsqueeze(1))  # (B, cells)
    down, across = offsets[0].unsqueeze(2), offsets[1].unsqueeze(1)
    inside = (down >= 0) & (across >= 0) & (across < columns.view(-1, 1, 1))
    return ~(inside & (down * columns.view(-1, 1, 1) + across < num_visible))


def inverse_squares_noise_size(grid_size: Tuple[int, int], num_squares: int) -> int:
    """Return the number of noise values per mask that `inverse_squares_mask` needs."""
    return 2 * num_squares + grid_size[0] * grid_size[1]


def inverse_squares_mask(
        noise: torch.Tensor,
        grid_size: Tuple[int, int],
        num_visible: int,
        num_squares: int,
        mask_length: int,
) -> torch.Tensor:
    """Mask all cells but squares at random places, as in data2vec 2.0, until exactly `num_visible` cells are visible.

    The squares may overlap, and are cut at the border of the grid. Random cells of the squares are masked if they are
    too many, and random cells outside are added if they are too few.

    Args:
        noise: Uniform noise in [0, 1) of shape (B, inverse_squares_noise_size).
        grid_size: Grid (H, W) of the cells.
        num_visible: Number of visible cells.
        num_squares: Number of squares.
        mask_length: Side of a square in cells.

    Returns:
        Mask of shape (B, H * W) bool, True is masked.
    """
    squares, order = noise[:, :2 * num_squares].unflatten(1, (2, num_squares)), noise[:, 2 * num_squares:]
    inside = []  # per axis, the rows or columns of each square
    for axis, cells in enumerate(grid_size):
        centre = (squares[:, axis] * cells).floor().clamp(max=cells - 1).unsqueeze(-1)
        offset = torch.arange(cells, device=noise.device) - centre + mask_length // 2  # (B, squares, cells)
        inside.append((offset >= 0) & (offset < mask_length))
    rows, columns = inside
    covered = (rows.unsqueeze(-1) & columns.unsqueeze(-2)).any(dim=1).flatten(1)  # (B, N)
    return ~random_mask(order + (~covered).to(order.dtype), num_visible)
