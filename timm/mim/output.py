"""Return types of masked image modeling methods."""
from typing import Dict, List, NamedTuple, Optional, Union

import torch

__all__ = ['MIMOutput', 'View']

# Column of methods that predict normalised patches: the picture knows mean and variance of what was masked
WITH_TRUE_STATISTICS = 'visible + prediction (true mean, variance)'


class MIMOutput(NamedTuple):
    """Result of a forward pass for B images of C channels and H x W pixels, with a grid of h x w patches.

    Attributes:
        loss: Scalar, float32.
        prediction: Prediction, float32. SimMIM predicts pixels (B, C, H, W), MAE the masked patches (B, M, D), I-JEPA
            the features of its target blocks (B, blocks, M, D).
        target: Target of the prediction, of the same shape.
        mask: Masked patches (B, h, w) bool, True is masked.
        logs: Further scalars to monitor, by name, on the device.
    """
    loss: torch.Tensor
    prediction: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    logs: Optional[Dict[str, torch.Tensor]] = None


class View(NamedTuple):
    """One column of a picture of inputs and predictions.

    Attributes:
        label: Heading of the column.
        images: Images (B, C, H, W), normalised like the input of the method. A list of B images (C, H, W) if they
            differ in size.
        hole: Pixels (B, 1, H, W) bool to hide, True is hidden; a list for a list of images.
    """
    label: str
    images: Union[torch.Tensor, List[torch.Tensor]]
    hole: Union[None, torch.Tensor, List[torch.Tensor]] = None
