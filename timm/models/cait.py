# Overlay: woven into upstream's timm/models/cait.py when the package is built.
# Read the result in build/timm/models/cait.py.
from ._embed_stages import EmbedStagesMixin, gather_patches


class Cait(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.pos_drop(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add position embeddings to patch tokens (B, N, C). The stages add the class token."""
        ...
        return x

    @moved_from('forward_features', after='x = self.pos_drop(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through blocks, class attention and final norm, (B, N, C) -> (B, 1 + N, C)."""
        ...

    @torch.jit.ignore
    def keep_tokens(self, embedded: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Keep the patch tokens at indices (B, K) of embedded tokens (B, N, C)."""
        return gather_patches(embedded, keep)
