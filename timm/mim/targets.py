"""Targets of masked image modeling, and the loss between prediction and target.

A target is a function of normalised images (B, C, H, W) that returns a map (B, D, h, w) in float32. Each cell of the
map stands for H / h x W / w pixels. `pixel_target` returns the pixels themselves, `hog_target` histograms of cells of
8 x 8 pixels, `TeacherTarget` the features of a model.

`hog_target` computes histograms of oriented gradients as in `Masked Feature Prediction for Self-Supervised Visual
Pre-Training` (MaskFeat, https://arxiv.org/abs/2112.09133), after `Histograms of Oriented Gradients for Human Detection`
(Dalal and Triggs, CVPR 2005).

Shape letters: B batch, C image channels, H x W pixels, h x w cells, D channels of a target, N orientations.
"""

import math
from typing import Callable, Optional, Tuple

import torch
import torch.nn.functional as F

__all__ = [
    'full_precision', 'hog_target', 'masked_l1_loss', 'masked_loss', 'normalize_patches', 'normalized_pixel_target',
    'patch_statistics', 'patchify', 'pixel_target', 'unpatchify',
]


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, in which losses are computed, or in float64 if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixel_target(images: torch.Tensor) -> torch.Tensor:
    """Return the normalised images in float32."""
    return full_precision(images)


def normalized_pixel_target(images: torch.Tensor, patch_size: Tuple[int, int]) -> torch.Tensor:
    """Return images in which each patch is normalised by its own mean and variance, in float32.

    Args:
        images: Images of shape (B, C, H, W).
        patch_size: Patch (height, width) in pixels, which must divide the image size.
    """
    grid_size = images.shape[-2] // patch_size[0], images.shape[-1] // patch_size[1]
    return unpatchify(normalize_patches(patchify(images, patch_size)), patch_size, grid_size)


def patchify(images: torch.Tensor, patch_size: Tuple[int, int]) -> torch.Tensor:
    """Cut images into patches in row-major order, each flattened in the order (row, column, channel).

    Args:
        images: Images of shape (B, C, H, W).
        patch_size: Patch (height, width) in pixels, which must divide the image size.

    Returns:
        Patches of shape (B, N, height * width * C).
    """
    batch_size, channels, height, width = images.shape
    rows, columns = patch_size
    x = images.reshape(batch_size, channels, height // rows, rows, width // columns, columns)
    x = x.permute(0, 2, 4, 3, 5, 1)  # (B, h, w, rows, columns, C)
    return x.reshape(batch_size, -1, rows * columns * channels)


def unpatchify(patches: torch.Tensor, patch_size: Tuple[int, int], grid_size: Tuple[int, int]) -> torch.Tensor:
    """Assemble images from patches, the inverse of `patchify`.

    Args:
        patches: Patches of shape (B, N, height * width * C).
        patch_size: Patch (height, width).
        grid_size: Grid (h, w) of the patches, N = h * w.

    Returns:
        Images of shape (B, C, H, W).
    """
    rows, columns = patch_size
    batch_size, _, width_in = patches.shape
    channels = width_in // (rows * columns)
    x = patches.reshape(batch_size, *grid_size, rows, columns, channels)
    x = x.permute(0, 5, 1, 3, 2, 4)  # (B, C, h, rows, w, columns)
    return x.reshape(batch_size, channels, grid_size[0] * rows, grid_size[1] * columns)


def normalize_patches(patches: torch.Tensor) -> torch.Tensor:
    """Normalise every patch by its own mean and unbiased variance, in float32, as MAE's `norm_pix_loss` does.

    Args:
        patches: Patches of shape (B, N, D).
    """
    mean, std = patch_statistics(patches)
    return (full_precision(patches) - mean) / std


def patch_statistics(patches: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and standard deviation (B, N, 1) that `normalize_patches` uses."""
    variance, mean = torch.var_mean(full_precision(patches), dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def masked_loss(
        prediction: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor,
        distance: Callable[..., torch.Tensor] = F.l1_loss,
) -> torch.Tensor:
    """Compute the mean distance over the masked cells of a batch, in float32 for inputs of any dtype.

    The formula is that of `SimMIM.forward` of microsoft/SimMIM (models/simmim.py), where a cell is a pixel. A small
    constant in the denominator makes the loss of an empty mask 0. The weight of a larger cell is the share of its
    pixels that is masked.

    Args:
        prediction: Prediction of shape (B, D, h, w).
        target: Target of shape (B, D, h, w).
        mask: Masked pixels of shape (B, 1, H, W), True or 1 is masked; H and W are multiples of h and w.
        distance: Loss function with an argument `reduction`, such as `torch.nn.functional.mse_loss`.

    Returns:
        Scalar loss.
    """
    cell = mask.shape[-2] // target.shape[-2], mask.shape[-1] // target.shape[-1]
    weight = F.avg_pool2d(mask.float(), cell)  # (B, 1, h, w)
    error = distance(full_precision(prediction), full_precision(target), reduction='none')  # (B, D, h, w)
    return (error * weight).sum() / (weight.sum() + 1e-5) / target.shape[1]


def masked_l1_loss(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Compute the mean absolute error over the masked pixels, see `masked_loss`."""
    return masked_loss(prediction, target, mask, F.l1_loss)


def hog_target(
        images: torch.Tensor,
        orientations: int = 9,
        cell_size: int = 8,
        gaussian_window: Optional[int] = 16,
) -> torch.Tensor:
    """Compute histograms of oriented gradients (HOG) of images, in float32 and detached from the autograd graph.

    The formulas are those of `HOGLayerC` of facebookresearch/SlowFast (slowfast/models/operators.py). Sobel filters
    with reflection padding give the gradient of each pixel. Each pixel adds its gradient magnitude to one of N equal
    orientation bins, which cover 180 degrees from the vertical. The histogram of each cell and channel is scaled to
    length 1, without normalisation over blocks of cells. The result does not depend on the brightness of an image, the
    contrast of a cell, or a normalisation of the images by a mean and standard deviation per channel.

    Args:
        images: Images of shape (B, C, H, W).
        orientations: Number of orientations N.
        cell_size: Side of a cell in pixels.
        gaussian_window: Side in pixels of the Gaussian windows that tile the image and weight the pixels; their
            standard deviation is half the side. None for equal weights.

    Returns:
        Histograms of shape (B, C * N, h, w), the orientations of the first channel first.

    Raises:
        ValueError: The image size is not a multiple of the cell size.
    """
    batch_size, channels, *img_size = images.shape
    if any(side % cell_size for side in img_size):
        raise ValueError(
            f'HOG needs images whose sides are multiples of {cell_size} pixels, got {img_size[0]} x {img_size[1]}.')
    horizontal, vertical = _sobel(images.detach().float())  # (B, C, H, W)
    # hypot has no half-precision kernel and ignores autocast; both inputs are float32 here
    magnitude = torch.hypot(horizontal, vertical)
    if gaussian_window is not None:
        magnitude = magnitude * _window(gaussian_window, img_size, images.device)
    turns = torch.atan2(horizontal, vertical) / math.pi  # in half turns, since opposite directions share a bin
    orientation = (turns * orientations).floor().long().remainder(orientations)

    votes = magnitude.new_zeros(batch_size, channels, orientations, *img_size)
    votes = votes.scatter(2, orientation.unsqueeze(2), magnitude.unsqueeze(2))
    histograms = F.avg_pool2d(votes.flatten(1, 2), cell_size).unflatten(1, (channels, orientations))
    return F.normalize(histograms, dim=2).flatten(1, 2)


def _sobel(images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return horizontal and vertical gradients, by sums, since autocast would run a convolution in low precision."""
    x = F.pad(images, (1, 1, 1, 1), mode='reflect')
    rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]


def _window(side: int, img_size: Tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return the weights (H, W) of the pixels: Gaussian windows that tile the image."""
    weights = []
    for length in img_size:
        offset = torch.arange(length, device=device).remainder(side) - (side - 1) / 2
        weights.append(torch.exp(-0.5 * (offset / (side // 2)) ** 2))
    return weights[0].unsqueeze(1) * weights[1]
