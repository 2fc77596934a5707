""" Multi-Block Masks of the I-JEPA Reference

To the last index those of facebookresearch/ijepa, on the host, sample by sample. The default sampler is `multi_block`.

Shape letters: B batch, H x W the grid of patches.
"""
import math
from typing import List, Optional, Tuple

import torch
import torch.nn as nn

from .multi_block import MultiBlockMasks, Pair, check_ranges

__all__ = ['OfficialMultiBlockSampler', 'official_multi_block_masks']

_NOISE_STEPS = 1 << 24  # values that noise in float32 can have


class OfficialMultiBlockSampler(nn.Module):
    """ Makes the masks of the reference, on the host and seeded by the noise of the first sample.

    Attributes:
        noise_size: Number of values of noise per sample.
    """
    noise_size = 2

    def __init__(
            self,
            grid_size: Tuple[int, int],
            num_targets: int = 4,
            target_scale: Pair = (0.15, 0.2),
            target_aspect: Pair = (0.75, 1.5),
            context_scale: Pair = (0.85, 1.0),
            device=None,
    ) -> None:
        """
        Args:
            grid_size: Grid (H, W) of the patches.
            num_targets: Number of target blocks.
            target_scale: Smallest and largest area of a target block in grids.
            target_aspect: Smallest and largest height of a target block in widths.
            context_scale: Smallest and largest area of the context block in grids.
        """
        super().__init__()
        check_ranges(num_targets, target_scale, target_aspect, context_scale)
        self.grid_size = grid_size
        self.options = dict(
            num_targets=num_targets,
            target_scale=target_scale,
            target_aspect=target_aspect,
            context_scale=context_scale,
        )
        official_multi_block_masks(grid_size, 1, 0, torch.Generator('cpu').manual_seed(0), **self.options)

    @torch.compiler.disable  # lists and a generator; what follows is compiled for each length of masks
    def forward(self, noise: torch.Tensor) -> MultiBlockMasks:
        """ Make masks.

        Args:
            noise: Uniform noise in [0, 1) of shape (B, 2), the first row makes the seeds of all sizes and places.
        """
        step, seed = (int(value * _NOISE_STEPS) for value in noise[0].tolist())
        generator = torch.Generator('cpu').manual_seed(seed)
        masks = official_multi_block_masks(self.grid_size, len(noise), step, generator, **self.options)
        return MultiBlockMasks(*(indices.to(noise.device) for indices in masks))


def official_multi_block_masks(
        grid_size: Tuple[int, int],
        batch_size: int,
        step: int,
        generator: Optional[torch.Generator] = None,
        num_targets: int = 4,
        target_scale: Pair = (0.15, 0.2),
        target_aspect: Pair = (0.75, 1.5),
        context_scale: Pair = (0.85, 1.0),
        min_keep: int = 10,
) -> MultiBlockMasks:
    """ The masks of facebookresearch/ijepa, `src/masks/multiblock.py`, to the last index.

    Args:
        grid_size: Grid (H, W) of the patches.
        batch_size: Number of samples.
        step: Number of the batch, the seed of the sizes of its blocks.
        generator: Generator of the places, on the CPU, the default one if None as in the reference.
        num_targets: Number of target blocks.
        target_scale: Smallest and largest area of a target block in grids.
        target_aspect: Smallest and largest height of a target block in widths.
        context_scale: Smallest and largest area of the context block in grids.
        min_keep: Blocks of so few patches, or fewer, are drawn again.

    Raises:
        ValueError: Blocks so small that the reference would draw them again for ever.
    """
    sizes_generator = torch.Generator('cpu').manual_seed(step)
    target_size = _official_size(grid_size, target_scale, target_aspect, sizes_generator)
    context_size = _official_size(grid_size, context_scale, (1., 1.), sizes_generator)
    for name, size in (('target', target_size), ('context', context_size)):
        if math.prod(size) <= min_keep:
            raise ValueError(
                f'The official sampler wants blocks of more than {min_keep} patches, a {name} block in a grid of '
                f'{grid_size[0]} x {grid_size[1]} has {size[0]} x {size[1]}: take more patches or the default sampler.')

    targets, contexts = [], []
    for _ in range(batch_size):
        blocks = [_official_block(grid_size, target_size, generator) for _ in range(num_targets)]
        targets.append([block.flatten().nonzero().squeeze(1) for block in blocks])
        contexts.append(_official_context(grid_size, context_size, blocks, min_keep, generator))
    length = min(len(context) for context in contexts)
    return MultiBlockMasks(
        torch.stack([context[:length] for context in contexts]),
        torch.stack([torch.stack(sample) for sample in targets]),
    )


def _official_size(
        grid_size: Tuple[int, int],
        scale: Pair,
        aspect: Pair,
        generator: torch.Generator,
) -> Tuple[int, int]:
    """ Size (height, width) of a block, one draw decides on its scale and its aspect.
    """
    draw = torch.rand(1, generator=generator, device='cpu').item()
    area = int(grid_size[0] * grid_size[1] * (scale[0] + draw * (scale[1] - scale[0])))
    ratio = aspect[0] + draw * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, grid_size[0] - 1), min(width, grid_size[1] - 1)


def _official_block(
        grid_size: Tuple[int, int],
        size: Tuple[int, int],
        generator: Optional[torch.Generator],
) -> torch.Tensor:
    """ The patches (H, W) bool of a block at a random place, never one in the last row or column.
    """
    top, left = (
        int(torch.randint(0, cells - extent, (1,), generator=generator, device='cpu'))
        for cells, extent in zip(grid_size, size))
    block = torch.zeros(grid_size, dtype=torch.bool, device='cpu')
    block[top:top + size[0], left:left + size[1]] = True
    return block


def _official_context(
        grid_size: Tuple[int, int],
        size: Tuple[int, int],
        targets: List[torch.Tensor],
        min_keep: int,
        generator: Optional[torch.Generator],
) -> torch.Tensor:
    """ Indices of a block without targets. Every 20 tries one target more, from the last, may lie in it.
    """
    tries = 0
    while True:
        context = _official_block(grid_size, size, generator)
        for target in targets[:max(len(targets) - tries // 20, 0)]:
            context &= ~target
        indices = context.flatten().nonzero().squeeze(1)
        if len(indices) > min_keep:
            return indices
        tries += 1
