""" Targets of Masked Image Modeling, and the Distance to Them

A target is a function of normalised images (B, C, H, W) that gives a map (B, D, h, w) in float32, whose cells of
H / h x W / w pixels tile the image: D = C and cells of one pixel for `pixel_target`, histograms of cells of 8 x 8
pixels for `hog_target`, the features of a model for `TeacherTarget`.
"""
from typing import Callable, Tuple

import torch
import torch.nn.functional as F

__all__ = [
    'masked_l1_loss', 'masked_loss', 'normalize_patches', 'normalized_pixel_target', 'patch_statistics', 'patchify',
    'pixel_target', 'unpatchify',
]


def pixel_target(images: torch.Tensor) -> torch.Tensor:
    """ The pixels of the normalised images themselves, in float32.
    """
    return images.float()


def normalized_pixel_target(images: torch.Tensor, patch_size: Tuple[int, int]) -> torch.Tensor:
    """ The pixels, each patch normalised by its own mean and variance, in float32.

    Args:
        images: Images of shape (B, C, H, W).
        patch_size: Patch (height, width) that divides the image.
    """
    grid_size = images.shape[-2] // patch_size[0], images.shape[-1] // patch_size[1]
    return unpatchify(normalize_patches(patchify(images, patch_size)), patch_size, grid_size)


def patchify(images: torch.Tensor, patch_size: Tuple[int, int]) -> torch.Tensor:
    """ Cut images into patches, row-major, each flattened in the order (row, column, channel).

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
    """ Put patches together to images, the inverse of `patchify`.

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
    """ Normalise every patch by its own mean and unbiased variance, in float32, as MAE's `norm_pix_loss` does.

    Args:
        patches: Patches of shape (B, N, D).
    """
    mean, std = patch_statistics(patches)
    return (patches.float() - mean) / std


def patch_statistics(patches: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """ Mean and standard deviation (B, N, 1) that `normalize_patches` uses.
    """
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def masked_loss(
        prediction: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor,
        distance: Callable[..., torch.Tensor] = F.l1_loss,
) -> torch.Tensor:
    """ Mean distance over what is masked, in float32 whatever the inputs are.

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
    """ Mean absolute error over the masked pixels, see `masked_loss`.
    """
    return masked_loss(prediction, target, mask, F.l1_loss)
