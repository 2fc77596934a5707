# Overlay: woven into upstream's timm/models/levit.py when the package is built.
# Read the result in build/timm/models/levit.py.
from ._embed_stages import EmbedStagesMixin, nlc_to_map
from ._meta_copy import map_size


class Levit(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='if not self.use_conv: ...')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, N, C), or (B, C, H, W) w/ use_conv."""
        ...
        return x

    @moved_from('forward_features', after='if not self.use_conv: ...')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages, for patch tokens (B, N, C), or (B, C, H, W) w/ use_conv."""
        ...

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token."""
        return self.embed_dim[0]

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens of an image."""
        return map_size(self.stem, img_size)

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, N', C) as a feature map (B, C, H', W'); return them unchanged w/ use_conv."""
        if self.use_conv:
            return features
        height, width = grid_size
        for stage in self.stages:
            if not isinstance(stage.downsample, nn.Identity):
                height, width = -(-height // 2), -(-width // 2)
        return nlc_to_map(features, (height, width))
