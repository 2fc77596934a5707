# Overlay: woven into upstream's timm/models/deepseek_vit.py when the package is built.
# Read the result in build/timm/models/deepseek_vit.py.
from ._embed_stages import EmbedStagesMixin, nlc_to_map, refused
from .qwen3_vit import RopeGridTokens, keep_rope_grid_tokens


class DeepseekVitEncoder(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x, rope = self._pos_embed(x)')
    def embed_positions(self, x: torch.Tensor) -> RopeGridTokens:
        """Flatten patch tokens (B, H, W, C) and make their rotary embedding."""
        ...
        return RopeGridTokens(x, rope, (H, W))

    @moved_from(
        'forward_features',
        after='x, rope = self._pos_embed(x)',
        without='return self.norm(x).reshape(B, H, W, -1)',
    )
    def forward_stages(self, embedded: RopeGridTokens) -> torch.Tensor:
        """Forward pass through blocks and final norm. Returns features (B, H, W, C), or (B, K, C) of kept tokens."""
        x, rope, grid_size = embedded
        ...
        x = self.norm(x)
        if grid_size is None:
            return x
        return x.reshape(x.shape[0], grid_size[0], grid_size[1], -1)

    @torch.jit.ignore
    def keep_tokens(self, embedded: RopeGridTokens, keep: torch.Tensor) -> RopeGridTokens:
        """Keep the patch tokens at indices (B, K), with their rotary embedding."""
        return keep_rope_grid_tokens(embedded, keep)


class DeepseekVitClassifier(EmbedStagesMixin, nn.Module):

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image of shape (B, C, H, W) as patch tokens (B, H, W, C)."""
        return self.encoder.embed_patches(x)

    def embed_positions(self, x: torch.Tensor) -> RopeGridTokens:
        """Flatten patch tokens (B, H, W, C) and make their rotary embedding."""
        return self.encoder.embed_positions(x)

    def forward_stages(self, embedded: RopeGridTokens) -> torch.Tensor:
        """Forward pass through blocks, final norm and the aligner, if there is one."""
        x = self.encoder.forward_stages(embedded)
        return x if self.encoder.aligner is None else self.encoder.aligner(x)

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens."""
        return self.encoder.patch_grid(img_size)

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded: RopeGridTokens, keep: torch.Tensor) -> RopeGridTokens:
        """Keep the patch tokens at indices (B, K). Raises NotImplementedError for a model with an aligner."""
        if self.encoder.aligner is not None:
            raise NotImplementedError(
                "DeepseekVitClassifier with encoder_pool='align' cannot drop tokens: it merges neighbours on the grid. "
                "Use encoder_pool=''.")
        return self.encoder.keep_tokens(embedded, keep)

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, H, W, C), or aligned ones (B, N', C), as a feature map (B, C, H', W')."""
        if self.encoder.aligner is None:
            return self.encoder.features_to_map(features, grid_size)
        # the aligner pads the grid to a multiple of its ratio
        ratio = self.encoder.aligner.downsample_ratio
        return nlc_to_map(features, (-(-grid_size[0] // ratio), -(-grid_size[1] // ratio)))
