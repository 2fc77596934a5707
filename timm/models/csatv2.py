# Overlay: woven into upstream's timm/models/csatv2.py when the package is built.
# Read the result in build/timm/models/csatv2.py.
from ._embed_stages import EmbedStagesMixin


class CSATv2(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.stem_dct(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed the frequencies of an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem_dct(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, for patch tokens (B, C, H, W)."""
        ...
