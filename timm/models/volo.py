# Overlay: woven into upstream's timm/models/volo.py when the package is built.
# Read the result in build/timm/models/volo.py.
from ._embed_stages import EmbedStagesMixin, nlc_to_map


class VOLO(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', through='x = self.patch_embed(x).permute(0, 2, 3, 1)')
    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """Embed an image of shape (B, C, H, W) as patch tokens (B, H, W, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.patch_embed(x).permute(0, 2, 3, 1)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through all stages, class attention and final norm, for patch tokens (B, H, W, C).

        Positions are added after the outlooker blocks of the first stage, they are part of the stages.
        """
        ...

    @torch.jit.ignore
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange features (B, P + N', C) as a map (B, C, H', W'), downsampled by the stages."""
        height, width = grid_size
        for module in self.network:
            if isinstance(module, Downsample):
                height, width = height // module.proj.stride[0], width // module.proj.stride[1]
        return nlc_to_map(features, (height, width), 0 if self.post_network is None else 1)
