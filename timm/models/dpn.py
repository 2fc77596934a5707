# Overlay: woven into upstream's timm/models/dpn.py when the package is built.
# Read the result in build/timm/models/dpn.py.
from ._embed_stages import EmbedStagesMixin


class DPN(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W): convolution and pool of the stem, both checkpointed."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.features[:2], x)
        for i, layer in enumerate(self.features):  # TorchScript does not support slices here
            if i < 2:
                x = layer(x)
        return x

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the blocks and the final norm, for patch tokens (B, C, H, W)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.features[2:], x)
        for i, layer in enumerate(self.features):
            if i >= 2:
                x = layer(x)
        return x

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_stages(self.embed(x))
