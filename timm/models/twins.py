# Overlay: woven into upstream's timm/models/twins.py when the package is built.
# Read the result in build/timm/models/twins.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin, nlc_to_map


class SizedTokens(NamedTuple):
    """Tokens (B, H * W, C) and their grid (H, W)."""
    tokens: torch.Tensor
    size: Size_


class Twins(EmbedStagesMixin, nn.Module):

    def embed_patches(self, x: torch.Tensor) -> SizedTokens:
        """Embed an image as patch tokens (B, N, C) of the first stage, with their grid."""
        x, size = self.patch_embeds[0](x)
        return SizedTokens(x, size)

    def embed_positions(self, patches: SizedTokens) -> SizedTokens:
        """Apply dropout, positions come from a convolution after the first block of each stage."""
        return SizedTokens(self.pos_drops[0](patches.tokens), patches.size)

    def forward_stages(self, embedded: SizedTokens) -> torch.Tensor:
        """Forward pass through the stages, with the patch embeddings between them, and the final norm.

        Args:
            embedded: Tokens (B, N, C) of the first stage, with their grid.

        Returns:
            Features (B, N', C) of the last stage.
        """
        x, size = embedded
        for i, (patch_embed, pos_drop, blocks, pos_block) in enumerate(
                zip(self.patch_embeds, self.pos_drops, self.blocks, self.pos_block)):
            if i > 0:
                x = x.reshape(x.shape[0], size[0], size[1], -1).permute(0, 3, 1, 2).contiguous()
                x, size = patch_embed(x)
                x = pos_drop(x)
            for j, block in enumerate(blocks):
                x = block(x, size)
                if j == 0:
                    x = pos_block(x, size)
        return self.norm(x)

    def forward_features(self, x):
        return self.forward_stages(self.embed(x))

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token of the first stage."""
        return self.embed_dims[0]

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens of the first stage."""
        patch_size = self.patch_embeds[0].patch_size
        return img_size[0] // patch_size[0], img_size[1] // patch_size[1]

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, N', C) as a feature map (B, C, H', W')."""
        height, width = grid_size
        for patch_embed in self.patch_embeds[1:]:
            height, width = height // patch_embed.patch_size[0], width // patch_embed.patch_size[1]
        return nlc_to_map(features, (height, width))
