# Overlay: woven into upstream's timm/models/gcvit.py when the package is built.
# Read the result in build/timm/models/gcvit.py.
from ._embed_stages import EmbedStagesMixin


class GlobalContextVit(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, including the final norm, for patch tokens (B, C, H, W)."""
        ...
