# Overlay: woven into upstream's timm/models/mobilenetv5.py when the package is built.
# Read the result in build/timm/models/mobilenetv5.py.
from ._embed_stages import EmbedStagesMixin


class MobileNetV5(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    # upstream calls the stem in both branches of its `forward_features`: here it goes first
    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_stages(self.embed(x))

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        return self.conv_stem(x)

    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the blocks, for patch tokens (B, C, H, W), and the fusion of several scales if any."""
        if self.msfa is None:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint_seq(self.blocks, x, flatten=True)
            else:
                x = self.blocks(x)
        else:
            num_blocks = 0
            scales = []
            if num_blocks in self.msfa_indices:
                scales.append(x)
            for blk in self.blocks:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint_seq(blk, x)
                else:
                    x = blk(x)
                num_blocks += 1
                if num_blocks in self.msfa_indices:
                    scales.append(x)
            x = self.msfa(scales)
        return x


class MobileNetV5Encoder(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image as patch tokens (B, C, H, W)."""
        return self.conv_stem(x)

    @moved_from('forward_features', without=('x = self.conv_stem(x)',))
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through the blocks and the fusion of several scales, for patch tokens (B, C, H, W)."""
        ...
