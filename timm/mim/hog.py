""" Histograms of Oriented Gradients, a Target

As in `Masked Feature Prediction for Self-Supervised Visual Pre-Training` (MaskFeat)
    - https://arxiv.org/abs/2112.09133

after `Histograms of Oriented Gradients for Human Detection` (Dalal and Triggs, CVPR 2005).

Shape letters: B batch, C image channels, H x W pixels, h x w cells, N orientations.
"""
import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F

__all__ = ['hog_target']


def hog_target(
        images: torch.Tensor,
        orientations: int = 9,
        cell_size: int = 8,
        gaussian_window: Optional[int] = 16,
) -> torch.Tensor:
    """ Histograms of oriented gradients of images, in float32 and without gradient.

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
    """ Horizontal and vertical gradient, by sums: a convolution would run in low precision under autocast.
    """
    x = F.pad(images, (1, 1, 1, 1), mode='reflect')
    rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]


def _window(side: int, img_size: Tuple[int, int], device: torch.device) -> torch.Tensor:
    """ Weights (H, W) of the pixels, Gaussian windows side by side.
    """
    weights = []
    for length in img_size:
        offset = torch.arange(length, device=device).remainder(side) - (side - 1) / 2
        weights.append(torch.exp(-0.5 * (offset / (side // 2)) ** 2))
    return weights[0].unsqueeze(1) * weights[1]
