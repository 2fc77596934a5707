# Overlay: woven into upstream's timm/models/efficientformer.py when the package is built.
# Read the result in build/timm/models/efficientformer.py.
from ._embed_stages import EmbedStagesMixin, nlc_to_map


class EfficientFormer(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages and the final norm, for patch tokens (B, C, H, W)."""
        ...

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, N', C) as a feature map (B, C, H', W'). A model pruned of its last stage returns a map.
        """
        if features.ndim == 4:
            return features
        height, width = grid_size
        for stage in self.stages:
            if not isinstance(stage.downsample, nn.Identity):
                height, width = -(-height // 2), -(-width // 2)  # a padded convolution rounds the size up
        return nlc_to_map(features, (height, width))
