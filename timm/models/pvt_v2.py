# Overlay: woven into upstream's timm/models/pvt_v2.py when the package is built.
# Read the result in build/timm/models/pvt_v2.py.
from ._embed_stages import EmbedStagesMixin


class PyramidVisionTransformerV2(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, for patch tokens (B, H, W, C). Returns features (B, C, H', W')."""
        ...

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Return features (B, C, H', W') unchanged."""
        return features
