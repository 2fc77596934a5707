""" Decoders of Masked Image Modeling
"""
from typing import Tuple

import torch
import torch.nn as nn

__all__ = ['PixelDecoder', 'pixel_shuffle']


def pixel_shuffle(x: torch.Tensor, stride: Tuple[int, int]) -> torch.Tensor:
    """ Rearrange channels as pixels, `torch.nn.functional.pixel_shuffle` for a stride that need not be square.

    Args:
        x: Tensor of shape (B, C * stride[0] * stride[1], H, W), the channels in the order (channel, row, column).
        stride: Stride (height, width) to undo.

    Returns:
        Tensor of shape (B, C, H * stride[0], W * stride[1]).
    """
    rows, columns = stride
    batch_size, width_in, height, width = x.shape
    channels = width_in // (rows * columns)
    x = x.reshape(batch_size, channels, rows, columns, height, width)
    x = x.permute(0, 1, 4, 2, 5, 3)  # (B, C, H, rows, W, columns)
    return x.reshape(batch_size, channels, height * rows, width * columns)


class PixelDecoder(nn.Module):
    """ Predicts the pixels under each cell of a feature map with one linear layer.

    The one-layer prediction head of `SimMIM: A Simple Framework for Masked Image Modeling`
        - https://arxiv.org/abs/2111.09886
    """

    def __init__(
            self,
            feature_dim: int,
            stride: Tuple[int, int],
            out_chans: int = 3,
            device=None,
            dtype=None,
    ) -> None:
        """
        Args:
            feature_dim: Width of the feature map.
            stride: Stride (height, width) of the feature map in pixels.
            out_chans: Number of image channels.
        """
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(
            feature_dim, out_chans * stride[0] * stride[1], kernel_size=1, device=device, dtype=dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """ Predict pixels (B, out_chans, H * stride[0], W * stride[1]) from features (B, feature_dim, H, W).
        """
        return pixel_shuffle(self.proj(features), self.stride)
