# Overlay: woven into upstream's timm/models/nest.py when the package is built.
# Read the result in build/timm/models/nest.py.
from ._embed_stages import EmbedStagesMixin


class Nest(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the levels, which add positions, and the final norm, for patch tokens (B, C, H, W)."""
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token: the embedding width of the first level."""
        return self.patch_embed.proj.out_channels
