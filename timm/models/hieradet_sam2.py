# Overlay: woven into upstream's timm/models/hieradet_sam2.py when the package is built.
# Read the result in build/timm/models/hieradet_sam2.py.
from ._embed_stages import EmbedStagesMixin


class HieraDet(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self._pos_embed(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add windowed position embeddings to patch tokens (B, H, W, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self._pos_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the blocks, for embedded tokens (B, H, W, C). The head has the final norm."""
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token."""
        return self.patch_embed.proj.out_channels
