# Overlay: woven into upstream's timm/models/vgg.py when the package is built.
# Read the result in build/timm/models/vgg.py.
from ._embed_stages import EmbedStagesMixin


class VGG(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W): the layers through the first pool."""
        for i, layer in enumerate(self.features):  # TorchScript does not support slices here
            if i <= self.feature_ends[0] + 1:
                x = layer(x)
        return x

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the other layers, for patch tokens (B, C, H, W)."""
        for i, layer in enumerate(self.features):
            if i > self.feature_ends[0] + 1:
                x = layer(x)
        return x

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through feature extraction layers.

        Args:
            x: Input tensor.

        Returns:
            Feature tensor.
        """
        return self.forward_stages(self.embed(x))
