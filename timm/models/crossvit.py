# Overlay: woven into upstream's timm/models/crossvit.py when the package is built.
# Read the result in build/timm/models/crossvit.py.
from typing import Callable

from ._embed_stages import EmbedStagesMixin, refused


class CrossVit(EmbedStagesMixin, nn.Module):
    def embed(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Embed an image of shape (B, C, H, W) as tokens (B, 1 + N, C) of each branch.

        It is not split into `embed_patches` and `embed_positions`: that would change the order of the operations, and
        each branch has its own width and grid.
        """
        return self._embed(x)

    @moved_from('forward_features', after='xs = self._embed(x)')
    def forward_stages(self, xs: List[torch.Tensor]) -> List[torch.Tensor]:
        """Forward pass through the multi-scale blocks and the norm of each branch."""
        ...

    @torch.jit.ignore
    def embed_patches(self, x: torch.Tensor):
        """Raise NotImplementedError, see `embed`."""
        self._refuse('no patch tokens apart from positions, use embed')

    @torch.jit.ignore
    def embed_positions(self, patches: torch.Tensor):
        """Raise NotImplementedError, see `embed`."""
        self._refuse('no patch tokens apart from positions, use embed')

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Raise NotImplementedError."""
        return self._refuse('patch tokens of a different grid in each branch')

    @torch.jit.ignore
    @refused
    def map_tokens(self, patches: List[torch.Tensor], fn: Callable[[torch.Tensor], torch.Tensor]):
        """Raise NotImplementedError."""
        self._refuse('no patch tokens apart from positions to replace')

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded: List[torch.Tensor], keep: torch.Tensor):
        """Raise NotImplementedError."""
        self._refuse('patch tokens of a different grid in each branch, none can be dropped')

    @torch.jit.ignore
    @refused
    def features_to_map(self, features: List[torch.Tensor], grid_size: Tuple[int, int]) -> torch.Tensor:
        """Raise NotImplementedError."""
        return self._refuse('features of a different grid in each branch, not one feature map')

    @torch.jit.ignore
    def _refuse(self, reason: str):
        raise NotImplementedError(f'CrossVit has {reason}.')
