"""Decoders of masked image modeling, and their fixed position embedding.

Shape letters: B batch, H x W the grid of patches, N = H * W, P prefix tokens, K kept patches, C channels.
"""

from functools import lru_cache, partial
from typing import Callable, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint, checkpoint_seq
from timm.models._embed_stages import gather_patches
from timm.models.vision_transformer import Block

__all__ = [
    'MaskedDecoder', 'PixelDecoder', 'check_decoder', 'init_xavier', 'pixel_shuffle', 'sincos_of_coordinates',
    'sincos_position_embedding',
]


def sincos_position_embedding(grid_size: Tuple[int, int], dim: int) -> torch.Tensor:
    """Compute the 2-D sine-cosine position embedding of a grid.

    The first half of the channels encodes the column, the second half the row. Each half holds the sines, then the
    cosines, of the coordinate at dim / 4 frequencies that fall from 1 towards 1 / 10000, as in `util/pos_embed.py` of
    facebookresearch/mae.

    Args:
        grid_size: Grid (H, W).
        dim: Number of channels, a multiple of 4.

    Returns:
        Embedding of shape (H * W, dim), float32, row-major over the grid.

    Raises:
        ValueError: The number of channels is not a multiple of 4.
    """
    coord = torch.cartesian_prod(*(torch.arange(size, device='cpu') for size in grid_size))
    return sincos_of_coordinates(coord, dim, max(grid_size))


def sincos_of_coordinates(coord: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Compute the 2-D sine-cosine position embedding of patches, see `sincos_position_embedding`.

    Args:
        coord: Row and column of each patch of shape (..., 2) int64, from 0.
        dim: Number of channels, a multiple of 4.
        size: Number that all rows and columns are below.

    Returns:
        Embedding of shape (..., dim), float32.

    Raises:
        ValueError: The number of channels is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f'A sine-cosine position embedding needs a multiple of 4 channels, got {dim}.')
    # a power of two, so that batches of many lengths share a few tables
    table = _position_table(1 << (int(size) - 1).bit_length(), dim // 4, coord.device)
    rows, columns = coord.unbind(-1)
    return torch.cat([F.embedding(columns, table), F.embedding(rows, table)], dim=-1)


@torch.compiler.assume_constant_result
def _position_table(size: int, num_frequencies: int, device: torch.device) -> torch.Tensor:
    # the compiler would trace a cached function itself, and compute the table in every step
    return _encode_coordinates(size, num_frequencies, device)


@lru_cache(maxsize=16)
def _encode_coordinates(size: int, num_frequencies: int, device: torch.device) -> torch.Tensor:
    # double precision on the CPU, as in the reference, whatever the device and dtype of the model
    exponents = torch.arange(num_frequencies, dtype=torch.float64, device='cpu') / num_frequencies
    coordinates = torch.arange(size, dtype=torch.float64, device='cpu')
    angles = coordinates.unsqueeze(1) * 10000. ** -exponents  # (size, num_frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float().to(device)


def pixel_shuffle(x: torch.Tensor, stride: Tuple[int, int]) -> torch.Tensor:
    """Rearrange channels into pixels: `torch.nn.functional.pixel_shuffle` for strides that need not be square.

    Args:
        x: Tensor of shape (B, C * stride[0] * stride[1], H, W), the channels in the order (channel, row, column).
        stride: Number of pixels (down, across) that each cell becomes.

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
    """Linear layer that predicts the pixels of each cell of a feature map.

    This is the prediction head of `SimMIM: A Simple Framework for Masked Image Modeling`
        - https://arxiv.org/abs/2111.09886

    Args:
        feature_dim: Number of channels of the feature map.
        stride: Stride (height, width) of the feature map in pixels.
        out_chans: Number of image channels.
    """

    def __init__(
            self,
            feature_dim: int,
            stride: Tuple[int, int],
            out_chans: int = 3,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(
            feature_dim, out_chans * stride[0] * stride[1], kernel_size=1, device=device, dtype=dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Predict pixels (B, out_chans, H * stride[0], W * stride[1]) from features (B, feature_dim, H, W)."""
        return pixel_shuffle(self.proj(features), self.stride)

    def forward_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Predict the pixels of cells (B, N, feature_dim); those of a cell are in the order (row, column, channel)."""
        # the output channels of the layer are in the order (channel, row, column)
        def pixels_first(parameter: torch.Tensor) -> torch.Tensor:
            return parameter.unflatten(0, (-1, *self.stride)).movedim(0, 2).flatten(0, 2)

        return F.linear(features, pixels_first(self.proj.weight.flatten(1)), pixels_first(self.proj.bias))


def init_xavier(module: nn.Module) -> None:
    """Initialise a linear layer as MAE does (uniform Xavier weight, zero bias); leave other modules unchanged."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_decoder(embed_dim: int, depth: int, num_heads: int, pos_embed: str) -> None:
    """Check the options that all transformer decoders have.

    Raises:
        ValueError: The depth is not a positive integer, the heads do not divide the width, or `pos_embed` is unknown.
    """
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f'The depth of the decoder must be a number of blocks, 1 or more, got {depth!r}.')
    if embed_dim % num_heads:
        raise ValueError(f'{num_heads} heads do not divide the width {embed_dim} of the decoder.')
    if pos_embed not in ('sincos', 'learn'):
        raise ValueError(f"pos_embed must be 'sincos' or 'learn', got {pos_embed!r}.")


class MaskedDecoder(nn.Module):
    """Transformer over a grid of patch tokens, some of which it replaces by a mask token.

    It is the decoder of MAE and the predictor of I-JEPA. Each method adds its own projection of the encoder's features
    to the width of the decoder, and its own prediction head.

    The parameter names are those of `MaskedVisionTransformerDecoderTIMM` in lightly 1.6, and the same weights give the
    same output. There are two differences: the grid need not be square, and indices and masks count patches only, so
    that prefix tokens are never masked or dropped.

    Args:
        grid_size: Grid (H, W) of the patches.
        embed_dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        num_prefix_tokens: Number of prefix tokens in front of the patch tokens.
        mlp_ratio: Hidden width of the MLPs divided by the width of a token.
        qkv_bias: Add a bias to queries, keys and values.
        pos_embed: Position embedding, 'sincos' (fixed, zero for prefix tokens) or 'learn'.
        drop_path_rate: Stochastic depth rate of the last block; the rate grows linearly with depth.
        norm_layer: Norm of the blocks and of the output.

    Raises:
        ValueError: The depth is not a positive integer, `embed_dim` is not a multiple of `num_heads` (with 'sincos',
            of 4), or `pos_embed` is unknown.
    """

    def __init__(
            self,
            grid_size: Tuple[int, int],
            embed_dim: int = 512,
            depth: int = 8,
            num_heads: int = 16,
            num_prefix_tokens: int = 0,
            mlp_ratio: float = 4.,
            qkv_bias: bool = True,
            pos_embed: str = 'sincos',
            drop_path_rate: float = 0.,
            norm_layer: Callable[..., nn.Module] = partial(nn.LayerNorm, eps=1e-6),
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        check_decoder(embed_dim, depth, num_heads, pos_embed)
        dd = {'device': device, 'dtype': dtype}
        self.grid_size = grid_size
        self.num_patches = grid_size[0] * grid_size[1]
        self.num_prefix_tokens = num_prefix_tokens
        self.grad_checkpointing = False

        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        if pos_embed == 'sincos':
            positions = F.pad(sincos_position_embedding(grid_size, embed_dim), (0, 0, num_prefix_tokens, 0))
            self.register_buffer('pos_embed', positions.unsqueeze(0).to(**dd))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, num_prefix_tokens + self.num_patches, embed_dim, **dd))
        self.blocks = nn.Sequential(*[
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path,
                norm_layer=norm_layer,
                **dd,
            )
            for drop_path in calculate_drop_path_rates(drop_path_rate, depth)])
        self.norm = norm_layer(embed_dim, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise the weights as MAE does."""
        self.apply(init_xavier)
        nn.init.normal_(self.mask_token, std=.02)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.trunc_normal_(self.pos_embed, std=.02)

    def forward(
            self,
            x: torch.Tensor,
            idx_keep: Optional[torch.Tensor] = None,
            idx_mask: Optional[torch.Tensor] = None,
            mask: Optional[torch.Tensor] = None,
            coord: Optional[torch.Tensor] = None,
            attn_mask: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Replace masked patches by the mask token, add positions, run the blocks and the norm.

        Args:
            x: Tokens of shape (B, P + N, C), the patches in row-major order. Values at masked positions are ignored.
            idx_keep: Indices (B, K) of the patches to decode, masked ones included, in the order of the output. All
                patches if None. Prefix tokens are always decoded.
            idx_mask: Indices (B, M) of the masked patches.
            mask: Masked patches (B, N) bool, an alternative to `idx_mask`.
            coord: Row and column of each patch (B, N, 2) int64, for images with grids of their own. The grid of the
                decoder if None. N is then the number of coordinates.
            attn_mask: Mask (B, 1, 1, P + N) to add to attention scores, which excludes padding. Not with `idx_keep`.

        Returns:
            Tokens of shape (B, P + N, C), or (B, P + K, C) with `idx_keep`.

        Raises:
            ValueError: The tokens have the wrong shape, both `idx_mask` and `mask` are given, or coordinates are given
                and the positions are learned for one grid.
        """
        num_patches = self.num_patches if coord is None else coord.shape[1]
        num_tokens = self.num_prefix_tokens + num_patches
        if x.ndim != 3 or x.shape[1] != num_tokens:
            patches = f'a grid of {self.grid_size[0]} x {self.grid_size[1]}' if coord is None else num_patches
            raise ValueError(
                f'The decoder takes {num_tokens} tokens ({self.num_prefix_tokens} prefix tokens and {patches} '
                f'patches), got a tensor of shape {tuple(x.shape)}.')
        if idx_mask is not None:
            if mask is not None:
                raise ValueError('Give the masked patches as idx_mask or as mask, not both.')
            mask = torch.zeros(x.shape[0], num_patches, dtype=torch.bool, device=x.device)
            mask = mask.scatter(1, idx_mask, True)

        positions = self.pos_embed if coord is None else self.embed_coordinates(coord)
        if idx_keep is not None:
            # select first: dropped patches need no mask token and no position
            x = gather_patches(x, idx_keep, self.num_prefix_tokens)
            positions = gather_patches(positions.expand(len(x), -1, -1), idx_keep, self.num_prefix_tokens)
            mask = None if mask is None else mask.gather(1, idx_keep)
        if mask is not None:
            masked = F.pad(mask, (self.num_prefix_tokens, 0)).unsqueeze(-1)
            x = torch.where(masked, self.mask_token, x)
        x = x + positions

        if attn_mask is not None:
            for block in self.blocks:
                x = checkpoint(block, x, attn_mask) if self.grad_checkpointing else block(x, attn_mask)
        elif self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)

    def embed_coordinates(self, coord: torch.Tensor) -> torch.Tensor:
        """Return the position embedding (B, P + N, C) of patches at coordinates (B, N, 2), zero for prefix tokens.

        The embedding of a patch depends on its row and column, counted in patches from the upper left corner.

        Raises:
            ValueError: The positions are learned for one grid.
        """
        if isinstance(self.pos_embed, nn.Parameter):
            raise ValueError("The decoder learned positions for one grid, pos_embed='learn': use 'sincos'.")
        # an image of N patches has fewer than N rows and columns
        positions = sincos_of_coordinates(coord, self.pos_embed.shape[-1], coord.shape[1])
        return F.pad(positions, (0, 0, self.num_prefix_tokens, 0)).to(self.pos_embed.dtype)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the blocks."""
        self.grad_checkpointing = enable
