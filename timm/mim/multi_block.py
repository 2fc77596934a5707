"""Multi-block masks of I-JEPA: an unbiased sampler, and the sampler of the reference.

Each sample gets a few target blocks and one large context block from which the patches of the targets are removed.
`MultiBlockSampler` makes the masks of a batch at once, on the device of the noise. `OfficialMultiBlockSampler`
reproduces facebookresearch/ijepa to the last index, on the host, sample by sample. They differ as follows:

- A block of the default sampler can lie anywhere. The reference never covers the last row and column.
- The default sampler drops surplus patches of a block at random. The reference cuts all masks of a batch to the
  shortest one in row-major order, which removes context from the bottom of the image.
- The default sampler has one length for targets and one for contexts, both known when it is built. A compiled step
  never recompiles, and no sample depends on the others of its batch. The size of each block is drawn separately; the
  reference draws it once per batch.
- The default sampler takes the sides of a context block as shares of the sides of the grid, which need not be square.

Shape letters: B batch, H x W the grid of patches, N = H * W, T targets, M patches of a target, K of the context.
"""

import math
from typing import List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn

__all__ = [
    'MultiBlockMasks', 'MultiBlockSampler', 'OfficialMultiBlockSampler', 'check_ranges',
    'official_multi_block_masks',
]

_SIMULATED = 4096  # samples to find the length of the context with
_SCALES = 16  # sizes of a context block
Pair = Tuple[float, float]

_NOISE_STEPS = 1 << 24  # values that noise in float32 can have


class MultiBlockMasks(NamedTuple):
    """Patches of a batch by index, int64.

    Attributes:
        context: Patches that are seen, (B, K).
        targets: Patches whose features are predicted, by block, (B, T, M).
    """
    context: torch.Tensor
    targets: torch.Tensor


class MultiBlockSampler(nn.Module):
    """Makes multi-block masks of noise, all of one length. See the head of the module.

    Attributes:
        noise_size: Number of values of noise per sample.
        context_length: Number of context patches.
        target_length: Number of patches of a target block.
    """

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
            num_targets: Number of target blocks T.
            target_scale: Smallest and largest area of a target block in grids.
            target_aspect: Smallest and largest height of a target block in widths.
            context_scale: Smallest and largest area of the context block in grids.

        Raises:
            ValueError: A range that is none, or a grid so small that targets may leave no context.
        """
        super().__init__()
        check_ranges(num_targets, target_scale, target_aspect, context_scale)
        self.grid_size = grid_size
        self.num_targets = num_targets
        target_sizes = _target_sizes(grid_size, target_scale, target_aspect)
        self.target_length = min(height * width for height, width in target_sizes)
        # a table each, of which every size is as likely as the others
        tables = dict(target_sizes=target_sizes, context_sizes=_context_sizes(grid_size, context_scale))
        for name, sizes in tables.items():
            self.register_buffer(name, torch.tensor(sizes, device='cpu'), persistent=False)
        self.noise_size = 3 * (num_targets + 1) + grid_size[0] * grid_size[1]
        self.context_length = self._short_context()
        self.to(device)

    def forward(self, noise: torch.Tensor) -> MultiBlockMasks:
        """Make masks.

        Args:
            noise: Uniform noise in [0, 1) of shape (B, noise_size).

        Returns:
            Masks, indices in row-major order.
        """
        blocks = self._blocks(noise)
        order = noise[:, None, 3 * (self.num_targets + 1):]  # (B, 1, N)
        targets, context = blocks[:, :-1], blocks[:, -1:]
        covered = targets.any(dim=1, keepdim=True)
        targets = _smallest(order + ~targets, self.target_length)
        # The whole numbers are ranks. A patch of the context block comes first. Where the context is too short, in one
        # sample of a hundred, other patches outside of the target blocks follow, then surplus patches of those blocks.
        # Targets come last: `context_length` is so small that none is taken.
        is_target = torch.zeros_like(covered).scatter(2, targets.flatten(1).unsqueeze(1), True)
        context = _smallest(order + ~context + 2 * covered + 2 * is_target, self.context_length)
        return MultiBlockMasks(context.squeeze(1), targets)

    def _blocks(self, noise: torch.Tensor) -> torch.Tensor:
        """The patches (B, T + 1, N) bool of the target blocks and the context block."""
        draws = noise[:, :3 * (self.num_targets + 1)].unflatten(1, (self.num_targets + 1, 3))  # (B, T + 1, 3)
        sizes = torch.cat([
            _draw(draws[:, :-1, 0], self.target_sizes),
            _draw(draws[:, -1:, 0], self.context_sizes),
        ], dim=1)  # (B, T + 1, 2)
        inside = []
        for axis, cells in enumerate(self.grid_size):
            extent = sizes[..., axis]
            places = cells - extent + 1  # the last one included
            first = torch.minimum((draws[..., 1 + axis] * places).long(), places - 1)
            cell = torch.arange(cells, device=noise.device)
            first, extent = first.unsqueeze(-1), extent.unsqueeze(-1)
            inside.append((cell >= first) & (cell < first + extent))  # (B, T + 1, cells)
        rows, columns = inside
        return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).flatten(2)

    def _short_context(self) -> int:
        """Length that 99 of 100 contexts have at least, found on a few thousand.

        It is never more than what disjoint targets leave.
        """
        num_patches = self.grid_size[0] * self.grid_size[1]
        left = num_patches - self.num_targets * self.target_length
        if left < 1:
            num_fitting = (num_patches - 1) // self.target_length
            raise ValueError(
                f'A grid of {self.grid_size[0]} x {self.grid_size[1]} patches is too small for {self.num_targets} '
                f'target blocks of {self.target_length} patches, which may leave no context: '
                f'take at most {num_fitting} (num_targets={num_fitting}), larger images or smaller patches.')
        generator = torch.Generator('cpu').manual_seed(0)
        blocks = self._blocks(torch.rand(_SIMULATED, self.noise_size, generator=generator, device='cpu'))
        lengths = (blocks[:, -1] & ~blocks[:, :-1].any(dim=1)).sum(dim=1)
        return min(max(int(lengths.sort().values[_SIMULATED // 100]), 1), left)


def check_ranges(num_targets: int, target_scale: Pair, target_aspect: Pair, context_scale: Pair) -> None:
    """Check the options of a sampler, see `MultiBlockSampler`.

    Raises:
        ValueError: A range that is none, or no target.
    """
    if not isinstance(num_targets, int) or num_targets < 1:
        raise ValueError(f'num_targets must be a positive number of blocks, got {num_targets!r}.')
    ranges = dict(target_scale=target_scale, target_aspect=target_aspect, context_scale=context_scale)
    for name, bounds in ranges.items():
        largest = math.inf if name == 'target_aspect' else 1.
        valid = isinstance(bounds, (tuple, list)) and len(bounds) == 2
        if not valid or not 0 < bounds[0] <= bounds[1] <= largest:
            raise ValueError(
                f'{name} must be a pair (smallest, largest) of positive numbers'
                f'{"" if math.isinf(largest) else " up to 1"}, got {bounds!r}.')


def _target_sizes(grid_size: Tuple[int, int], scale: Pair, aspect: Pair) -> List[Tuple[int, int]]:
    """All sizes (height, width) of the area and aspect wanted, in a grid too small for any the nearest by area."""
    num_patches = grid_size[0] * grid_size[1]
    sizes = [
        (height, width) for height in range(1, grid_size[0] + 1) for width in range(1, grid_size[1] + 1)
        if aspect[0] <= height / width <= aspect[1]] or [(1, 1)]

    def distance(size: Tuple[int, int]) -> float:
        share = math.prod(size) / num_patches
        return max(scale[0] - share, share - scale[1], 0.)

    nearest = min(distance(size) for size in sizes)
    return [size for size in sizes if distance(size) == nearest]


def _context_sizes(grid_size: Tuple[int, int], scale: Pair) -> List[Tuple[int, int]]:
    """Sizes (height, width) of areas evenly spread over a range, repeated where rounding makes them equal."""
    areas = [scale[0] + (scale[1] - scale[0]) * i / (_SCALES - 1) for i in range(_SCALES)]
    return [tuple(max(round(cells * math.sqrt(area)), 1) for cells in grid_size) for area in areas]


def _draw(noise: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of a table that uniform noise decides on."""
    return table[(noise * len(table)).long().clamp(max=len(table) - 1)]


def _smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the smallest scores along the last axis, in ascending order."""
    # a stable sort makes equal scores the same choice on every device
    return scores.argsort(dim=-1, stable=True)[..., :count].sort(dim=-1).values


class OfficialMultiBlockSampler(nn.Module):
    """Makes the masks of the reference, on the host and seeded by the noise of the first sample.

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
        """Make masks.

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
    """The masks of facebookresearch/ijepa, `src/masks/multiblock.py`, to the last index.

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
    """Size (height, width) of a block, one draw decides on its scale and its aspect."""
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
    """The patches (H, W) bool of a block at a random place, never one in the last row or column."""
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
    """Indices of a block without targets. Every 20 tries one target more, from the last, may lie in it."""
    tries = 0
    while True:
        context = _official_block(grid_size, size, generator)
        for target in targets[:max(len(targets) - tries // 20, 0)]:
            context &= ~target
        indices = context.flatten().nonzero().squeeze(1)
        if len(indices) > min_keep:
            return indices
        tries += 1
