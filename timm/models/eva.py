# Overlay: woven into upstream's timm/models/eva.py when the package is built.
# Read the result in build/timm/models/eva.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin, gather_patches


class RopeTokens(NamedTuple):
    """Tokens and the rotary embedding of their patches, None in a model without one.

    The rotary embedding is (N, dim), or (depth, num_heads, N, dim) if each block has its own. Once tokens were dropped
    it differs between samples: (B, 1, K, dim) or (depth, B, num_heads, K, dim).
    """
    tokens: torch.Tensor
    rope: Optional[torch.Tensor]


class Eva(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.norm_pre(x)')
    def embed_positions(self, x: torch.Tensor) -> RopeTokens:
        """Add position embeddings and prefix tokens to patch tokens (B, N, C), or (B, H, W, C) w/ dynamic_img_size."""
        ...
        return RopeTokens(x, rot_pos_embed)

    @moved_from('forward_features', after='x = self.norm_pre(x)')
    def forward_stages(
            self,
            embedded: RopeTokens,
            attn_mask: Optional[torch.Tensor] = None,
            is_causal: bool = False,
    ) -> torch.Tensor:
        """Forward pass through transformer blocks and post-transformer norm, features are (B, P + N, C)."""
        x, rot_pos_embed = embedded
        ...

    @torch.jit.ignore
    def keep_tokens(self, embedded: RopeTokens, keep: torch.Tensor) -> RopeTokens:
        """Keep all prefix tokens and the patch tokens at indices (B, K), with their rotary embedding."""
        x = gather_patches(embedded.tokens, keep, self.num_prefix_tokens)
        rope = embedded.rope
        if rope is None:
            return RopeTokens(x, None)
        if self.rope_mixed:
            # (depth, [B,] num_heads, N, dim), the batch goes first to gather
            batched = rope.ndim == 5
            rope = rope.transpose(0, 1) if batched else rope
            rope = apply_keep_indices_nlc(x, rope, keep, pos_embed_has_batch=batched).transpose(0, 1)
        elif rope.ndim == 2:
            rope = apply_keep_indices_nlc(x, rope, keep).unsqueeze(1)
        else:
            rope = apply_keep_indices_nlc(x, rope, keep, pos_embed_has_batch=True)
        return RopeTokens(x, rope)
