# Overlay: woven into upstream's timm/models/hiera.py when the package is built.
# Read the result in build/timm/models/hiera.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin
from ._meta_copy import map_size


class UnrolledTokens(NamedTuple):
    """Tokens (B, N, C), those of a mask unit far apart (see `Unroll`), and the mask (B, units) of the kept units."""
    tokens: torch.Tensor
    mask: Optional[torch.Tensor]


class Hiera(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', through='if self.training and self.patch_drop_rate > 0: ...')
    def embed(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> UnrolledTokens:
        """Embed an image as tokens of the mask units that are kept.

        Args:
            x: Image (B, C, H, W).
            mask: Mask units to keep, (B, number of units) bool, as many in each sample. All by default, a random part
                in training w/ patch_drop_rate.
        """
        ...
        return self.embed_positions(self.embed_patches(x, mask), mask)

    @moved_from(
        'forward_features',
        after='if self.training and self.patch_drop_rate > 0: ...',
        through='x = self.patch_embed(x, mask=patch_mask)',
    )
    def embed_patches(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Embed an image as patch tokens (B, N, C) in spatial order, mask units outside of the mask as zeros."""
        ...
        return x

    @moved_from(
        'forward_features', after='x = self.patch_embed(x, mask=patch_mask)', before='intermediates = []')
    def embed_positions(self, x: torch.Tensor, mask: Optional[torch.Tensor] = None) -> UnrolledTokens:
        """Add position embeddings to patch tokens (B, N, C), unroll them and drop mask units outside of the mask."""
        ...
        return UnrolledTokens(x, mask)

    @moved_from('forward_features', start='intermediates = []')
    def forward_stages(self, embedded: UnrolledTokens, return_intermediates: bool = False) -> torch.Tensor:
        """Forward pass through the blocks. The head has the final norm.

        Args:
            embedded: Unrolled tokens (B, N, C) and the mask of the kept mask units.
            return_intermediates: Return a list of the output of each stage in spatial order too.

        Returns:
            Features (B, N', C), not in spatial order where a stage has left mask units unpooled (`features_to_map`).
        """
        x, mask = embedded
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
    def keep_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the mask units of an image, attention and pooling need them whole."""
        height, width = (size // unit for size, unit in zip(self.patch_grid(img_size), self.mask_unit_size))
        return height, width

    @torch.jit.ignore
    def keep_tokens(self, embedded: UnrolledTokens, keep: torch.Tensor) -> UnrolledTokens:
        """Keep the mask units at indices (B, K), of tokens (B, N, C) of all units."""
        x, _ = embedded
        batch_size, num_tokens, channels = x.shape
        x = x.reshape(batch_size, self.mu_size, num_tokens // self.mu_size, channels)  # a unit's tokens are spread
        x = x.gather(2, keep[:, None, :, None].expand(-1, self.mu_size, -1, channels))
        return UnrolledTokens(x.flatten(1, 2), None)

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Roll features (B, N', C) of all mask units back to spatial order, as a feature map (B, C, H', W')."""
        last_block = len(self.blocks) - 1
        _, size = self.reroll.schedule[last_block]
        if list(grid_size) != self.tokens_spatial_shape or features.shape[1] != math.prod(size):
            raise ValueError(
                f'{features.shape[1]} tokens of a {" x ".join(map(str, grid_size))} grid do not make a map, '
                f'{type(self).__name__} has {math.prod(size)} of {" x ".join(map(str, self.tokens_spatial_shape))}.')
        return self.reroll(features, last_block).permute(0, 3, 1, 2)
