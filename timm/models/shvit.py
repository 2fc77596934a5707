# Overlay: woven into upstream's timm/models/shvit.py when the package is built.
# Read the result in build/timm/models/shvit.py.
from ._embed_stages import EmbedStagesMixin


class SHViT(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, for patch tokens (B, C, H, W)."""
        ...
