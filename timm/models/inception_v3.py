# Overlay: woven into upstream's timm/models/inception_v3.py when the package is built.
# Read the result in build/timm/models/inception_v3.py.
from ._embed_stages import EmbedStagesMixin, refuse_patch_grid


class InceptionV3(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'
    patch_grid = refuse_patch_grid

    @moved_from('forward_preaux', through='x = self.Conv2d_2b_3x3(x)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        ...
        return x

    @moved_from('forward_preaux', after='x = self.Conv2d_2b_3x3(x)')
    def _forward_preaux_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass from the patch tokens to where the auxiliary classifier branches off."""
        ...

    def forward_preaux(self, x):
        return self._forward_preaux_stages(self.embed_patches(x))

    @moved_from('forward_features', after='x = self.forward_preaux(x)')
    def forward_stages(self, x: torch.Tensor):
        """Forward pass through all other layers, for patch tokens (B, C, H, W).

        Returns:
            Features (B, C, H, W), with aux_logits the pair of them and the logits of the auxiliary classifier.
        """
        x = self._forward_preaux_stages(x)
        ...
