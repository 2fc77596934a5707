# Overlay: woven into upstream's timm/models/fastvit.py when the package is built.
# Read the result in build/timm/models/fastvit.py.
from ._embed_stages import EmbedStagesMixin


class FastVit(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the stages and the final convolution, for patch tokens (B, C, H, W)."""
        ...

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Return features (B, C, H', W') unchanged. Raises NotImplementedError for a model with `fork_feat`."""
        if self.fork_feat:
            raise NotImplementedError(
                'FastVit with fork_feat has a list of feature maps, one per stage. Create it without fork_feat.')
        return features
