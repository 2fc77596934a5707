# Overlay: woven into upstream's timm/models/visformer.py when the package is built.
# Read the result in build/timm/models/visformer.py.
from typing import Tuple

from ._embed_stages import EmbedStagesMixin
from ._meta_copy import map_size


class Visformer(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.patch_embed1(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W) of the first stage."""
        ...
        return x

    @moved_from(
        'forward_features', after='x = self.patch_embed1(x)', through='if self.pos_embed1 is not None: ...')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add the position embeddings of the first stage to patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='if self.pos_embed1 is not None: ...')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, with the patch embeddings between them, and the final norm.

        Args:
            x: Embedded tokens (B, C, H, W).

        Returns:
            Feature map (B, C, H', W').
        """
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token of the first stage."""
        return self.patch_embed1.proj.out_channels

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens of the first stage."""
        if self.stem is not None:
            img_size = map_size(self.stem, img_size)
        return self.patch_embed1.dynamic_feat_size(img_size)
