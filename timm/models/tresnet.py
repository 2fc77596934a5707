# Overlay: woven into upstream's timm/models/tresnet.py when the package is built.
# Read the result in build/timm/models/tresnet.py.
from ._embed_stages import EmbedStagesMixin


class TResNet(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W): space to depth, and the first convolution."""
        for i, layer in enumerate(self.body):  # TorchScript does not support slices here
            if i < 2:
                x = layer(x)
        return x

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the four layers, for patch tokens (B, C, H, W)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.body[2:], x, flatten=True)  # layers, by index as pruning can remove them
        for i, layer in enumerate(self.body):
            if i >= 2:
                x = layer(x)
        return x

    def forward_features(self, x):
        return self.forward_stages(self.embed(x))
