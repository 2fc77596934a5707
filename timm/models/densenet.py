# Overlay: woven into upstream's timm/models/densenet.py when the package is built.
# Read the result in build/timm/models/densenet.py.
from ._embed_stages import EmbedStagesMixin


class DenseNet(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W): the layers through the pool after the first feature tap."""
        for i, layer in enumerate(self.features):  # TorchScript does not support slices here
            if i <= self.feature_ends[0] + 1:
                x = layer(x)
        return x

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the dense blocks and the final norm, for patch tokens (B, C, H, W)."""
        for i, layer in enumerate(self.features):
            if i > self.feature_ends[0] + 1:
                x = layer(x)
        return x

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through feature extraction layers."""
        return self.forward_stages(self.embed(x))
