# Overlay: woven into upstream's timm/models/swin_transformer_v2_cr.py when the package is built.
# Read the result in build/timm/models/swin_transformer_v2_cr.py.
from ._embed_stages import EmbedStagesMixin
from ._meta_copy import map_size


class SwinTransformerV2Cr(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, including the final norm, for patch tokens (B, C, H, W)."""
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token: the embedding width of the first stage."""
        return self.patch_embed.proj.out_channels

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens of an image."""
        return map_size(self.patch_embed.proj, img_size)
