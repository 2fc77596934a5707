# Overlay: woven into upstream's timm/models/mobilenetv3.py when the package is built.
# Read the result in build/timm/models/mobilenetv3.py.
from ._embed_stages import EmbedStagesMixin


class MobileNetV3(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.bn1(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.bn1(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the blocks, for patch tokens (B, C, H, W)."""
        ...
