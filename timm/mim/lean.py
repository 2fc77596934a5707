""" Shortcuts with the Same Loss

The methods are written down in the protocol's terms, which every model understands. Where a model is a plain vision
transformer the same loss takes less work:

- Patches are cut once, for the input and for the target, and only those that are seen are embedded: a convolution whose
  kernel is its stride is a linear layer on patches.
- Tokens stay in the order (prefix, visible, masked). Attention over all tokens has no order, positions tell the place.
- Of the last block only the masked tokens are computed, the others serve as keys and values.

Each is tested for equal loss and gradients. Dropout, where a model has any, falls on other elements than in the plain
path. Hooks on modules that are passed by, such as `patch_embed`, are not called: set `lean = False` on the method then.

Shape letters: B batch, C width, D pixels times channels of a patch, N patches of which K are visible and M masked, P
prefix tokens.
"""
from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from timm.layers import Attention, PatchEmbed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block, VisionTransformer

__all__ = [
    'decode_masked', 'embed_patches', 'embed_visible', 'embeds_patches', 'encode_masked', 'position_table',
    'run_blocks', 'select_patches',
]


def embeds_patches(backbone: nn.Module) -> bool:
    """ Whether a model is a plain vision transformer, that embeds every patch by itself and then adds its position.
    """
    return (
        type(backbone) is VisionTransformer
        and type(backbone.patch_embed) is PatchEmbed
        and type(backbone.patch_embed.proj) is nn.Conv2d
        and isinstance(backbone.norm_pre, nn.Identity)
        and backbone.pos_drop.p == 0.
    )


def embed_patches(backbone: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """ Embed patches of pixels.

    Args:
        backbone: Model that `embeds_patches`.
        patches: Patches of shape (B, K, D), each flattened in the order (row, column, channel).

    Returns:
        Tokens of shape (B, K, C), without positions.
    """
    proj = backbone.patch_embed.proj
    return backbone.patch_embed.norm(F.linear(patches, proj.weight.permute(0, 2, 3, 1).flatten(1), proj.bias))


def position_table(backbone: nn.Module, grid_size: Tuple[int, int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """ What a model that `embeds_patches` adds to them: prefix tokens (1, P, C), and positions (N, C) of a grid (h, w).
    """
    shape = (grid_size[0] * grid_size[1],) if backbone.patch_embed.flatten else grid_size
    added = backbone.embed_positions(backbone.patch_embed.proj.weight.new_zeros(1, *shape, backbone.embed_dim))
    return added[:, :backbone.num_prefix_tokens], added[0, backbone.num_prefix_tokens:]


def embed_visible(
        backbone: nn.Module,
        patches: torch.Tensor,
        visible: torch.Tensor,
        grid_size: Tuple[int, int],
) -> torch.Tensor:
    """ The input of `forward_stages` for some patches of images.

    Args:
        backbone: Model that `embeds_patches`.
        patches: All patches of shape (B, N, D), see `embed_patches`.
        visible: Indices of the visible patches of shape (B, K).
        grid_size: Grid (h, w) of the patches.

    Returns:
        Prefix tokens and visible patches of shape (B, P + K, C).
    """
    prefix, positions = position_table(backbone, grid_size)
    tokens = embed_patches(backbone, select_patches(patches, visible)) + F.embedding(visible, positions)
    return torch.cat([prefix.expand(len(tokens), -1, -1), tokens], dim=1)


def encode_masked(
        backbone: nn.Module,
        patches: torch.Tensor,
        mask_token: torch.Tensor,
        visible: torch.Tensor,
        masked: torch.Tensor,
        grid_size: Tuple[int, int],
) -> torch.Tensor:
    """ Features of masked patches, in whose place a model sees a mask token.

    Args:
        backbone: Model that `embeds_patches`.
        patches: All patches of shape (B, N, D), see `embed_patches`.
        mask_token: Token of shape (1, 1, C).
        visible: Indices of the visible patches of shape (B, K).
        masked: Indices of the masked patches of shape (B, M).
        grid_size: Grid (h, w) of the patches.

    Returns:
        Features of shape (B, M, C).
    """
    prefix, positions = position_table(backbone, grid_size)
    tokens = embed_patches(backbone, select_patches(patches, visible))
    x = torch.cat([
        prefix.expand(len(tokens), -1, -1),
        tokens + F.embedding(visible, positions),
        mask_token.to(tokens.dtype) + F.embedding(masked, positions),
    ], dim=1)
    return backbone.norm(run_blocks(backbone.blocks, x, masked.shape[1], backbone.grad_checkpointing))


def decode_masked(
        decoder: nn.Module,
        tokens: torch.Tensor,
        visible: torch.Tensor,
        masked: torch.Tensor,
) -> torch.Tensor:
    """ What a `MaskedDecoder` makes of the masked patches.

    Args:
        decoder: Decoder.
        tokens: Prefix tokens and visible patches of shape (B, P + K, C).
        visible: Indices of the visible patches of shape (B, K).
        masked: Indices of the masked patches of shape (B, M).

    Returns:
        Tokens of the masked patches of shape (B, M, C).
    """
    prefix, positions = decoder.pos_embed[0].tensor_split([decoder.num_prefix_tokens])
    places = F.embedding(visible, positions)
    if decoder.num_prefix_tokens:
        places = torch.cat([prefix.expand(len(places), -1, -1), places], dim=1)
    x = torch.cat([tokens + places, decoder.mask_token + F.embedding(masked, positions)], dim=1)
    return decoder.norm(run_blocks(decoder.blocks, x, masked.shape[1], decoder.grad_checkpointing))


def run_blocks(blocks: nn.Sequential, x: torch.Tensor, count: int, grad_checkpointing: bool = False) -> torch.Tensor:
    """ Run blocks of which the last `count` tokens are wanted.

    Args:
        blocks: Blocks.
        x: Tokens of shape (B, N, C).
        count: Number of tokens at the end that are wanted.
        grad_checkpointing: Compute activations again in the backward pass.

    Returns:
        Tokens of shape (B, count, C).
    """
    if grad_checkpointing:
        return checkpoint_seq(blocks, x)[:, -count:]
    for block in blocks[:-1]:
        x = block(x)
    last = blocks[-1]
    return _run_last(last, x, count) if _is_plain(last) else last(x)[:, -count:]


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    return type(block.attn.qkv) is nn.Linear and block.attn.gate is None and block.attn.fused_attn


def _run_last(block: nn.Module, x: torch.Tensor, count: int) -> torch.Tensor:
    """ A block in which the last `count` tokens alone ask, and all answer.
    """
    normed = block.norm1(x)
    attended = _attend(block.attn, normed[:, -count:], normed)
    x = x[:, -count:] + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _attend(attn: nn.Module, asking: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """ Attention of the tokens (B, M, C) that ask to the tokens (B, N, C), with the weights of self attention.
    """
    def heads(projected: torch.Tensor) -> torch.Tensor:  # (B, N, C) -> (B, heads, N, width of a head)
        return projected.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2)

    sizes = [attn.attn_dim, 2 * attn.attn_dim]
    query_weight, key_value_weight = attn.qkv.weight.split(sizes)
    query_bias, key_value_bias = (None, None) if attn.qkv.bias is None else attn.qkv.bias.split(sizes)
    key, value = F.linear(x, key_value_weight, key_value_bias).chunk(2, dim=-1)
    attended = F.scaled_dot_product_attention(
        attn.q_norm(heads(F.linear(asking, query_weight, query_bias))),
        attn.k_norm(heads(key)),
        heads(value),
        dropout_p=attn.attn_drop.p if attn.training else 0.,
    )
    return attn.proj_drop(attn.proj(attn.norm(attended.transpose(1, 2).flatten(2))))


def select_patches(patches: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """ Patches (B, K, D) at the places (B, K) of patches (B, N, D), as rows of one matrix, which is cheaper to index.
    """
    first = torch.arange(len(patches), device=places.device).unsqueeze(1) * patches.shape[1]
    return patches.flatten(0, 1).index_select(0, (first + places).flatten()).unflatten(0, places.shape)
