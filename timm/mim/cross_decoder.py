"""Decoder of CrossMAE: mask tokens attend to the features of visible patches, and not to each other.

Paper: `Rethinking Patch Dependence for Masked Autoencoders`
    - https://arxiv.org/abs/2401.14391

Each mask token is decoded independently of the others, so that the method may predict any part of the masked patches.
The context of each block is its own mixture of the outputs of the encoder's blocks, which the paper calls weighted
feature maps. The predictor of CAPI consists of the same blocks.

Shape letters: B batch, N patches, M queries, S tokens of the context, C width of the decoder, D width of the context,
F feature maps to mix.
"""
from functools import partial
from typing import Callable, Optional, Sequence, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import Mlp, RmsNorm, RotaryEmbeddingDinoV3, apply_rot_embed_cat, trunc_normal_
from timm.models import checkpoint

from .decoder import check_decoder, init_xavier, sincos_position_embedding

__all__ = ['CrossAttention', 'CrossBlock', 'CrossDecoder', 'RotaryCrossDecoder']

_PERIODS = 2 / 7, 2 / 7e-4  # of the rotary embedding, for coordinates from -1 to 1: 7 to 7e-4 cycles per image side


class CrossAttention(nn.Module):
    """Attention of queries to the tokens of a context.

    Args:
        dim: Width of the queries and of the output.
        context_dim: Width of the context.
        num_heads: Number of attention heads.
        bias: Add a bias to queries, keys, values and output.
    """

    def __init__(
            self,
            dim: int,
            context_dim: int,
            num_heads: int,
            bias: bool = True,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=bias, **dd)
        self.kv = nn.Linear(context_dim, 2 * dim, bias=bias, **dd)
        self.proj = nn.Linear(dim, dim, bias=bias, **dd)

    def forward(
            self,
            x: torch.Tensor,
            context: torch.Tensor,
            rope: Optional[Tuple[torch.Tensor, torch.Tensor]] = None,
    ) -> torch.Tensor:
        """Compute the attention of queries (B, M, C) to a context (B, S, D).

        Args:
            x: Queries.
            context: Tokens that supply keys and values.
            rope: Rotary embeddings of the queries (B, M, 2 * width of a head) and of the context (B, S, ...).
        """
        def heads(projected: torch.Tensor) -> torch.Tensor:  # (B, N, C) -> (B, heads, N, C / heads)
            return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query = heads(self.q(x))
        key, value = (heads(part) for part in self.kv(context).chunk(2, dim=-1))
        if rope is not None:
            query, key = (
                apply_rot_embed_cat(tokens, embedding.unsqueeze(1), half=True).type_as(value)
                for tokens, embedding in zip((query, key), rope))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Pre-norm block of cross-attention and MLP, without self-attention.

    Args:
        dim: Width of the queries.
        context_dim: Width of the context.
        num_heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP divided by the width of a query.
        bias: Add a bias to the linear layers.
        norm_layer: Norm of the queries.
    """

    def __init__(
            self,
            dim: int,
            context_dim: int,
            num_heads: int,
            mlp_ratio: float = 4.,
            bias: bool = True,
            norm_layer: Callable[..., nn.Module] = partial(nn.LayerNorm, eps=1e-6),
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.cross_attn = CrossAttention(dim, context_dim, num_heads, bias, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), bias=bias, **dd)

    def forward(
            self,
            x: torch.Tensor,
            context: torch.Tensor,
            rope: Optional[Tuple[torch.Tensor, torch.Tensor]] = None,
    ) -> torch.Tensor:
        """Update queries (B, M, C) with a context (B, S, D), see `CrossAttention`."""
        x = x + self.cross_attn(self.norm1(x), context, rope)
        return x + self.mlp(self.norm2(x))


class CrossDecoder(nn.Module):
    """Decoder of CrossMAE. It takes feature maps of the encoder, and decodes the mask tokens of chosen patches.

    The context of a block is a weighted sum of all feature maps, followed by a norm of its own. The weights are
    learned, and neither positive nor normalised.

    Args:
        grid_size: Grid (H, W) of the patches.
        context_dim: Width of the feature maps.
        num_maps: Number of feature maps.
        embed_dim: Width of the decoder.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        pos_embed: Position embedding, 'sincos' (fixed) or 'learn'.
        norm_layer: Norm of the contexts, of the blocks and of the output.

    Raises:
        ValueError: The depth is not a positive integer, `embed_dim` is not a multiple of `num_heads` (with 'sincos',
            of 4), or `pos_embed` is unknown.
    """

    def __init__(
            self,
            grid_size: Tuple[int, int],
            context_dim: int,
            num_maps: int,
            embed_dim: int = 512,
            depth: int = 8,
            num_heads: int = 16,
            pos_embed: str = 'sincos',
            norm_layer: Callable[..., nn.Module] = partial(nn.LayerNorm, eps=1e-6),
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        check_decoder(embed_dim, depth, num_heads, pos_embed)
        dd = {'device': device, 'dtype': dtype}
        num_patches = grid_size[0] * grid_size[1]
        self.grad_checkpointing = False
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        if pos_embed == 'sincos':
            self.register_buffer('pos_embed', sincos_position_embedding(grid_size, embed_dim).unsqueeze(0).to(**dd))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, num_patches, embed_dim, **dd))
        self.mix = nn.Linear(num_maps, depth, bias=False, **dd)
        self.context_norms = nn.ModuleList(norm_layer(context_dim, **dd) for _ in range(depth))
        self.blocks = nn.ModuleList(
            CrossBlock(embed_dim, context_dim, num_heads, norm_layer=norm_layer, **dd) for _ in range(depth))
        self.norm = norm_layer(embed_dim, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise the weights as CrossMAE does, which is as MAE does; this includes the weights of the mixtures."""
        self.apply(init_xavier)
        nn.init.normal_(self.mask_token, std=.02)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.trunc_normal_(self.pos_embed, std=.02)

    def forward(self, maps: Sequence[torch.Tensor], places: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Decode the mask tokens of patches.

        Args:
            maps: Feature maps of the visible patches, F tensors of shape (B, S, D).
            places: Indices (B, M) of the patches to decode, in the order of the output. All patches if None.

        Returns:
            Tokens of shape (B, M, C).
        """
        unseen = self.mask_token[0] + self.pos_embed[0]  # (N, C)
        x = unseen.expand(len(maps[0]), -1, -1) if places is None else F.embedding(places, unseen)
        contexts = self.mix_maps(maps)
        for block, norm, context in zip(self.blocks, self.context_norms, contexts):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(_run_block, block, norm, x, context)
            else:
                x = _run_block(block, norm, x, context)
        return self.norm(x)

    def mix_maps(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a mixture of feature maps (B, S, D) for each block, of shape (depth, B, S, D)."""
        return torch.tensordot(self.mix.weight, torch.stack(list(maps)), dims=1)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the blocks."""
        self.grad_checkpointing = enable


class RotaryCrossDecoder(nn.Module):
    """Predictor of CAPI: mask tokens attend to the features of visible patches, with rotary positions.

    Prefix tokens are part of the context, and are not rotated.

    Args:
        grid_size: Grid (H, W) of the patches.
        context_dim: Width of the context.
        embed_dim: Width of the predictor.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        num_prefix_tokens: Number of prefix tokens in front of the context.

    Raises:
        ValueError: The depth is not a positive integer, or the width of a head is not a multiple of 4.
    """

    def __init__(
            self,
            grid_size: Tuple[int, int],
            context_dim: int,
            embed_dim: int,
            depth: int,
            num_heads: int,
            num_prefix_tokens: int,
            device=None,
            dtype=None,
    ) -> None:
        super().__init__()
        check_decoder(embed_dim, depth, num_heads, 'sincos')
        head_dim = embed_dim // num_heads
        if head_dim % 4:
            raise ValueError(
                f'The rotary embedding needs heads whose width is a multiple of 4: {num_heads} heads of a predictor of '
                f'width {embed_dim} have {head_dim}.')
        dd = {'device': device, 'dtype': dtype}
        self.grad_checkpointing = False
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.blocks = nn.ModuleList(
            CrossBlock(
                embed_dim, context_dim, num_heads, bias=False, norm_layer=partial(RmsNorm, eps=1e-5), **dd)
            for _ in range(depth))
        rope = RotaryEmbeddingDinoV3(
            head_dim,
            temperature=None,
            min_period=_PERIODS[0],
            max_period=_PERIODS[1],
            feat_shape=list(grid_size),
            **dd,
        )
        rope = rope.get_embed()  # (N, 2 * width of a head): sines, then cosines
        sines, cosines = rope.new_zeros(1, num_prefix_tokens, head_dim), rope.new_ones(1, num_prefix_tokens, head_dim)
        self.register_buffer('rope', rope, persistent=False)
        self.register_buffer('unrotated', torch.cat([sines, cosines], dim=2), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise linear layers and the mask token with a truncated normal distribution."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=.02)
        trunc_normal_(self.mask_token, std=.02)

    def forward(self, context: torch.Tensor, visible: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Predict tokens of masked patches.

        Args:
            context: Prefix tokens and visible patches of shape (B, P + K, D).
            visible: Indices of the visible patches of shape (B, K).
            places: Indices of the patches to predict of shape (B, M).

        Returns:
            Tokens of shape (B, M, embed_dim), normalised by a layer norm without weights.
        """
        of_context = torch.cat([self.unrotated.expand(len(visible), -1, -1), F.embedding(visible, self.rope)], dim=1)
        rope = F.embedding(places, self.rope), of_context
        x = self.mask_token.expand(*places.shape, -1)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, context, rope)
            else:
                x = block(x, context, rope)
        return F.layer_norm(x, x.shape[-1:])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing of the blocks."""
        self.grad_checkpointing = enable


def _run_block(block: CrossBlock, norm: nn.Module, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return block(x, norm(context))
