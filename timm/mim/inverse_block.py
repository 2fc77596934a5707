"""Masks of data2vec 2.0, which leave blocks visible instead of masking them.

The formulas are those of facebookresearch/fairseq, `data/data_utils.py`, `compute_block_mask_2d` with `inverse_mask`.
"""
from typing import Tuple

import torch

from .masking import random_mask

__all__ = ['inverse_block_mask', 'inverse_block_noise_size']


def inverse_block_noise_size(grid_size: Tuple[int, int], num_blocks: int) -> int:
    """Return the number of noise values per mask that `inverse_block_mask` needs."""
    return 2 * num_blocks + grid_size[0] * grid_size[1]


def inverse_block_mask(
        noise: torch.Tensor,
        grid_size: Tuple[int, int],
        num_visible: int,
        num_blocks: int,
        mask_length: int,
) -> torch.Tensor:
    """Mask all cells but square blocks at random places, until exactly `num_visible` cells are visible.

    The blocks may overlap, and are cut at the border of the grid. Random cells of the blocks are masked if they are too
    many, and random cells outside are added if they are too few.

    Args:
        noise: Uniform noise in [0, 1) of shape (B, inverse_block_noise_size).
        grid_size: Grid (H, W) of the cells.
        num_visible: Number of visible cells.
        num_blocks: Number of blocks.
        mask_length: Side of a block in cells.

    Returns:
        Mask of shape (B, H * W) bool, True is masked.
    """
    blocks, order = noise[:, :2 * num_blocks].unflatten(1, (2, num_blocks)), noise[:, 2 * num_blocks:]
    inside = []  # per axis, the rows or columns of each block
    for axis, cells in enumerate(grid_size):
        centre = (blocks[:, axis] * cells).floor().clamp(max=cells - 1).unsqueeze(-1)
        offset = torch.arange(cells, device=noise.device) - centre + mask_length // 2  # (B, blocks, cells)
        inside.append((offset >= 0) & (offset < mask_length))
    rows, columns = inside
    covered = (rows.unsqueeze(-1) & columns.unsqueeze(-2)).any(dim=1).flatten(1)  # (B, N)
    return ~random_mask(order + (~covered).to(order.dtype), num_visible)
