# Overlay: woven into upstream's timm/models/swiftformer.py when the package is built.
# Read the result in build/timm/models/swiftformer.py.
from ._embed_stages import EmbedStagesMixin


class SwiftFormer(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages and the final norm, for patch tokens (B, C, H, W)."""
        ...
