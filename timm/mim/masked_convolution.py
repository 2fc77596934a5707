"""Run convolutional models on images that are partly masked.

`masked_images` wraps images and a mask as a `VisibleMap`. A model that gets it in the place of a tensor runs as always,
and computes features of visible cells that do not depend on masked cells: convolutions read 0 at masked cells, pools
skip them, and every statistic over space (batch norm, squeeze-excite, GRN) is a statistic of visible cells.

The model itself stays as it is: no class is replaced and no hook is registered. The mask is stored in the feature maps
alone. PyTorch hands each operation on a map to a rule of `visible_rules` or `visible_statistics`. An operation without
a rule is refused by its name, so a model either runs as described or does not run at all. A run on the meta device
shows which of the two before any training.

The idea is the sparse convolution of `Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling` (https://arxiv.org/abs/2301.03580), which multiplies the output of each convolution by the mask. Here masked
cells may hold any value, and are set to 0 only before an operation that mixes cells. Visible cells get the same
features at a lower cost.
"""
import torch

from . import visible_rules, visible_statistics  # noqa: F401, they register their rules
from .visible_map import VisibleMap, VisibleUnits

__all__ = ['VisibleMap', 'VisibleUnits', 'masked_images']


def masked_images(images: torch.Tensor, mask: torch.Tensor, synchronized: bool = False) -> VisibleMap:
    """Wrap images for a model.

    Args:
        images: Images of shape (B, C, H, W). Masked pixels are not read.
        mask: Masked units of shape (B, h, w) bool, True is masked, h and w divide H and W. Each sample needs a visible
            unit: without one its features have no meaning, and a batch without one has no batch statistics.
        synchronized: Batch norms take their statistics over the visible cells of all processes, as
            `torch.nn.SyncBatchNorm` does.
    """
    units = VisibleUnits(~mask, synchronized)
    return VisibleMap(images, units.cells(*images.shape[-2:]), units)
