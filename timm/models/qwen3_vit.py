# Overlay: woven into upstream's timm/models/qwen3_vit.py when the package is built.
# Read the result in build/timm/models/qwen3_vit.py.
from typing import NamedTuple

from timm.layers import apply_keep_indices_nlc
from ._embed_stages import EmbedStagesMixin, gather_patches, nlc_to_map, refused


class RopeGridTokens(NamedTuple):
    """Tokens (B, N, C), the rotary embedding (N, dim) of their patches, and their grid (H, W).

    Once tokens were dropped the rotary embedding differs between samples, (B, 1, K, dim), and there is no grid.
    """
    tokens: torch.Tensor
    rope: torch.Tensor
    grid_size: Optional[Tuple[int, int]]


def keep_rope_grid_tokens(embedded: RopeGridTokens, keep: torch.Tensor) -> RopeGridTokens:
    """Keep the patch tokens at indices (B, K), with their rotary embedding."""
    tokens, rope, _ = embedded
    batched = rope.ndim == 4
    rope = apply_keep_indices_nlc(tokens, rope, keep, pos_embed_has_batch=batched)
    return RopeGridTokens(gather_patches(tokens, keep), rope if batched else rope.unsqueeze(1), None)


class Qwen3VitEncoder(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x, rope = self._pos_embed(x)')
    def embed_positions(self, x: torch.Tensor) -> RopeGridTokens:
        """Add position embeddings to patch tokens (B, H, W, C) and flatten them, make the rotary embedding."""
        ...
        return RopeGridTokens(x, rope, (H, W))

    @moved_from('forward_features', after='x, rope = self._pos_embed(x)', without='return x.reshape(B, H, W, -1)')
    def forward_stages(self, embedded: RopeGridTokens) -> torch.Tensor:
        """Forward pass through transformer blocks, features are (B, H, W, C), or (B, K, C) without a grid."""
        x, rope, grid_size = embedded
        ...
        if grid_size is None:
            return x
        return x.reshape(x.shape[0], grid_size[0], grid_size[1], -1)

    @torch.jit.ignore
    def keep_tokens(self, embedded: RopeGridTokens, keep: torch.Tensor) -> RopeGridTokens:
        """Keep the patch tokens at indices (B, K), with their rotary embedding."""
        return keep_rope_grid_tokens(embedded, keep)


class Qwen3VitClassifier(EmbedStagesMixin, nn.Module):

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image of shape (B, C, H, W) as patch tokens (B, H, W, C)."""
        return self.encoder.embed_patches(x)

    def embed_positions(self, x: torch.Tensor) -> RopeGridTokens:
        """Add position embeddings to patch tokens (B, H, W, C) and flatten them, make the rotary embedding."""
        return self.encoder.embed_positions(x)

    def forward_stages(self, embedded: RopeGridTokens) -> torch.Tensor:
        """Forward pass through transformer blocks and the patch merger, if there is one."""
        x = self.encoder.forward_stages(embedded)
        return x if self.encoder.merger is None else self.encoder.merger(x)

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens."""
        return self.encoder.patch_grid(img_size)

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded: RopeGridTokens, keep: torch.Tensor) -> RopeGridTokens:
        """Keep the patch tokens at indices (B, K), in a model without patch merger."""
        if self.encoder.merger is not None:
            raise NotImplementedError(
                "Qwen3VitClassifier with encoder_pool='merge' cannot drop tokens: it merges neighbours on the grid. "
                "Use encoder_pool=''.")
        return self.encoder.keep_tokens(embedded, keep)

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, H, W, C), or merged ones (B, N', C), as a feature map (B, C, H', W')."""
        if self.encoder.merger is None:
            return self.encoder.features_to_map(features, grid_size)
        merge_size = self.encoder.merger.merge_size
        return nlc_to_map(features, (grid_size[0] // merge_size, grid_size[1] // merge_size))
