# Overlay: woven into upstream's timm/models/vision_transformer.py when the package is built.
# Read the result in build/timm/models/vision_transformer.py.
from ._embed_stages import EmbedStagesMixin, gather_patches


class VisionTransformer(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.norm_pre(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add position embeddings and prefix tokens to patch tokens (B, N, C), or (B, H, W, C) w/ dynamic_img_size."""
        ...
        return x

    @moved_from('forward_features', after='x = self.norm_pre(x)')
    def forward_stages(
            self,
            x: torch.Tensor,
            attn_mask: Optional[torch.Tensor] = None,
            is_causal: bool = False,
    ) -> torch.Tensor:
        """Forward pass through transformer blocks and post-transformer norm, for the embedded tokens (B, P + N, C)."""
        ...

    @torch.jit.ignore
    def keep_tokens(self, embedded: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Keep all prefix tokens and the patch tokens at indices (B, K) of embedded tokens (B, P + N, C)."""
        return gather_patches(embedded, keep, self.num_prefix_tokens)
