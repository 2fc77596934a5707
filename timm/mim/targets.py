""" Targets of Masked Image Modeling, and the Distance to Them
"""
from typing import Tuple

import torch

__all__ = ['masked_l1_loss', 'normalize_patches', 'patch_statistics', 'patchify', 'pixel_target', 'unpatchify']


def pixel_target(images: torch.Tensor) -> torch.Tensor:
    """ The pixels of the normalised images themselves, in float32.
    """
    return images.float()


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


def masked_l1_loss(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """ Mean absolute error over the masked pixels, in float32 whatever the inputs are.

    The mean is over the masked pixels of the batch, as in `SimMIM.forward` of microsoft/SimMIM (models/simmim.py); its
    small constant in the denominator makes the loss of an empty mask zero.

    Args:
        prediction: Prediction of shape (B, C, H, W).
        target: Target of shape (B, C, H, W).
        mask: Masked pixels of shape (B, 1, H, W), True or 1 is masked.

    Returns:
        Scalar loss.
    """
    weight = mask.float()
    error = (target.float() - prediction.float()).abs()  # (B, C, H, W)
    return (error * weight).sum() / (weight.sum() + 1e-5) / target.shape[1]
