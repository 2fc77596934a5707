# Overlay: woven into upstream's timm/models/hrnet.py when the package is built.
# Read the result in build/timm/models/hrnet.py.
from ._embed_stages import EmbedStagesMixin


class HighResolutionNet(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from(
        'forward_features', through='x = self.act2(x)',
        without='if isinstance(self.layer1, nn.Identity): return x',
    )
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.act2(x)')
    def forward_stages(self, x: torch.Tensor):
        """Forward pass through the stages and the head's modules, for patch tokens (B, C, H, W).

        Returns:
            Features (B, C, H, W), without the aggregation of the classification head the list of all branches.
        """
        if isinstance(self.layer1, nn.Identity):
            return x  # only the stem remains (prune_intermediate_layers), its second convolution is an identity too
        ...
