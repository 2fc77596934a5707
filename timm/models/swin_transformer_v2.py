# Overlay: woven into upstream's timm/models/swin_transformer_v2.py when the package is built.
# Read the result in build/timm/models/swin_transformer_v2.py.
from ._embed_stages import EmbedStagesMixin


class SwinTransformerV2(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages and the final norm, for patch tokens (B, H, W, C)."""
        ...
