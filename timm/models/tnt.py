# Overlay: woven into upstream's timm/models/tnt.py when the package is built.
# Read the result in build/timm/models/tnt.py.
from typing import Callable, NamedTuple

from ._embed_stages import EmbedStagesMixin, gather_patches


class PixelPatchTokens(NamedTuple):
    """Tokens (B, 1 + N, C), and the pixel tokens (B * N, M, D) inside of each patch."""
    tokens: torch.Tensor
    pixel_tokens: torch.Tensor


class TNT(EmbedStagesMixin, nn.Module):
    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token, all of its pixel tokens."""
        return self.proj.in_features

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens."""
        return self.pixel_embed.dynamic_feat_size(img_size)

    @moved_from(
        'forward_features',
        after='B = x.shape[0]',
        through='pixel_embed = self.pixel_embed(x, self.pixel_pos)',
    )
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image of shape (B, C, H, W) as pixel tokens (B * N, M, D) of its patches.

        They are projected to patch tokens by embed_positions, so that nothing of the image remains of a patch whose
        pixel tokens are replaced.
        """
        ...
        return pixel_embed

    @moved_from(
        'forward_features',
        after='pixel_embed = self.pixel_embed(x, self.pixel_pos)',
        through='patch_embed = self.pos_drop(patch_embed)',
    )
    def embed_positions(self, pixel_embed: torch.Tensor) -> PixelPatchTokens:
        """Project pixel tokens (B * N, M, D) to patch tokens, add the class token and patch position embeddings."""
        B = pixel_embed.shape[0] // self.num_patches
        ...
        return PixelPatchTokens(patch_embed, pixel_embed)

    @moved_from('forward_features', after='patch_embed = self.pos_drop(patch_embed)')
    def forward_stages(self, embedded: PixelPatchTokens) -> torch.Tensor:
        """Forward pass through inner and outer transformer blocks and final norm, features are (B, 1 + N, C)."""
        patch_embed, pixel_embed = embedded
        ...

    @torch.jit.ignore
    def map_tokens(self, patches: torch.Tensor, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Apply a function of tokens (B, N, M * D) to pixel tokens (B * N, M, D)."""
        tokens = patches.reshape(-1, self.num_patches, self.patch_dim)
        return fn(tokens).reshape(patches.shape)

    @torch.jit.ignore
    def keep_tokens(self, embedded: PixelPatchTokens, keep: torch.Tensor) -> PixelPatchTokens:
        """Keep the class token, and the patch tokens at indices (B, K) with their pixel tokens."""
        tokens, pixel_tokens = embedded
        pixels_per_patch, width = pixel_tokens.shape[1:]
        pixel_tokens = pixel_tokens.reshape(tokens.shape[0], -1, pixels_per_patch * width)
        pixel_tokens = gather_patches(pixel_tokens, keep).reshape(-1, pixels_per_patch, width)
        return PixelPatchTokens(gather_patches(tokens, keep, self.num_prefix_tokens), pixel_tokens)
