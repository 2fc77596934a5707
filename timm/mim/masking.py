"""Make random masks, and the noise that they are made from.

Masks are made for a whole batch at once, on the device of their noise: there is no Python loop over samples, and the
host never waits for the device. A mask covers a grid of units; a unit is one or more whole patches. Prefix tokens
(class, register, distillation) are not part of the grid.

`keyed_noise` depends only on (seed, step, position of the sample in the global batch). A sample thus gets the same
noise whatever the number of processes, in new and in resumed runs, on CPU and on CUDA. The generator is SplitMix64,
which applies a 64-bit mixing function to a counter (Steele, Lea and Flood, `Fast Splittable Pseudorandom Number
Generators`, OOPSLA 2014), in integer tensor operations. Each sample has its own stream; the seed of that stream is an
output of the stream that seed and step select.
"""

import itertools
import math
from fractions import Fraction
from numbers import Real
from typing import List, Tuple, Union

import torch

__all__ = [
    'block_mask', 'block_noise_size', 'default_mask_unit', 'keyed_noise', 'masked_count', 'random_mask',
    'scatter_patches', 'share_count', 'split_mask', 'unit_grid', 'unit_patches', 'upsample_mask', 'visible_count',
]

_WORD = (1 << 64) - 1  # mask of an unsigned 64 bit word
_INCREMENT = 0x9E3779B97F4A7C15  # 2 ** 64 / golden ratio
_MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_NOISE_BITS = 24  # all values k / 2 ** 24 are exact in float32

_PAPER_UNIT = 32  # side of a mask unit of SimMIM in pixels
_MAX_BLOCKS = 16  # blocks drawn per sample; enough unless nearly all patches are masked
_MIN_BLOCK = 16 / 196  # area of the smallest block divided by that of the grid: 16 of 14 x 14 patches in BEiT
_BLOCK_ASPECT = 0.3  # smallest aspect ratio (height divided by width) of a block; the largest is its inverse


def keyed_noise(seed: int, step: int, positions: torch.Tensor, size: int) -> torch.Tensor:
    """Return uniform noise in [0, 1) that depends only on the arguments.

    Args:
        seed: Seed of the run.
        step: Number of the step within the whole run.
        positions: Positions (B,) int64 of the samples in the global batch of that step, on the device of the noise.
        size: Number of values per sample.

    Returns:
        Noise of shape (B, size), float32, one row per position.

    Raises:
        ValueError: The positions are not a vector of int64.
    """
    if positions.ndim != 1 or positions.dtype != torch.int64:
        raise ValueError(
            f'positions must be a vector of int64, got {tuple(positions.shape)} of {positions.dtype}.')
    key = _stream_value(_stream_value(0, seed), step)
    row_keys = _stream_value(key, positions)  # (B,)
    counters = torch.arange(size, device=positions.device)  # (size,)
    words = _stream_value(row_keys.unsqueeze(1), counters)  # (B, size)
    return _shift_right(words, 64 - _NOISE_BITS).float() * 2. ** -_NOISE_BITS


def _stream_value(
        key: Union[int, torch.Tensor],
        counter: Union[int, torch.Tensor],
) -> Union[int, torch.Tensor]:
    """Return value number `counter` of the SplitMix64 stream with seed `key`."""
    word = _wrap(_wrap(counter + 1) * _signed(_INCREMENT) + key)
    word = _wrap((word ^ _shift_right(word, 30)) * _signed(_MULTIPLIERS[0]))
    word = _wrap((word ^ _shift_right(word, 27)) * _signed(_MULTIPLIERS[1]))
    return word ^ _shift_right(word, 31)


def _shift_right(word: Union[int, torch.Tensor], bits: int) -> Union[int, torch.Tensor]:
    # a right shift of a signed integer repeats the sign bit; mask it, as for an unsigned word
    return (word >> bits) & (_WORD >> bits)


def _wrap(word: Union[int, torch.Tensor]) -> Union[int, torch.Tensor]:
    # int64 tensors overflow silently; Python integers grow and need wrapping
    return _signed(word) if isinstance(word, int) else word


def _signed(word: int) -> int:
    """Return the signed integer with the same 64 bits."""
    return (word + (1 << 63) & _WORD) - (1 << 63)


def masked_count(num_units: int, ratio: float, round_down: bool = False) -> int:
    """Return the number of units to mask: `num_units * ratio`, rounded up.

    The ratio is read as a decimal number, because in floats 0.55 * 100 is slightly more than 55.

    Args:
        num_units: Number of units of a sample.
        ratio: Share of units to mask, in (0, 1).
        round_down: Round down instead.

    Raises:
        ValueError: The ratio is not in (0, 1), or masks all units or none.
    """
    count = _rounded_up(num_units, ratio)
    if round_down and Fraction(str(ratio)) * num_units < count:
        count -= 1
    if count == 0:
        raise ValueError(f'mask_ratio {ratio} masks none of the {num_units} units of the image: use a larger ratio.')
    if count == num_units:
        raise ValueError(
            f'mask_ratio {ratio} masks all {num_units} units of the image: use a smaller ratio or smaller units.')
    return count


def _rounded_up(num_units: int, ratio: float) -> int:
    if not isinstance(ratio, Real) or not 0 < ratio < 1:
        raise ValueError(f'mask_ratio must be a number between 0 and 1, both excluded, got {ratio!r}.')
    share = Fraction(str(ratio))
    return -(-num_units * share.numerator // share.denominator)  # integer arithmetic: num_units may be symbolic


def visible_count(num_patches: int, mask_ratio: float, reference_count: bool = False) -> int:
    """Return the number of visible patches: `num_patches * (1 - mask_ratio)`, rounded down.

    Args:
        num_patches: Number of patches of a sample.
        mask_ratio: Share of patches to mask, in (0, 1), read as a decimal number.
        reference_count: Compute in floats as facebookresearch/mae does. The result may be one patch fewer: 9 of 100
            for a ratio of 0.9.

    Raises:
        ValueError: The ratio is not in (0, 1), or masks all patches.
    """
    count = num_patches - masked_count(num_patches, mask_ratio)
    if reference_count:
        count = int(num_patches * (1 - mask_ratio))
        if count == 0:
            raise ValueError(f'mask_ratio {mask_ratio} masks all {num_patches} patches with reference_count.')
    return count


def share_count(total: int, share: float, name: str) -> int:
    """Return a share of a number of patches, to the nearest whole number and at least 1.

    Args:
        total: Number of patches.
        share: Share, in (0, 1], read as a decimal number.
        name: Name of the option, for the error message.

    Raises:
        ValueError: The share is not in (0, 1].
    """
    if not isinstance(share, Real) or not 0 < share <= 1:
        raise ValueError(f'{name} must be a number above 0 and up to 1, got {share!r}.')
    share = Fraction(str(share))
    return max(1, (2 * total * share.numerator + share.denominator) // (2 * share.denominator))


def split_mask(mask: torch.Tensor, num_visible: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the visible and of the masked patches, each in row-major order.

    Args:
        mask: Mask of shape (B, N) bool, True is masked, with the same number of visible patches in each sample.
        num_visible: Number of visible patches K. It is an argument so that the host need not wait for the device.

    Returns:
        Indices of shapes (B, K) and (B, N - K).
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :num_visible], order[:, num_visible:]


def scatter_patches(
        tokens: torch.Tensor,
        places: torch.Tensor,
        num_patches: int,
        num_prefix_tokens: int = 0,
) -> torch.Tensor:
    """Scatter patch tokens to their positions in the full grid, with zeros elsewhere; prefix tokens stay in front.

    Args:
        tokens: Tokens of shape (B, P + K, C).
        places: Patch indices of shape (B, K) int64, without duplicates in a sample.
        num_patches: Number of patches N.
        num_prefix_tokens: Number of prefix tokens P.

    Returns:
        Tokens of shape (B, P + N, C).
    """
    prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    batch_size, _, channels = patches.shape
    grid = patches.new_zeros(batch_size, num_patches, channels)
    grid = grid.scatter(1, places.unsqueeze(-1).expand(-1, -1, channels), patches)
    return torch.cat([prefix, grid], dim=1) if num_prefix_tokens else grid


def random_mask(noise: torch.Tensor, count: int) -> torch.Tensor:
    """Mask exactly `count` units in each sample, those with the smallest noise.

    Args:
        noise: Noise of shape (B, N).
        count: Number of units to mask.

    Returns:
        Mask of shape (B, N) bool, True is masked.
    """
    # a stable sort resolves ties in the same way on every device
    masked = noise.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(1, masked, True)


def block_noise_size(grid_size: Tuple[int, int]) -> int:
    """Return the number of noise values per sample that `block_mask` needs."""
    return 4 * _MAX_BLOCKS + grid_size[0] * grid_size[1]


def block_mask(noise: torch.Tensor, grid_size: Tuple[int, int], count: int) -> torch.Tensor:
    """Mask rectangular blocks one after the other until exactly `count` units are masked.

    The blocks are those of `BEiT: BERT Pre-Training of Image Transformers` (https://arxiv.org/abs/2106.08254): at least
    16 of 14 x 14 patches, an aspect ratio (height divided by width) of 0.3 to 3.3, uniform in area, logarithm of the
    aspect ratio, and position. The block that would exceed the count shrinks towards its centre.

    Args:
        noise: Uniform noise in [0, 1) of shape (B, block_noise_size).
        grid_size: Grid (H, W) of the units.
        count: Number of units to mask.

    Returns:
        Mask of shape (B, H * W) bool, True is masked.
    """
    num_units = grid_size[0] * grid_size[1]
    draws = noise[:, :4 * _MAX_BLOCKS].unflatten(1, (_MAX_BLOCKS, 4))  # (B, blocks, 4)
    smallest = min(num_units * _MIN_BLOCK, count)
    area = smallest + draws[..., 0] * (count - smallest)
    aspect = torch.exp((2 * draws[..., 1] - 1) * -math.log(_BLOCK_ASPECT))
    # distance of a unit from the centre of a block, 1 at its edge; first per axis, then per unit
    distances = []
    for axis, side in enumerate((torch.sqrt(area * aspect), torch.sqrt(area / aspect))):
        cells = grid_size[axis]
        side = side.round().clamp(1, cells)
        first = torch.minimum((draws[..., 2 + axis] * (cells - side + 1)).floor(), cells - side)
        cell = torch.arange(cells, device=noise.device)
        offset = (cell - (first + (side - 1) / 2).unsqueeze(-1)).abs()
        distances.append(2 * offset / side.unsqueeze(-1))  # (B, blocks, cells)
    rows, columns = distances
    distance = torch.maximum(rows.unsqueeze(-1), columns.unsqueeze(-2)).flatten(2)  # (B, blocks, N)
    # order of the units: by the first block that covers them, from its centre outwards; uncovered units come last
    number = torch.arange(_MAX_BLOCKS, device=noise.device).view(1, -1, 1)
    covered = torch.where(distance < 1, number + distance, float(_MAX_BLOCKS)).amin(dim=1)
    return random_mask(covered + 1e-3 * noise[:, 4 * _MAX_BLOCKS:], count)


def unit_grid(
        img_size: Tuple[int, int],
        mask_unit: Tuple[int, int],
        patch_stride: Tuple[int, int],
) -> Tuple[int, int]:
    """Return the grid (H, W) of the mask units of an image.

    Args:
        img_size: Image (height, width) in pixels.
        mask_unit: Mask unit (height, width) in pixels.
        patch_stride: Stride (height, width) of the patch embedding in pixels.

    Raises:
        ValueError: The unit is not a multiple of the patch stride, or does not divide the image size.
    """
    for axis, size, unit, stride in zip(('height', 'width'), img_size, mask_unit, patch_stride):
        if unit % stride or size % unit:
            allowed = ', '.join(str(value) for value in _unit_sizes(size, stride))
            raise ValueError(
                f'mask_unit {unit} does not fit image {axis} {size} with patch stride {stride}: it must be a multiple '
                f'of the stride that divides the image, one of {allowed}.')
    return img_size[0] // mask_unit[0], img_size[1] // mask_unit[1]


def default_mask_unit(
        img_size: Tuple[int, int],
        patch_stride: Tuple[int, int],
        cell: Tuple[int, int],
        mask_ratio: float,
) -> Tuple[int, int]:
    """Find the mask unit that fits an image size and is nearest to the 32 x 32 pixels of SimMIM.

    A unit fits if it consists of whole patches, divides the image size, and is so small that `mask_ratio` leaves at
    least one unit visible. Units that consist of whole cells of the feature map are preferred, since a smaller unit can
    leave a part of a cell visible.

    Args:
        img_size: Image (height, width) in pixels.
        patch_stride: Stride (height, width) of the patch embedding in pixels; it must divide the image size.
        cell: Stride (height, width) of the feature map in pixels.
        mask_ratio: Share of units to mask, in (0, 1).

    Returns:
        Mask unit (height, width) in pixels.

    Raises:
        ValueError: The ratio is not in (0, 1), or masks all patches of the image.
    """
    def badness(unit: Tuple[int, int]) -> Tuple[bool, int]:
        splits_cells = any(side % cell_side for side, cell_side in zip(unit, cell))
        return splits_cells, sum(abs(side - _PAPER_UNIT) for side in unit)

    sides = (_unit_sizes(size, stride) for size, stride in zip(img_size, patch_stride))
    for unit in sorted(itertools.product(*sides), key=badness):
        num_units = math.prod(unit_grid(img_size, unit, patch_stride))
        if num_units > 1 and _rounded_up(num_units, mask_ratio) < num_units:
            return unit
    masked_count(math.prod(unit_grid(img_size, patch_stride, patch_stride)), mask_ratio)  # raises the exact reason
    raise ValueError(f'mask_ratio {mask_ratio} fits no mask unit in an image of {img_size[0]} x {img_size[1]} pixels.')


def _unit_sizes(size: int, stride: int) -> List[int]:
    return [unit for unit in range(stride, size + 1, stride) if size % unit == 0]


def upsample_mask(mask: torch.Tensor, scale: Tuple[int, int]) -> torch.Tensor:
    """Enlarge a mask by repeating each cell: from units to patches, or from patches to pixels.

    Args:
        mask: Mask of shape (B, h, w).
        scale: Number of repeats (down, across) of each cell.

    Returns:
        Mask of shape (B, h * scale[0], w * scale[1]).
    """
    batch_size, height, width = mask.shape
    cells = mask[:, :, None, :, None].expand(-1, -1, scale[0], -1, scale[1])  # (B, h, scale[0], w, scale[1])
    return cells.reshape(batch_size, height * scale[0], width * scale[1])


def unit_patches(units: torch.Tensor, unit_grid: Tuple[int, int], grid_size: Tuple[int, int]) -> torch.Tensor:
    """Return the indices of the patches of mask units, in row-major order.

    Args:
        units: Indices of units of shape (..., U).
        unit_grid: Grid (H, W) of the units.
        grid_size: Grid (h, w) of the patches, a multiple of the grid of the units.

    Returns:
        Indices of shape (..., U * patches of a unit).
    """
    rows, columns = grid_size[0] // unit_grid[0], grid_size[1] // unit_grid[1]
    first = units // unit_grid[1] * (rows * grid_size[1]) + units % unit_grid[1] * columns  # (..., U)
    offsets = torch.arange(rows, device=units.device).unsqueeze(1) * grid_size[1]
    offsets = (offsets + torch.arange(columns, device=units.device)).flatten()  # (rows * columns,)
    return (first.unsqueeze(-1) + offsets).flatten(-2).sort(dim=-1).values
