"""Targets of masked image modeling, and the loss between prediction and target.

A target is a function of normalised images (B, C, H, W) that returns a map (B, D, h, w) in float32, whose cells of
H / h x W / w pixels tile the image. `pixel_target` has D = C and cells of one pixel, `hog_target` has histograms of
cells of 8 x 8 pixels, `TeacherTarget` has the features of a model.

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
    'hog_target', 'masked_l1_loss', 'masked_loss', 'normalize_patches', 'normalized_pixel_target',
    'patch_statistics', 'patchify', 'pixel_target', 'unpatchify',
]


def pixel_target(images: torch.Tensor) -> torch.Tensor:
    """The pixels of the normalised images themselves, in float32."""
    return images.float()


def normalized_pixel_target(images: torch.Tensor, patch_size: Tuple[int, int]) -> torch.Tensor:
    """The pixels, each patch normalised by its own mean and variance, in float32.

    Args:
        images: Images of shape (B, C, H, W).
        patch_size: Patch (height, width) that divides the image.
    """
    grid_size = images.shape[-2] // patch_size[0], images.shape[-1] // patch_size[1]
    return unpatchify(normalize_patches(patchify(images, patch_size)), patch_size, grid_size)


def patchify(images: torch.Tensor, patch_size: Tuple[int, int]) -> torch.Tensor:
    """Cut images into patches, row-major, each flattened in the order (row, column, channel).

    Args:
        images: Images of shape (B, C, H, W).
        patch_size: Patch (height, width) that divides the image.

    Returns:
        Patches of shape (B, N, height * width * C).
    """
    batch_size, channels, height, width = images.shape
    rows, columns = patch_size
    x = images.reshape(batch_size, channels, height // rows, rows, width // columns, columns)
    x = x.permute(0, 2, 4, 3, 5, 1)  # (B, h, w, rows, columns, C)
    return x.reshape(batch_size, -1, rows * columns * channels)


def unpatchify(patches: torch.Tensor, patch_size: Tuple[int, int], grid_size: Tuple[int, int]) -> torch.Tensor:
    """Put patches together to images, the inverse of `patchify`.

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
    return (patches.float() - mean) / std


def patch_statistics(patches: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (B, N, 1) that `normalize_patches` uses."""
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def masked_loss(
        prediction: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor,
        distance: Callable[..., torch.Tensor] = F.l1_loss,
) -> torch.Tensor:
    """Mean distance over what is masked, in float32 whatever the inputs are.

    The mean is over the masked cells of the batch, as in `SimMIM.forward` of microsoft/SimMIM (models/simmim.py), where
    a cell is a pixel; its small constant in the denominator makes the loss of an empty mask zero. A larger cell counts
    by the share of its pixels that is masked.

    Args:
        prediction: Prediction of shape (B, D, h, w).
        target: Target of shape (B, D, h, w).
        mask: Masked pixels of shape (B, 1, H, W), True or 1 is masked, H and W multiples of h and w.
        distance: Loss of two tensors with `reduction`, such as `torch.nn.functional.mse_loss`.

    Returns:
        Scalar loss.
    """
    cell = mask.shape[-2] // target.shape[-2], mask.shape[-1] // target.shape[-1]
    weight = F.avg_pool2d(mask.float(), cell)  # (B, 1, h, w)
    error = distance(prediction.float(), target.float(), reduction='none')  # (B, D, h, w)
    return (error * weight).sum() / (weight.sum() + 1e-5) / target.shape[1]


def masked_l1_loss(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over the masked pixels, see `masked_loss`."""
    return masked_loss(prediction, target, mask, F.l1_loss)


def hog_target(
        images: torch.Tensor,
        orientations: int = 9,
        cell_size: int = 8,
        gaussian_window: Optional[int] = 16,
) -> torch.Tensor:
    """Histograms of oriented gradients of images, in float32 and without gradient.

    The formulas are those of `HOGLayerC` of facebookresearch/SlowFast (slowfast/models/operators.py): Sobel gradients
    over an image continued by reflection; a pixel counts with its magnitude for one of the orientations, which share
    180 degrees and are measured from the vertical; the histogram of each cell and channel has length 1, there are no
    blocks of cells. The brightness of an image and the contrast of a cell make no difference, nor does normalisation of
    the images by a mean and standard deviation per channel.

    Args:
        images: Images of shape (B, C, H, W).
        orientations: Number of orientations N.
        cell_size: Side of a cell in pixels.
        gaussian_window: Side in pixels of the windows, side by side over the image, in which pixels of the middle count
            for more than those at the border, with a standard deviation of half the side. None to count all alike.

    Returns:
        Histograms of shape (B, C * N, h, w), the orientations of the first channel first.

    Raises:
        ValueError: The images are not made of whole cells.
    """
    batch_size, channels, *img_size = images.shape
    if any(side % cell_size for side in img_size):
        raise ValueError(
            f'HOG needs images of whole cells of {cell_size} pixels, got {img_size[0]} x {img_size[1]} pixels.')
    horizontal, vertical = _sobel(images.detach().float())  # (B, C, H, W)
    # hypot has no kernel for lower precision and no autocast, both are float32 here
    magnitude = torch.hypot(horizontal, vertical)
    if gaussian_window is not None:
        magnitude = magnitude * _window(gaussian_window, img_size, images.device)
    turns = torch.atan2(horizontal, vertical) / math.pi  # in half turns, opposite directions are one
    orientation = (turns * orientations).floor().long().remainder(orientations)

    votes = magnitude.new_zeros(batch_size, channels, orientations, *img_size)
    votes = votes.scatter(2, orientation.unsqueeze(2), magnitude.unsqueeze(2))
    histograms = F.avg_pool2d(votes.flatten(1, 2), cell_size).unflatten(1, (channels, orientations))
    return F.normalize(histograms, dim=2).flatten(1, 2)


def _sobel(images: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical gradient, by sums: a convolution would run in low precision under autocast."""
    x = F.pad(images, (1, 1, 1, 1), mode='reflect')
    rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]


def _window(side: int, img_size: Tuple[int, int], device: torch.device) -> torch.Tensor:
    """Weights (H, W) of the pixels, Gaussian windows side by side."""
    weights = []
    for length in img_size:
        offset = torch.arange(length, device=device).remainder(side) - (side - 1) / 2
        weights.append(torch.exp(-0.5 * (offset / (side // 2)) ** 2))
    return weights[0].unsqueeze(1) * weights[1]
