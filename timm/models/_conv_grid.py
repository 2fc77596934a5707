""" Grid of Convolution Layers

The size of what a stem of convolution or pooling layers makes of an image, without running it.
"""
from typing import Sequence, Tuple

import torch.nn as nn

from timm.layers import to_2tuple

__all__ = ['conv_grid']


def conv_grid(img_size: Sequence[int], *layers: nn.Module) -> Tuple[int, int]:
    """ Grid (H, W) that convolution or pooling layers, one after the other, make of an image.

    Args:
        img_size: Image (height, width) in pixels.
        layers: Modules with `kernel_size`, `stride`, `padding` and maybe `dilation`, as numbers or pairs.
    """
    height, width = img_size
    for layer in layers:
        kernel, stride, padding, dilation = (
            to_2tuple(getattr(layer, name, 1)) for name in ('kernel_size', 'stride', 'padding', 'dilation'))
        height, width = (
            (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, size in enumerate((height, width)))
    return height, width
