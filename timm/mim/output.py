""" What a Masked Image Modeling Method Returns, and Raises
"""
from typing import NamedTuple

import torch

__all__ = ['MIMOutput', 'MIMUnsupportedError']


class MIMOutput(NamedTuple):
    """ Result of a step, B images of C channels and H x W pixels with a grid of h x w patches.

    Attributes:
        loss: Scalar, float32.
        prediction: What the method predicts, for SimMIM pixels (B, C, H, W) float32.
        target: What the prediction is compared with, of the same shape.
        mask: Masked patches (B, h, w) bool, True is masked.
    """
    loss: torch.Tensor
    prediction: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor


class MIMUnsupportedError(ValueError):
    """ The method cannot serve the model. The message is one line that names the reason and what would work.
    """
