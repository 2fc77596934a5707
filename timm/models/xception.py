# Overlay: woven into upstream's timm/models/xception.py when the package is built.
# Read the result in build/timm/models/xception.py.
from ._embed_stages import EmbedStagesMixin, refuse_patch_grid


class Xception(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'
    patch_grid = refuse_patch_grid

    @moved_from('forward_features', through='x = self.act2(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.act2(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the blocks and the last two convolutions, for patch tokens (B, C, H, W)."""
        ...
