# Overlay: woven into upstream's timm/models/inception_resnet_v2.py when the package is built.
# Read the result in build/timm/models/inception_resnet_v2.py.
from ._embed_stages import EmbedStagesMixin, refuse_patch_grid


class InceptionResnetV2(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'
    patch_grid = refuse_patch_grid

    @moved_from('forward_features', through='x = self.conv2d_2b(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.conv2d_2b(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through all layers after the third convolution, for patch tokens (B, C, H, W)."""
        ...
