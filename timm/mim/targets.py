""" Targets of Masked Image Modeling, and the Distance to Them
"""
import torch

__all__ = ['masked_l1_loss', 'pixel_target']


def pixel_target(images: torch.Tensor) -> torch.Tensor:
    """ The pixels of the normalised images themselves, in float32.
    """
    return images.float()


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
