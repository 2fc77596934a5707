# Overlay: woven into upstream's timm/models/beit.py when the package is built.
# Read the result in build/timm/models/beit.py.
from ._embed_stages import EmbedStagesMixin, gather_patches


class Beit(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.pos_drop(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add the class token and position embeddings, if any, to patch tokens (B, N, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.pos_drop(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through transformer blocks and final norm, for the embedded tokens (B, 1 + N, C)."""
        ...

    @torch.jit.ignore
    def keep_tokens(self, embedded: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Keep the class token and the patch tokens at indices (B, K), in a model without relative position bias."""
        shared_bias = self.rel_pos_bias is not None
        if shared_bias or any(blk.attn.relative_position_bias_table is not None for blk in self.blocks):
            raise NotImplementedError(
                'Beit cannot drop tokens: its relative position bias is that of the whole grid. '
                'Replace them with map_tokens.')
        return gather_patches(embedded, keep, self.num_prefix_tokens)
