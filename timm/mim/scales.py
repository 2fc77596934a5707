"""Feature maps of a model at several scales, for images with masked pixels."""
import math
from typing import List, NamedTuple, Tuple

import torch
import torch.nn as nn

from .backbone import check_divides
from .errors import MIMUnsupportedError, first_line
from .masked_convolution import VisibleMap, VisibleUnits
from .meta_run import run_on_meta

__all__ = ['Scales', 'dry_run_scales', 'masked_scales']


class Scales(NamedTuple):
    """Feature maps of a model, found by `dry_run_scales`.

    Attributes:
        channels: Widths of the feature maps, the deepest first.
        stride: Stride (height, width) of the deepest feature map in pixels.
        unused: Names of the trainable parameters that the feature maps do not depend on.
    """
    channels: List[int]
    stride: Tuple[int, int]
    unused: List[str]


def masked_scales(backbone: nn.Module, images: VisibleMap, num_scales: int) -> List[VisibleMap]:
    """Run a model and return its feature maps, the deepest first, of each size the last one.

    Args:
        backbone: Model.
        images: Images with masked pixels.
        num_scales: Maximum number of feature maps.

    Returns:
        Feature maps of shape (B, C, h * 2^i, w * 2^i), i = 0 is the deepest.
    """
    features, maps = backbone.forward_intermediates(images)
    by_size = {tuple(x.shape[-2:]): x for x in maps}
    last = maps[-1]
    if isinstance(features, VisibleMap) and features.ndim == 4:
        features = features.permute(0, 3, 1, 2) if getattr(backbone, 'grid_format', '') == 'NHWC' else features
        if features.shape[-2:] == last.shape[-2:]:
            last = features  # the model's output, after its last norm or convolution
    height, width = last.shape[-2:]
    scales = [last]
    while len(scales) < num_scales and (height * 2, width * 2) in by_size:
        height, width = height * 2, width * 2
        scales.append(by_size[height, width])
    return scales


def dry_run_scales(backbone: nn.Module, in_chans: int, img_size: Tuple[int, int], num_scales: int) -> Scales:
    """Find the feature maps of a model for masked images of a size with a run on the meta device.

    Args:
        backbone: Model.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        num_scales: Maximum number of feature maps.

    Raises:
        MIMUnsupportedError: The model has an operation that cannot be masked.
        ImageSizeError: The model does not accept images of that size, or its cells do not tile them.
    """
    found = []
    grid = 1, 1

    def run(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
        units = VisibleUnits(torch.ones(len(images), *grid, dtype=torch.bool, device=images.device))
        image_map = VisibleMap(images, units.cells(*img_size), units)
        try:
            found[:] = masked_scales(replica, image_map, num_scales)
        except (AttributeError, IndexError, TypeError) as error:  # an operation that accepts tensors only
            raise MIMUnsupportedError(f'there is no rule for one of its operations ({first_line(error)})') from error
        return sum(x.data.sum() for x in found)

    _, unused = run_on_meta(backbone, in_chans, img_size, run, 'cannot be masked')
    grid = tuple(found[0].shape[-2:])
    stride = tuple(_stride(size, cells) for size, cells in zip(img_size, grid))
    check_divides(backbone, img_size, grid, stride)
    if any(height % grid[0] or width % grid[1] for height, width in found[0].units.sizes):
        # the first run used one unit for the whole image; with units of the grid, `VisibleUnits.cells` raises if needed
        run_on_meta(backbone, in_chans, img_size, run, 'cannot be masked')
    return Scales([x.shape[1] for x in found], stride, unused)


def _stride(size: int, cells: int) -> int:
    return size // cells if size % cells == 0 else 2 ** math.ceil(math.log2(size / cells))
