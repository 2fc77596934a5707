# Overlay: woven into upstream's timm/models/coat.py when the package is built.
# Read the result in build/timm/models/coat.py.
from ._embed_stages import EmbedStagesMixin, nlc_to_map


class CoaT(EmbedStagesMixin, nn.Module):

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token: the embedding width of the first stage."""
        return self.embed_dims[0]

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens of the first stage."""
        return self.patch_embed1.dynamic_feat_size(img_size)

    @moved_from('forward_features', after='B = x0.shape[0]', through='x1 = self.patch_embed1(x0)')
    def embed_patches(self, x0: torch.Tensor) -> torch.Tensor:
        """Embed an image of shape (B, C, H, W) as patch tokens (B, N, C) of the first stage."""
        ...
        return x1

    @moved_from(
        'forward_features',
        after='H1, W1 = self.patch_embed1.grid_size',
        through='x1 = insert_cls(x1, self.cls_token1)',
    )
    def embed_positions(self, x1: torch.Tensor) -> torch.Tensor:
        """Add the class token of the first stage. Convolutions in the stages encode positions."""
        ...
        return x1

    @moved_from('forward_features', after='x1 = insert_cls(x1, self.cls_token1)')
    def forward_stages(self, x1: torch.Tensor):
        """Forward pass through all stages and final norm, for the embedded tokens (B, 1 + N, C).

        Returns:
            Tokens of the last stage for a model with serial blocks, a list of the tokens of stages 2 to 4 for a model
            with parallel blocks, or a dict of feature maps with `return_interm_layers`.
        """
        B = x1.shape[0]
        # the patch embed of each scale is checked for None to support pruning (prune_intermediate_layers)
        H1, W1 = self.patch_embed1.grid_size
        ...

    @torch.jit.ignore
    def features_to_map(self, features, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, 1 + N', C) of the last stage as a feature map (B, C, H', W')."""
        if isinstance(features, dict):
            raise NotImplementedError('CoaT with return_interm_layers has several feature maps, not one.')
        features = features[-1] if isinstance(features, list) else features
        # later stages may be pruned
        patch_embeds = [m for m in (self.patch_embed2, self.patch_embed3, self.patch_embed4) if m is not None]
        for patch_embed in patch_embeds:
            grid_size = patch_embed.dynamic_feat_size(grid_size)
        return nlc_to_map(features, grid_size, 1)
