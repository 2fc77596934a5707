# Overlay: woven into upstream's timm/models/inception_v4.py when the package is built.
# Read the result in build/timm/models/inception_v4.py.
from ._embed_stages import EmbedStagesMixin, refuse_patch_grid


class InceptionV4(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'
    patch_grid = refuse_patch_grid

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W): the first three convolutions."""
        for i, layer in enumerate(self.features):  # TorchScript does not support slices here
            if i <= self.stage_ends[0]:
                x = layer(x)
        return x

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the mixed, inception and reduction blocks, for patch tokens (B, C, H, W)."""
        for i, layer in enumerate(self.features):
            if i > self.stage_ends[0]:
                x = layer(x)
        return x

    def forward_features(self, x):
        return self.forward_stages(self.embed(x))
