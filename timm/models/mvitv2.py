# Overlay: woven into upstream's timm/models/mvitv2.py when the package is built.
# Read the result in build/timm/models/mvitv2.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin, nlc_to_map
from ._meta_copy import map_size


class SizedTokens(NamedTuple):
    """Tokens (B, P + H * W, C) and the grid [H, W] of the patches."""
    tokens: torch.Tensor
    feat_size: List[int]


class MultiScaleVit(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', through='x, feat_size = self.patch_embed(x)')
    def embed_patches(self, x: torch.Tensor) -> SizedTokens:
        """Embed an image as patch tokens (B, N, C), with their grid."""
        ...
        return SizedTokens(x, feat_size)

    @moved_from(
        'forward_features',
        after='x, feat_size = self.patch_embed(x)',
        through='if self.pos_embed is not None: ...',
    )
    def embed_positions(self, patches: SizedTokens) -> SizedTokens:
        """Add the class token and position embeddings, where the model has them, to patch tokens (B, N, C)."""
        x, feat_size = patches
        ...
        return SizedTokens(x, feat_size)

    @moved_from('forward_features', start='for stage in self.stages: ...')
    def forward_stages(self, embedded: SizedTokens) -> torch.Tensor:
        """Forward pass through the stages and the final norm.

        Args:
            embedded: Tokens (B, P + N, C), with the grid of the patches.

        Returns:
            Features (B, P + N', C).
        """
        x, feat_size = embedded
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token."""
        return self.patch_embed.proj.out_channels

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens of an image."""
        return map_size(self.patch_embed.proj, img_size)

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange the patches of features (B, P + N', C) as a feature map (B, C, H', W')."""
        height, width = grid_size
        for stage in self.stages:
            pool = stage.blocks[0].shortcut_pool_attn
            if pool is not None:  # padded, it rounds up
                height, width = -(-height // pool.stride[0]), -(-width // pool.stride[1])
        return nlc_to_map(features, (height, width), self.num_prefix_tokens)
