"""Convolutional decoder of data2vec 2.0."""
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from .fast_path import select_patches
from .masking import scatter_patches

__all__ = ['ConvolutionalDecoder', 'check_count']


class ConvolutionalDecoder(nn.Module):
    """Decoder of data2vec 2.0: convolutions over the grid of patches, with noise in the place of masked patches.

    Each layer is a convolution in groups, a layer norm without weights and a GELU, with a residual connection where the
    width stays the same. There are no positions.

    Args:
        grid_size: Grid (h, w) of the patches.
        in_dim: Width of the encoder.
        out_dim: Width of the target.
        embed_dim: Width of the layers.
        depth: Number of layers.
        kernel_size: Kernel size, an odd number.
        num_groups: Number of groups. If None, 16, or the next smaller number that divides both widths.
        mask_noise_std: Standard deviation of the noise in masked cells in training. They are 0 in evaluation.

    Raises:
        ValueError: A number is not positive, the kernel size is even, or the groups do not divide the widths.
    """

    def __init__(
            self,
            grid_size: Tuple[int, int],
            in_dim: int,
            out_dim: int,
            embed_dim: int,
            depth: int = 6,
            kernel_size: int = 3,
            num_groups: Optional[int] = None,
            mask_noise_std: float = 0.01,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        for name, value in (('decoder_dim', embed_dim), ('decoder_layers', depth), ('decoder_kernel', kernel_size)):
            check_count(name, value)
        if kernel_size % 2 == 0:
            raise ValueError(f'decoder_kernel must be odd, got {kernel_size}.')
        if num_groups is None:
            num_groups = next(n for n in range(16, 0, -1) if in_dim % n == 0 and embed_dim % n == 0)
        check_count('decoder_groups', num_groups)
        if in_dim % num_groups or embed_dim % num_groups:
            raise ValueError(
                f'decoder_groups {num_groups} must divide the width {in_dim} of the encoder and the width {embed_dim} '
                'of the decoder.')
        dd = {'device': device, 'dtype': dtype}
        self.grid_size = grid_size
        self.mask_noise_std = mask_noise_std
        self.layers = nn.ModuleList([
            nn.Conv2d(
                embed_dim if number else in_dim, embed_dim, kernel_size, padding=kernel_size // 2, groups=num_groups,
                **dd)
            for number in range(depth)])
        self.proj = nn.Linear(embed_dim, out_dim, **dd)

    def forward(self, tokens: torch.Tensor, visible: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Predict the features of masked patches.

        Args:
            tokens: Visible patches of shape (B, K, C).
            visible: Their indices (B, K).
            masked: Indices (B, T) of the masked patches.

        Returns:
            Features of shape (B, T, D).
        """
        num_patches = self.grid_size[0] * self.grid_size[1]
        x = scatter_patches(tokens, visible, num_patches)  # (B, N, C)
        if self.training and self.mask_noise_std:
            noise = torch.randn(*masked.shape, x.shape[-1], device=x.device, dtype=x.dtype) * self.mask_noise_std
            x = x + scatter_patches(noise, masked, num_patches)
        x = x.transpose(1, 2).unflatten(2, self.grid_size)
        for layer in self.layers:
            y = layer(x)
            y = F.layer_norm(y.movedim(1, -1), y.shape[1:2]).movedim(-1, 1)
            y = F.gelu(y)
            x = x + y if x.shape == y.shape else y
        return self.proj(select_patches(x.flatten(2).transpose(1, 2), masked))


def check_count(name: str, value: int) -> None:
    """Check that an option is a whole number, 1 or more.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a number, 1 or more, got {value!r}.')
