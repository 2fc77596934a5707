# Overlay: woven into upstream's timm/models/mambaout.py when the package is built.
# Read the result in build/timm/models/mambaout.py.
from ._conv_grid import conv_grid
from ._embed_stages import EmbedStagesMixin


class MambaOut(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, H, W, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, for patch tokens (B, H, W, C). The head has the final norm."""
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token."""
        return self.stem.conv2.out_channels

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens of an image."""
        return conv_grid(img_size, self.stem.conv1, self.stem.conv2)
