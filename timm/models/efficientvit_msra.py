# Overlay: woven into upstream's timm/models/efficientvit_msra.py when the package is built.
# Read the result in build/timm/models/efficientvit_msra.py.
from ._embed_stages import EmbedStagesMixin


class EfficientVitMsra(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, for patch tokens (B, C, H, W)."""
        ...
