# Overlay: woven into upstream's timm/models/byobnet.py when the package is built.
# Read the result in build/timm/models/byobnet.py.
from ._conv_grid import conv_grid
from ._embed_stages import EmbedStagesMixin


def _stem_layers(stem: nn.Module) -> List[nn.Module]:
    """Get the convolutions and pools of a stem in order, of a block with parallel branches the first."""
    blocks = stem if isinstance(stem, Stem) else [stem]
    layer_types = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    layers = (next((m for m in block.modules() if isinstance(m, layer_types)), None) for block in blocks)
    return [layer for layer in layers if layer is not None]


class ByobNet(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages and the final convolution, for patch tokens (B, C, H, W)."""
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token."""
        return [m for m in _stem_layers(self.stem) if isinstance(m, nn.Conv2d)][-1].out_channels

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens."""
        return conv_grid(img_size, *_stem_layers(self.stem))
