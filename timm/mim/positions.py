""" Fixed Position Embeddings
"""
from typing import Tuple

import torch

__all__ = ['sincos_position_embedding']


def sincos_position_embedding(grid_size: Tuple[int, int], dim: int) -> torch.Tensor:
    """ 2-D sine-cosine position embedding of a grid.

    The first half of the channels holds the column, the second half the row, each as the sines and then the cosines of
    the coordinate at dim / 4 frequencies that fall from 1 towards 1 / 10000, as in `util/pos_embed.py` of
    facebookresearch/mae.

    Args:
        grid_size: Grid (H, W).
        dim: Number of channels, a multiple of 4.

    Returns:
        Embedding of shape (H * W, dim), float32, row-major over the grid.

    Raises:
        ValueError: The number of channels is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f'A sine-cosine position embedding has a multiple of 4 channels, got {dim}.')
    rows, columns = (_encode_coordinates(size, dim // 4) for size in grid_size)  # (H, dim / 2), (W, dim / 2)
    height, width = grid_size
    columns, rows = columns.unsqueeze(0).expand(height, -1, -1), rows.unsqueeze(1).expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()


def _encode_coordinates(size: int, num_frequencies: int) -> torch.Tensor:
    # double precision, as the references, wherever the model is
    exponents = torch.arange(num_frequencies, dtype=torch.float64, device='cpu') / num_frequencies
    coordinates = torch.arange(size, dtype=torch.float64, device='cpu')
    angles = coordinates.unsqueeze(1) * 10000. ** -exponents  # (size, num_frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
