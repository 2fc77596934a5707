# Overlay: woven into upstream's timm/models/beit.py when the package is built.
# Read the result in build/timm/models/beit.py.
from ._embed_stages import EmbedStagesMixin, refused


class Beit(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.pos_drop(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add the class token and position embeddings, if any, to patch tokens (B, N, C)."""
        ...
        return x

    @moved_from('forward_features', after='x = self.pos_drop(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through transformer blocks and final norm, for the embedded tokens (B, 1 + N, C)."""
        ...

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Raise NotImplementedError, since the relative position bias is that of the whole grid."""
        raise NotImplementedError(
            'Beit cannot drop tokens: its relative position bias is that of the whole grid. '
            'Replace them with map_tokens.')
