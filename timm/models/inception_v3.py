# Overlay: woven into upstream's timm/models/inception_v3.py when the package is built.
# Read the result in build/timm/models/inception_v3.py.
from ._embed_stages import EmbedStagesMixin


class InceptionV3(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_preaux', through='x = self.Conv2d_2b_3x3(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_preaux', after='x = self.Conv2d_2b_3x3(x)')
    def _forward_blocks_preaux(self, x: torch.Tensor) -> torch.Tensor:
        ...

    def forward_preaux(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_blocks_preaux(self.embed_patches(x))

    @moved_from('forward_features', after='x = self.forward_preaux(x)')
    def forward_stages(self, x: torch.Tensor):
        """Forward pass through the blocks, and the auxiliary head if it is used, for patch tokens (B, C, H, W)."""
        x = self._forward_blocks_preaux(x)
        ...
