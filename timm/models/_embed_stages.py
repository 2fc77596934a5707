"""Embed / Stages Protocol

Splits `forward_features` of a vision transformer in two, so that tokens can be replaced or dropped in between:

    tokens = model.embed(images)              # patch + position embedding, prefix tokens
    features = model.forward_stages(tokens)   # == model.forward_features(images)

Shape letters: B batch, C channels, H x W the grid of patch tokens, N = H * W patches, P prefix tokens, K kept patches.
"""
from typing import Callable, Sequence, Tuple

import torch

from ._meta_copy import meta_copy

__all__ = ['EmbedStagesMixin', 'gather_patches', 'map_grid', 'nlc_to_map', 'refuse_patch_grid', 'refused']


def refused(method: Callable) -> Callable:
    """Marks a method of the protocol that raises `NotImplementedError`, so that a class can be asked without a model.

    Also where only some configurations of the class refuse: what a class does not refuse, all of its models do.
    """
    method.refused = True
    return method


class EmbedStagesMixin:
    """Gives a model `embed` and `forward_stages`, the two halves of its `forward_features`.

    A class implements `forward_stages` and, where something besides patches goes in, `embed_positions`. The other
    methods have defaults for a model whose `patch_embed` is a `timm.layers.PatchEmbed`, and for one whose patch tokens
    are on a grid of `grid_format`.

    What `embed` returns is the token tensor, or a NamedTuple with the field `tokens` first if the stages need more.
    Methods that TorchScript compiles carry no return annotation here since it differs between models.
    """
    grid_format = 'NHWC'  # layout of 4-D patch tokens and features, NHWC or NCHW

    def embed_patches(self, x):
        """Embed an image of shape (B, C, H, W) as patch tokens, before positions and prefix tokens."""
        return self.patch_embed(x)

    def embed_positions(self, patches):
        """Add all that precedes the first block: positions, prefix tokens, dropout, norm.

        Never modifies its input in place, which may be an expanded mask token.

        Args:
            patches: What `embed_patches` returned.
        """
        return patches

    def embed(self, x):
        """Embed an image of shape (B, C, H, W), the result is the input of `forward_stages`."""
        return self.embed_positions(self.embed_patches(x))

    def forward_stages(self, embedded):
        """Forward pass through all blocks and the final norm.

        Args:
            embedded: What `embed` returned.
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
        return self._embed_on_meta((256, 256)).shape[-1]  # the width is that of any image

    @torch.jit.ignore
    def patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of the patch tokens of an image.

        Args:
            img_size: Image (height, width) in pixels.

        Raises:
            NotImplementedError: The model has no one grid, or no grid that divides the image.
            RuntimeError: The image is smaller than what `embed_patches` takes.
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
        """Patch tokens (1, H, W, C) without content, which a copy of the model makes of an image on the meta device.

        The copy is made anew each time, of the modules that `embed_patches` runs: a cache would not notice when one of
        them is pruned, replaced, or given another stride.

        Args:
            img_size: Image (height, width) in pixels.
        """
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        with torch.device('meta'):
            patches = meta_copy(self).embed_patches(torch.empty(1, self.in_chans, *img_size, dtype=dtype))
        tokens = patches if isinstance(patches, torch.Tensor) else patches[0]
        if tokens.ndim != 4:
            raise NotImplementedError(
                f'{type(self).__name__} has patch tokens of shape {tuple(tokens.shape)} without a grid, it has to '
                'implement patch_dim and patch_grid.')
        return tokens.permute(0, 2, 3, 1) if self.grid_format == 'NCHW' else tokens

    @torch.jit.ignore
    def keep_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        """Grid (H, W) of what `keep_tokens` counts, the patches, or larger units that a model drops as a whole.

        Args:
            img_size: Image (height, width) in pixels.
        """
        return self.patch_grid(img_size)

    @torch.jit.ignore
    def map_tokens(self, patches, fn: Callable[[torch.Tensor], torch.Tensor]):
        """Apply a function to the patch tokens, leave everything that comes with them untouched.

        Args:
            patches: What `embed_patches` returned.
            fn: Maps tokens (B, N, C), row-major over the patch grid, to new tokens of the same shape.

        Returns:
            The patches in their own layout, with the new tokens.

        Raises:
            ValueError: The tokens are not of the layout and width that the model has.
        """
        if not isinstance(patches, torch.Tensor):
            tokens = self.map_tokens(patches[0], fn)
            if hasattr(patches, '_replace'):
                return patches._replace(**{patches._fields[0]: tokens})
            return type(patches)((tokens, *patches[1:]))
        channels_first = patches.ndim == 4 and self.grid_format == 'NCHW'
        # not in a compiled graph, where finding the width would be traced
        if not torch.compiler.is_compiling() and patches.shape[1 if channels_first else -1] != self.patch_dim:
            raise ValueError(
                f'{type(self).__name__} has patch tokens of width {self.patch_dim}, got a tensor of shape '
                f'{tuple(patches.shape)}.')
        return fn(patches) if patches.ndim == 3 else map_grid(patches, fn, channels_first)

    @torch.jit.ignore
    @refused
    def keep_tokens(self, embedded, keep: torch.Tensor):
        """Keep some of the patch tokens, all prefix tokens, and what belongs to them (rotary embeddings, valid masks).

        Args:
            embedded: What `embed` returned.
            keep: Indices (B, K) int64 of the patches of `keep_grid` to keep, in the order wanted, prefix tokens not
                counted.

        Returns:
            The input of `forward_stages` for the kept tokens.

        Raises:
            NotImplementedError: The stages need the whole grid of tokens.
        """
        raise NotImplementedError(
            f'{type(self).__name__} cannot drop tokens: its stages need the whole grid. Replace them with map_tokens.')

    @torch.jit.ignore
    def features_to_map(self, features, grid_size: Tuple[int, int]) -> torch.Tensor:
        """Arrange the output of `forward_stages` as a feature map.

        Args:
            features: What `forward_stages` returned.
            grid_size: Grid (H, W) of the patch tokens that went in, see `patch_grid`.

        Returns:
            Feature map of shape (B, C, H', W').

        Raises:
            ValueError: The number of features is not that of the grid.
            NotImplementedError: The model has no feature map, or several.
        """
        if not isinstance(features, torch.Tensor):
            raise NotImplementedError(
                f'{type(self).__name__} returns a {type(features).__name__} of {len(features)} tensors, no one feature '
                'map.')
        if features.ndim == 4:
            return features if self.grid_format == 'NCHW' else features.permute(0, 3, 1, 2)
        return nlc_to_map(features, grid_size, getattr(self, 'num_prefix_tokens', 0))


@torch.jit.ignore
@refused
def refuse_patch_grid(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
    """The method `patch_grid` of a model whose stem pads nothing.

    Its patches overlap the border of no image as they overlap each other, so that there are fewer than an image has
    room for, and none stands for the pixels of its cell.

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
        channels_first: The tokens are (B, C, H, W).
    """
    if channels_first:
        return map_grid(tokens.permute(0, 2, 3, 1), fn).permute(0, 3, 1, 2)
    return fn(tokens.flatten(1, 2)).reshape(tokens.shape)


def gather_patches(tokens: torch.Tensor, keep: torch.Tensor, num_prefix_tokens: int = 0) -> torch.Tensor:
    """Gather patch tokens by index, after all of the prefix tokens.

    Args:
        tokens: Tokens of shape (B, P + N, C).
        keep: Patch indices of shape (B, K) int64.
        num_prefix_tokens: Number of prefix tokens P.

    Returns:
        Tokens of shape (B, P + K, C).
    """
    prefix, patches = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
    patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    return torch.cat([prefix, patches], dim=1) if num_prefix_tokens else patches


def nlc_to_map(features: torch.Tensor, grid_size: Sequence[int], num_prefix_tokens: int = 0) -> torch.Tensor:
    """Arrange row-major tokens as a feature map.

    Args:
        features: Features of shape (B, P + N, C).
        grid_size: Grid (H, W), N = H * W.
        num_prefix_tokens: Number of prefix tokens P, left out of the map.

    Returns:
        Feature map of shape (B, C, H, W).
    """
    height, width = grid_size
    batch_size, num_tokens, channels = features.shape
    if num_tokens != num_prefix_tokens + height * width:
        raise ValueError(
            f'{num_tokens} tokens do not make a {height} x {width} map with {num_prefix_tokens} prefix tokens.')
    # the channels are stated, a -1 would turn a wrong grid into wrong channels
    return features[:, num_prefix_tokens:].transpose(1, 2).reshape(batch_size, channels, height, width)
