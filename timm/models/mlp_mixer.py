# Overlay: woven into upstream's timm/models/mlp_mixer.py when the package is built.
# Read the result in build/timm/models/mlp_mixer.py.
from ._embed_stages import EmbedStagesMixin


class MlpMixer(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', through='x = self.stem(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, N, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the mixer blocks and the final norm, for patch tokens (B, N, C)."""
        ...

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens of an image."""
        return self.stem.dynamic_feat_size(img_size)
