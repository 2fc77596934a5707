# Overlay: woven into upstream's timm/models/swin_transformer.py when the package is built.
# Read the result in build/timm/models/swin_transformer.py.
from ._embed_stages import EmbedStagesMixin


class SwinTransformer(EmbedStagesMixin, nn.Module):

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token: the embedding width of the first stage."""
        return self.patch_embed.proj.out_channels

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages and the final norm, for patch tokens (B, H, W, C)."""
        ...
