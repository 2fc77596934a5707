# Overlay: woven into upstream's timm/models/vision_transformer_sam.py when the package is built.
# Read the result in build/timm/models/vision_transformer_sam.py.
from ._embed_stages import EmbedStagesMixin


class VisionTransformerSAM(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.norm_pre(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add position embeddings to patch tokens (B, H, W, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.norm_pre(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through transformer blocks and neck, for the embedded tokens (B, H, W, C)."""
        ...

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Return features (B, C, H, W) unchanged."""
        return features
