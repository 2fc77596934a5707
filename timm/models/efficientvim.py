# Overlay: woven into upstream's timm/models/efficientvim.py when the package is built.
# Read the result in build/timm/models/efficientvim.py.
from ._embed_stages import EmbedStagesMixin, nlc_to_map


class EfficientViM(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Forward pass through the stages and their norms.

        Args:
            x: Patch tokens (B, C, H, W).

        Returns:
            Hidden state (B, C, state_dim) of each stage, and last the flattened feature map (B, C, H' * W').
        """
        ...

    @torch.jit.ignore
    def features_to_map(self, features: List[torch.Tensor], grid_size: Tuple[int, int]) -> torch.Tensor:
        """Return the last element of the features, a flattened map, as a feature map (B, C, H', W')."""
        height, width = grid_size
        for stage in self.stages:
            if stage.downsample is not None:
                height, width = -(-height // 2), -(-width // 2)  # a padded convolution rounds the size up
        return nlc_to_map(features[-1].transpose(1, 2), (height, width))
