"""Embed / stages protocol.

It splits `forward_features` of a model into two parts, so that tokens can be replaced or dropped in between:

    tokens = model.embed(images)              # patch + position embedding, prefix tokens
    features = model.forward_stages(tokens)   # == model.forward_features(images)

Shape letters: B batch, C channels, H x W the grid of patch tokens, N = H * W patches, P prefix tokens, K kept patches.
"""
from typing import Callable, Sequence, Tuple

import torch

from ._meta_copy import meta_copy

__all__ = [
    'EmbedStagesMixin', 'check_keep', 'gather_patches', 'map_grid', 'nlc_to_map', 'refuse_patch_grid', 'refused',
]


def refused(method: Callable) -> Callable:
    """Mark a protocol method that raises `NotImplementedError`, so that support can be checked without a model.

    A method is also marked if it raises in some configurations of the class only: an unmarked method works for all
    models of the class.
    """
    method.refused = True
    return method


class EmbedStagesMixin:
    """Mixin that splits the `forward_features` of a model into `embed` and `forward_stages`.

    A class implements `forward_stages` and, if it adds anything to the patch tokens before its first block,
    `embed_positions`. The defaults of the other methods work for a model whose `patch_embed` is a
    `timm.layers.PatchEmbed`, and for a model with patch tokens on a grid of `grid_format`.

    `embed` returns the token tensor, or, if the stages need more, a NamedTuple whose first field is `tokens`. Methods
    that TorchScript compiles have no return annotation here, because the type differs between models.
    """
    grid_format = 'NHWC'  # layout of 4-D patch tokens and features, NHWC or NCHW

    def embed_patches(self, x):
        """Embed images of shape (B, C, H, W) as patch tokens, without positions and prefix tokens."""
        return self.patch_embed(x)

    def embed_positions(self, patches):
        """Apply everything between patch embedding and first block: positions, prefix tokens, dropout, norm.

        The input must not be modified in place, since it may be an expanded mask token.

        Args:
            patches: Result of `embed_patches`.
        """
        return patches

    def embed(self, x):
        """Embed images of shape (B, C, H, W), and return the input of `forward_stages`."""
        return self.embed_positions(self.embed_patches(x))

    def forward_stages(self, embedded):
        """Forward pass through all blocks and the final norm.

        Args:
            embedded: Result of `embed`.
        """
        raise NotImplementedError(f'{type(self).__name__} does not implement forward_stages.')

    def forward_features(self, x):
        """Forward pass through the feature layers, the composition of `embed` and `forward_stages`."""
        return self.forward_stages(self.embed(x))

    @torch.jit.unused
    @property
    def patch_dim(self) -> int:
        """Width of a patch token after `embed_patches`."""
        has_patch_embed = hasattr(getattr(self, 'patch_embed', None), 'dynamic_feat_size')
        own_grid = type(self).patch_grid is not EmbedStagesMixin.patch_grid
        if hasattr(self, 'embed_dim') and (has_patch_embed or own_grid):
            return self.embed_dim
        return self._embed_on_meta((256, 256)).shape[-1]  # the width does not depend on the image size

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) of the patch tokens of an image.

        Args:
            img_size: Image (height, width) in pixels.

        Raises:
            NotImplementedError: The model has no single grid, or no grid that divides the image.
            RuntimeError: The image is too small for `embed_patches`.
        """
        patch_embed = getattr(self, 'patch_embed', None)
        if hasattr(patch_embed, 'dynamic_feat_size'):
            height, width = patch_embed.dynamic_feat_size(img_size)
        else:
            _, height, width, _ = self._embed_on_meta(img_size).shape
        return height, width

    @torch.jit.ignore
    @torch.no_grad()
    def _embed_on_meta(self, img_size: Tuple[int, int]) -> torch.Tensor:
        """Return patch tokens (1, H, W, C) on the meta device, from a copy of the model that runs there.

        Each call copies the modules that `embed_patches` runs. A cache would be wrong after one of them is pruned,
        replaced, or gets another stride.

        Args:
            img_size: Image (height, width) in pixels.
        """
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        with torch.device('meta'):
            patches = meta_copy(self).embed_patches(torch.empty(1, self.in_chans, *img_size, dtype=dtype))
        tokens = patches if isinstance(patches, torch.Tensor) else patches[0]
        if tokens.ndim != 4:
            raise NotImplementedError(
                f'{type(self).__name__} has patch tokens of shape {tuple(tokens.shape)} without a grid: it must '
                'implement patch_dim and patch_grid.')
        return tokens.permute(0, 2, 3, 1) if self.grid_format == 'NCHW' else tokens

    @torch.jit.ignore
    def keep_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Return the grid (H, W) that the indices of `keep_tokens` refer to: patches, or larger units in some models.

        Args:
            img_size: Image (height, width) in pixels.
        """
        return self.patch_grid(img_size)

    @torch.jit.ignore
    def map_tokens(self, patches, fn: Callable[[torch.Tensor], torch.Tensor]):
        """Apply a function to the patch tokens, and keep everything else in `patches` unchanged.

        Args:
            patches: Result of `embed_patches`.
            fn: Maps tokens (B, N, C), row-major over the patch grid, to new tokens of the same shape.

        Returns:
            The patches with the new tokens, in the same layout as the input.

        Raises:
            ValueError: The width of the tokens is not `patch_dim`.
        """
        if not isinstance(patches, torch.Tensor):
            tokens = self.map_tokens(patches[0], fn)
            if hasattr(patches, '_replace'):
                return patches._replace(**{patches._fields[0]: tokens})
            return type(patches)((tokens, *patches[1:]))
        channels_first = patches.ndim == 4 and self.grid_format == 'NCHW'
        # skip the check in a compiled graph, which would trace the computation of patch_dim
        if not torch.compiler.is_compiling() and patches.shape[1 if channels_first else -1] != self.patch_dim:
            raise ValueError(
                f'{type(self).__name__} has patch tokens of width {self.patch_dim}, got a tensor of shape '
                f'{tuple(patches.shape)}.')
        return fn(patches) if patches.ndim == 3 else map_grid(patches, fn, channels_first)

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded, keep: torch.Tensor):
        """Select patch tokens by index, and their rotary embeddings and valid masks; keep all prefix tokens.

        Args:
            embedded: Result of `embed`.
            keep: Indices (B, K) int64 of the patches of `keep_grid` to keep, in the order of the result, not counting
                prefix tokens.

        Returns:
            The input of `forward_stages` for the kept tokens.

        Raises:
            NotImplementedError: The stages need the whole grid of tokens.
            ValueError: The indices have another dtype or shape.
        """
        raise NotImplementedError(
            f'{type(self).__name__} cannot drop tokens: its stages need the whole grid. Replace them with map_tokens.')

    @torch.jit.ignore
    def features_to_map(self, features, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange the output of `forward_stages` as a feature map.

        Args:
            features: Result of `forward_stages`.
            grid_size: Grid (H, W) of the patch tokens, see `patch_grid`.

        Returns:
            Feature map of shape (B, C, H', W').

        Raises:
            ValueError: The number of features does not match the grid.
            NotImplementedError: The model has no feature map, or more than one.
        """
        if not isinstance(features, torch.Tensor):
            raise NotImplementedError(
                f'{type(self).__name__} returns a {type(features).__name__} of {len(features)} tensors, not a single '
                'feature map.')
        if features.ndim == 4:
            return features if self.grid_format == 'NCHW' else features.permute(0, 3, 1, 2)
        return nlc_to_map(features, grid_size, getattr(self, 'num_prefix_tokens', 0))


@torch.jit.ignore
@refused
def refuse_patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
    """`patch_grid` of a model whose stem uses convolutions without padding.

    Without padding, the number of patches is smaller than the image size divided by the stride, and patches do not
    align with a grid of equal cells.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        f'{type(self).__name__} has no grid of patches that divides an image: convolutions of its stem do not pad.')


def map_grid(
        tokens: torch.Tensor,
        fn: Callable[[torch.Tensor], torch.Tensor],
        channels_first: bool = False,
) -> torch.Tensor:
    """Apply a function of tokens (B, N, C) to tokens on a grid.

    Args:
        tokens: Tokens of shape (B, H, W, C), or (B, C, H, W).
        fn: Maps tokens (B, N, C) to tokens of the same shape.
        channels_first: Whether the tokens have the shape (B, C, H, W).
    """
    if channels_first:
        return map_grid(tokens.permute(0, 2, 3, 1), fn).permute(0, 3, 1, 2)
    return fn(tokens.flatten(1, 2)).reshape(tokens.shape)


def check_keep(keep: torch.Tensor, batch_size: int) -> None:
    """Check the indices that `keep_tokens` gets, as far as the host can without waiting for the device.

    Args:
        keep: Patch indices of shape (B, K) int64.
        batch_size: Number of samples B.

    Raises:
        ValueError: The indices have another dtype or shape.
    """
    if keep.dtype != torch.int64 or keep.ndim != 2 or keep.shape[0] != batch_size:
        hint = ' Make indices of a boolean mask with K True per sample: mask.nonzero()[:, 1].reshape(len(mask), -1).'
        raise ValueError(
            f'keep must be int64 patch indices of shape (B, K) with B = {batch_size}, got {keep.dtype} of shape '
            f'{tuple(keep.shape)}.' + (hint if keep.dtype == torch.bool else ''))


def gather_patches(tokens: torch.Tensor, keep: torch.Tensor, num_prefix_tokens: int = 0) -> torch.Tensor:
    """Select patch tokens by index; keep all prefix tokens in front.

    Args:
        tokens: Tokens of shape (B, P + N, C).
        keep: Patch indices of shape (B, K) int64.
        num_prefix_tokens: Number of prefix tokens P.

    Returns:
        Tokens of shape (B, P + K, C).

    Raises:
        ValueError: The indices have another dtype or shape.
    """
    check_keep(keep, len(tokens))
    prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    return torch.cat([prefix, patches], dim=1) if num_prefix_tokens else patches


def nlc_to_map(features: torch.Tensor, grid_size: Sequence[int], num_prefix_tokens: int = 0) -> torch.Tensor:
    """Arrange row-major tokens as a feature map.

    Args:
        features: Features of shape (B, P + N, C).
        grid_size: Grid (H, W), N = H * W.
        num_prefix_tokens: Number of prefix tokens P, which the map omits.

    Returns:
        Feature map of shape (B, C, H, W).

    Raises:
        ValueError: The number of tokens is not P + H * W.
    """
    height, width = grid_size
    batch_size, num_tokens, channels = features.shape
    if num_tokens != num_prefix_tokens + height * width:
        raise ValueError(
            f'{num_tokens} tokens do not make a {height} x {width} map with {num_prefix_tokens} prefix tokens.')
    # explicit channels: with -1, a wrong grid would silently change the number of channels
    return features[:, num_prefix_tokens:].transpose(1, 2).reshape(batch_size, channels, height, width)
