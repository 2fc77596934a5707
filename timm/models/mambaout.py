# Overlay: woven into upstream's timm/models/mambaout.py when the package is built.
# Read the result in build/timm/models/mambaout.py.
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
