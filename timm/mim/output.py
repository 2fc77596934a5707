"""What a masked image modeling method returns."""
from typing import Dict, NamedTuple, Optional

import torch

__all__ = ['MIMOutput', 'View']


class MIMOutput(NamedTuple):
    """Result of a step, B images of C channels and H x W pixels with a grid of h x w patches.

    Attributes:
        loss: Scalar, float32.
        prediction: What the method predicts, float32. SimMIM pixels (B, C, H, W), MAE the masked patches (B, M, D),
            I-JEPA the features of its target blocks (B, blocks, M, D).
        target: What the prediction is compared with, of the same shape.
        mask: Masked patches (B, h, w) bool, True is masked.
        logs: Scalars on the device that are worth a look besides the loss, by name.
    """
    loss: torch.Tensor
    prediction: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    logs: Optional[Dict[str, torch.Tensor]] = None


class View(NamedTuple):
    """One column of a picture of what a method does.

    Attributes:
        label: What is shown.
        images: Images (B, C, H, W), normalised as the method takes them.
        hole: Pixels (B, 1, H, W) bool that are not shown, True is hidden.
    """
    label: str
    images: torch.Tensor
    hole: Optional[torch.Tensor] = None
