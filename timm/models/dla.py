# Overlay: woven into upstream's timm/models/dla.py when the package is built.
# Read the result in build/timm/models/dla.py.
from ._embed_stages import EmbedStagesMixin


class DLA(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.level1(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.level1(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through levels 2 to 5, for patch tokens (B, C, H, W)."""
        ...
