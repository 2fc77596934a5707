# Overlay: woven into upstream's timm/models/pnasnet.py when the package is built.
# Read the result in build/timm/models/pnasnet.py.
from ._embed_stages import EmbedStagesMixin, refuse_patch_grid


class PNASNet5Large(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'
    patch_grid = refuse_patch_grid

    @moved_from('forward_features', through='x_conv_0 = self.conv_0(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x_conv_0

    @moved_from('forward_features', after='x_conv_0 = self.conv_0(x)')
    def forward_stages(self, x_conv_0: torch.Tensor) -> torch.Tensor:
        """Forward pass through the cells, for patch tokens (B, C, H, W)."""
        ...
