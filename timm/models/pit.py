# Overlay: woven into upstream's timm/models/pit.py when the package is built.
# Read the result in build/timm/models/pit.py.
from typing import NamedTuple

from ._embed_stages import EmbedStagesMixin, refused


class TokenMap(NamedTuple):
    """Patch tokens (B, C, H, W), and class tokens (B, P, C) that pass through the stages beside them."""
    tokens: torch.Tensor
    cls_tokens: torch.Tensor


class PoolingVisionTransformer(EmbedStagesMixin, nn.Module):
    grid_format = 'NCHW'

    @moved_from(
        'forward_features',
        after='x = self.patch_embed(x)',
        through='cls_tokens = self.cls_token.expand(x.shape[0], -1, -1)',
    )
    def embed_positions(self, x: torch.Tensor) -> TokenMap:
        """Add position embeddings to patch tokens (B, C, H, W), with class and distillation tokens beside them."""
        ...
        return TokenMap(x, cls_tokens)

    @moved_from('forward_features', start='x, cls_tokens = self.transformers((x, cls_tokens))')
    def forward_stages(self, embedded: TokenMap) -> torch.Tensor:
        """Forward pass through the stages and the final norm, returns class tokens (B, P, C) without patch tokens."""
        x, cls_tokens = embedded
        ...

    @torch.jit.ignore
    @refused
    def features_to_map(self, features: torch.Tensor, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Refuses, the features are class tokens."""
        raise NotImplementedError(
            f'{type(self).__name__} has no feature map, its features are class tokens only. '
            'forward_intermediates gives maps.')
