"""Faster computation of the same loss, for plain vision transformers and for the decoder.

The methods use the embed / stages protocol, which works for every model. For a plain vision transformer, and for
`MaskedDecoder`, the functions here compute the same loss with less work:

- Embed visible patches only: a convolution whose kernel size equals its stride is a linear layer on patches.
- Keep tokens in the order (prefix, visible, masked): self-attention does not depend on the order of its tokens.
- In the first block, project each mask token (mask token plus position) once per batch: it is the same for all images.
- In the last block, compute queries for masked tokens only; all tokens supply keys and values.

Tests compare loss and gradients with the plain path. A model with dropout drops other elements than in the plain path.
Forward hooks on modules that are bypassed, such as `patch_embed`, are not called; set `fast_path = False` on the method
if you need them.

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
    """Whether a model is a plain vision transformer, which embeds each patch separately and then adds its position."""
    return (
        type(backbone) is VisionTransformer
        and type(backbone.patch_embed) is PatchEmbed
        and type(backbone.patch_embed.proj) is nn.Conv2d
        and isinstance(backbone.norm_pre, nn.Identity)
        and backbone.pos_drop.p == 0.
    )


def embed_patches(backbone: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Embed patches of pixels.

    Args:
        backbone: Model that `embeds_patches`.
        patches: Patches of shape (B, K, D), each flattened in the order (row, column, channel).

    Returns:
        Tokens of shape (B, K, C), without positions.
    """
    proj = backbone.patch_embed.proj
    return backbone.patch_embed.norm(F.linear(patches, proj.weight.permute(0, 2, 3, 1).flatten(1), proj.bias))


def position_table(backbone: nn.Module, grid_size: Tuple[int, int]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the prefix tokens (1, P, C), and the position embeddings (N, C) of a grid (h, w) of patches.

    Args:
        backbone: Model that `embeds_patches`.
        grid_size: Grid (h, w) of the patches.
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
    """Embed the visible patches of images, as the input of `forward_stages`.

    Args:
        backbone: Model that `embeds_patches`.
        patches: All patches of shape (B, N, D), see `embed_patches`.
        visible: Indices of the visible patches of shape (B, K).
        grid_size: Grid (h, w) of the patches.

    Returns:
        Prefix tokens and visible patches of shape (B, P + K, C).
    """
    return _embed_seen(backbone, patches, visible, *position_table(backbone, grid_size))


def _embed_seen(
        backbone: nn.Module,
        patches: torch.Tensor,
        visible: torch.Tensor,
        prefix: torch.Tensor,
        positions: torch.Tensor,
) -> torch.Tensor:
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
    """Return the features of masked patches, which a mask token replaces in the input of the model.

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
    seen = _embed_seen(backbone, patches, visible, prefix, positions)
    unseen = mask_token[0].to(positions.dtype) + positions
    return backbone.norm(run_blocks(backbone.blocks, seen, unseen, masked, backbone.grad_checkpointing))


def decode_masked(
        decoder: nn.Module,
        tokens: torch.Tensor,
        visible: torch.Tensor,
        masked: torch.Tensor,
) -> torch.Tensor:
    """Return the output of a `MaskedDecoder` for the masked patches.

    Args:
        decoder: Decoder.
        tokens: Prefix tokens and visible patches of shape (B, P + K, C).
        visible: Indices of the visible patches of shape (B, K).
        masked: Indices of the masked patches of shape (B, M), or (B * T, M) for T sets per image, all sets of an image
            together. Each set is decoded separately.

    Returns:
        Tokens of the masked patches of shape (B, M, C) or (B * T, M, C).
    """
    prefix, positions = decoder.pos_embed[0].tensor_split([decoder.num_prefix_tokens])
    places = F.embedding(visible, positions)
    if decoder.num_prefix_tokens:
        places = torch.cat([prefix.expand(len(places), -1, -1), places], dim=1)
    unseen = decoder.mask_token[0] + positions
    return decoder.norm(run_blocks(decoder.blocks, tokens + places, unseen, masked, decoder.grad_checkpointing))


def run_blocks(
        blocks: nn.Sequential,
        seen: torch.Tensor,
        unseen: torch.Tensor,
        masked: torch.Tensor,
        grad_checkpointing: bool = False,
) -> torch.Tensor:
    """Run transformer blocks and return the masked tokens only.

    Args:
        blocks: Blocks.
        seen: Prefix and visible tokens of each image of shape (B, S, C).
        unseen: Mask token plus position embedding of each patch of shape (N, C), the same for all images.
        masked: Indices of the masked patches of shape (B, M), or (B * T, M) for T sets per image, all sets of an image
            together.
        grad_checkpointing: Recompute activations in the backward pass.

    Returns:
        Tokens of the masked patches of shape (B, M, C) or (B * T, M, C).
    """
    count = masked.shape[1]
    x = _join(seen, unseen, masked)
    if grad_checkpointing:
        return checkpoint_seq(blocks, x)[:, -count:]
    if not len(blocks) or not all(_is_plain(block) for block in blocks):
        return blocks(x)[:, -count:]
    if len(blocks) > 1:
        x = _run_first(blocks[0], x, seen, unseen, masked)
    for block in blocks[1:-1]:
        x = block(x)
    return _run_last(blocks[-1], x, count)


def _join(seen: torch.Tensor, unseen: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Concatenate tokens (B, S, C) of each image, repeated T times, with mask tokens to (B * T, S + M, C).

    The mask tokens are the rows `masked` (B * T, M) of `unseen` (N, C).
    """
    times = len(masked) // len(seen)
    if times > 1:
        seen = seen.unsqueeze(1).expand(-1, times, -1, -1).flatten(0, 1)
    return torch.cat([seen, F.embedding(masked, unseen)], dim=1)


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    if 'forward' in vars(block):  # compiled, or its activations are recomputed
        return False
    return type(block.attn.qkv) is nn.Linear and block.attn.gate is None and block.attn.fused_attn


def _run_first(
        block: nn.Module,
        x: torch.Tensor,
        seen: torch.Tensor,
        unseen: torch.Tensor,
        masked: torch.Tensor,
) -> torch.Tensor:
    """Run a block on the joined tokens x, but project tokens that occur several times in x only once."""
    def project(tokens: torch.Tensor) -> torch.Tensor:
        return block.attn.qkv(block.norm1(tokens))

    projected = _join(project(seen), project(unseen), masked)
    return _finish(block, x, _attend(block.attn, *projected.chunk(3, dim=-1)))


def _run_last(block: nn.Module, x: torch.Tensor, count: int) -> torch.Tensor:
    """Run a block for the last `count` tokens only; all tokens supply keys and values."""
    qkv, normed = block.attn.qkv, block.norm1(x)
    sizes = [block.attn.attn_dim, 2 * block.attn.attn_dim]
    query_weight, key_value_weight = qkv.weight.split(sizes)
    query_bias, key_value_bias = (None, None) if qkv.bias is None else qkv.bias.split(sizes)
    query = F.linear(normed[:, -count:], query_weight, query_bias)
    key, value = F.linear(normed, key_value_weight, key_value_bias).chunk(2, dim=-1)
    return _finish(block, x[:, -count:], _attend(block.attn, query, key, value))


def _attend(attn: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute the attention of queries (B, M, width) to keys and values (B, N, width)."""
    def heads(projected: torch.Tensor) -> torch.Tensor:  # (B, N, width) -> (B, heads, N, width of a head)
        return projected.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        attn.q_norm(heads(query)),
        attn.k_norm(heads(key)),
        heads(value),
        dropout_p=attn.attn_drop.p if attn.training else 0.,
    )
    return attn.proj_drop(attn.proj(attn.norm(attended.transpose(1, 2).flatten(2))))


def _finish(block: nn.Module, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Compute the rest of a block for tokens x (B, M, C): add the attention output, then run the MLP."""
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def select_patches(patches: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the patches (B, K, D) at indices `places` (B, K) of patches (B, N, D).

    One `index_select` of the rows of a matrix (B * N, D) is cheaper than `gather`.
    """
    first = torch.arange(len(patches), device=places.device).unsqueeze(1) * patches.shape[1]
    return patches.flatten(0, 1).index_select(0, (first + places).flatten()).unflatten(0, places.shape)
