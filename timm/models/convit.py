# Overlay: woven into upstream's timm/models/convit.py when the package is built.
# Read the result in build/timm/models/convit.py.
from ._embed_stages import EmbedStagesMixin, refused


class ConVit(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='x = self.pos_drop(x)')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add position embeddings, if any, to patch tokens (B, N, C). The stages add the class token."""
        ...
        return x

    @moved_from('forward_features', after='x = self.pos_drop(x)')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through blocks and final norm. The class token is added after the local blocks."""
        ...

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Raise NotImplementedError, since gated positional attention needs the whole grid."""
        raise NotImplementedError(
            'ConVit cannot drop tokens: its gated positional attention is that of the whole grid. '
            'Replace them with map_tokens.')
