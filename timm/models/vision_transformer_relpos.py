# Overlay: woven into upstream's timm/models/vision_transformer_relpos.py when the package is built.
# Read the result in build/timm/models/vision_transformer_relpos.py.
from ._embed_stages import EmbedStagesMixin, refused


class VisionTransformerRelPos(EmbedStagesMixin, nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)', through='if self.cls_token is not None: ...')
    def embed_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Add the class token, if any, to patch tokens (B, N, C). Positions enter as an attention bias."""
        ...
        return x

    @moved_from('forward_features', after='if self.cls_token is not None: ...')
    def forward_stages(self, x: torch.Tensor) -> torch.Tensor:
        """Forward pass through transformer blocks and final norm, for the embedded tokens (B, P + N, C)."""
        ...

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Raise NotImplementedError, since the relative position bias is that of the whole grid."""
        raise NotImplementedError(
            f'{type(self).__name__} cannot drop tokens: its relative position bias is that of the whole grid. '
            f'Replace them with map_tokens.')
