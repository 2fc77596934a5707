# Overlay: woven into upstream's timm/models/xcit.py when the package is built.
# Read the result in build/timm/models/xcit.py.
from typing import NamedTuple, Tuple

from ._embed_stages import EmbedStagesMixin
from ._meta_copy import map_size


class GridTokens(NamedTuple):
    """Tokens (B, N, C) and their grid (H, W), N = H * W."""
    tokens: torch.Tensor
    grid_size: Tuple[int, int]


class Xcit(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='B = x.shape[0]', through='x, (Hp, Wp) = self.patch_embed(x)')
    def embed_patches(self, x: torch.Tensor) -> GridTokens:
        """Embed an image of shape (B, C, H, W) as patch tokens and their grid."""
        ...
        return GridTokens(x, (Hp, Wp))

    @moved_from('forward_features', after='x, (Hp, Wp) = self.patch_embed(x)', through='x = self.pos_drop(x)')
    def embed_positions(self, patches: GridTokens) -> GridTokens:
        """Add position encodings to patch tokens. The class token joins in the stages."""
        x, (Hp, Wp) = patches
        B = x.shape[0]
        ...
        return GridTokens(x, (Hp, Wp))

    @moved_from('forward_features', after='x = self.pos_drop(x)')
    def forward_stages(self, embedded: GridTokens) -> torch.Tensor:
        """Forward pass through blocks, class attention and final norm, features are (B, 1 + N, C)."""
        x, (Hp, Wp) = embedded
        ...

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens."""
        return map_size(self.patch_embed.proj, img_size)
