"""Functions with which a masked image modeling method inspects a model and encodes images.

All information about a model comes from the embed / stages protocol; nothing is inferred from the number of tokens.
`meta_run` finds what the protocol does not define, such as the width of the features.
"""
from typing import Any, Callable, List, Optional, Sequence, Tuple, Type, Union

import torch
import torch.nn as nn

from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models import get_model_input_config, has_embed_stages

from .errors import ImageSizeError, MIMUnsupportedError, first_line

__all__ = [
    'check_divides', 'encode_visible', 'encode_with_mask_token', 'feature_map', 'insert_mask_token',
    'model_input', 'model_name', 'num_prefix_tokens', 'patch_stride', 'refuse_patch_drop', 'remove_unused', 'to_pair',
    'unsupported_reason',
]

# error message for each protocol method that a model refuses
_REFUSALS = dict(
    map_tokens='has no patch tokens that can be replaced before positions are added',
    keep_tokens='needs its whole grid of tokens and cannot drop any',
    features_to_map='gives no feature map',
    patch_grid='has no grid of patches that divides an image: convolutions of its stem do not pad',
)
# image side in pixels, so large that one patch more or less at the border does not change the rounded stride
_LARGE_IMAGE = 1 << 20


def to_pair(value: Any, name: str) -> Tuple[int, int]:
    """Return a size in pixels, given as one number or (height, width), as a pair.

    Raises:
        ValueError: The size is not a positive integer or a pair of them.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(size, int) and size > 0 for size in pair):
        raise ValueError(f'{name} must be a positive number of pixels or a pair (height, width), got {value}.')
    return pair


def model_name(backbone: nn.Module) -> str:
    """Return the name of a model for messages: its architecture, or its class if it was not created by name."""
    config = getattr(backbone, 'pretrained_cfg', None) or {}
    return config.get('architecture') or type(backbone).__name__


def model_input(backbone: nn.Module) -> Tuple[int, Tuple[int, int]]:
    """Return the number of channels and the size (height, width) of the images that a model was built for."""
    channels, *img_size = get_model_input_config(backbone)['input_size']
    # a model that timm's factory did not build has no config; its patch embedding holds the size
    img_size = getattr(getattr(backbone, 'patch_embed', None), 'img_size', None) or img_size
    return channels, to_pair(img_size, 'img_size')


def unsupported_reason(model: Union[nn.Module, Type[nn.Module]], methods: Sequence[str] = ()) -> Optional[str]:
    """Return why the tokens of a model or model class cannot be masked, or None if they can.

    Args:
        model: Model or model class.
        methods: Names of the protocol methods that the caller needs.
    """
    model_cls = model if isinstance(model, type) else type(model)
    if not has_embed_stages(model):
        return f'{model_cls.__name__} has no embed and forward_stages between which patch tokens could be masked'
    for name in methods:
        if getattr(getattr(model_cls, name), 'refused', False):
            return f'{model_cls.__name__} {_REFUSALS[name]}'
    return None


def refuse_patch_drop(backbone: nn.Module) -> None:
    """Refuse a model with patch dropout, which would remove random patches before they can be masked.

    Raises:
        MIMUnsupportedError: The model was built with `patch_drop_rate`.
    """
    for module in backbone.modules():
        if isinstance(module, (PatchDropout, PatchDropoutWithIndices)) and module.prob > 0:
            raise MIMUnsupportedError(
                f'{model_name(backbone)} drops random patches itself (patch_drop_rate={module.prob}), so the masked '
                f'patches cannot be located: build it with patch_drop_rate=0.')


def remove_unused(backbone: nn.Module, unused: List[str]) -> None:
    """Remove the classifier of a model, and freeze the other parameters that its features do not depend on.

    Frozen parameters stay in the `state_dict`, which thus matches `timm.create_model(name, num_classes=0)`.

    Args:
        backbone: Model, changed in place.
        unused: Names of the unused parameters, see `FeatureMap`.
    """
    if getattr(backbone, 'num_classes', 0):
        backbone.reset_classifier(0)
    for name, parameter in backbone.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)


def patch_stride(
        backbone: nn.Module,
        img_size: Tuple[int, int],
        grid: str = 'patch_grid',
) -> Tuple[int, int]:
    """Return the stride (height, width) of a grid in pixels.

    Args:
        backbone: Model with the embed / stages protocol.
        img_size: Image (height, width) in pixels.
        grid: Name of the protocol method that returns the grid, `patch_grid` or `keep_grid`.

    Raises:
        MIMUnsupportedError: The model has no single grid of patches.
        ImageSizeError: The image size is not a multiple of the stride.
    """
    try:
        grid_size = getattr(backbone, grid)(img_size)
        large_grid_size = getattr(backbone, grid)((_LARGE_IMAGE, _LARGE_IMAGE))
    except NotImplementedError as error:
        raise MIMUnsupportedError(f'{model_name(backbone)} has no patch grid: {first_line(error)}') from error
    stride = tuple(round(_LARGE_IMAGE / cells) for cells in large_grid_size)
    check_divides(backbone, img_size, grid_size, stride)
    return stride


def feature_map(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the feature map (B, C, H', W') of unmasked images (B, C, H, W)."""
    grid = backbone.patch_grid((images.shape[-2], images.shape[-1]))
    return backbone.features_to_map(backbone.forward_stages(backbone.embed(images)), grid)


def num_prefix_tokens(backbone: nn.Module) -> int:
    """Return the number of prefix tokens in front of the patches in the output of `forward_stages`."""
    return getattr(backbone, 'num_prefix_tokens', 0)


def encode_visible(backbone: nn.Module, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Encode the visible patches of images.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W) whose masked pixels are blank, see `MIMMethod.blank`.
        visible: Indices of the visible patches of shape (B, K).

    Returns:
        Prefix tokens and visible patches of shape (B, P + K, C).
    """
    return backbone.forward_stages(backbone.keep_tokens(backbone.embed(images), visible))


def insert_mask_token(mask: torch.Tensor, mask_token: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function for `map_tokens` that replaces masked patches by a mask token.

    Args:
        mask: Masked patches of shape (B, h, w) bool.
        mask_token: Token of shape (1, 1, D).
    """
    masked = mask.flatten(1).unsqueeze(-1)  # (B, N, 1)
    return lambda tokens: torch.where(masked, mask_token.to(tokens.dtype), tokens)  # (B, N, D)


def encode_with_mask_token(
        backbone: nn.Module,
        images: torch.Tensor,
        mask: torch.Tensor,
        mask_token: torch.Tensor,
) -> torch.Tensor:
    """Encode images whose masked patches are replaced by a mask token before positions are added.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W) whose masked pixels are blank, see `MIMMethod.blank`.
        mask: Masked patches of shape (B, h, w) bool.
        mask_token: Token of shape (1, 1, D).

    Returns:
        Feature map of shape (B, C, H', W').
    """
    patches = backbone.map_tokens(backbone.embed_patches(images), insert_mask_token(mask, mask_token))
    features = backbone.forward_stages(backbone.embed_positions(patches))
    return backbone.features_to_map(features, (mask.shape[1], mask.shape[2]))


def check_divides(
        backbone: nn.Module,
        img_size: Tuple[int, int],
        grid: Tuple[int, int],
        stride: Tuple[int, int],
) -> None:
    """Check that a grid of cells covers an image exactly.

    Args:
        backbone: Model, for the error message.
        img_size: Image (height, width) in pixels.
        grid: Number of cells (down, across).
        stride: Size (height, width) of a cell in pixels.

    Raises:
        ImageSizeError: The image size differs from the number of cells times the stride.
    """
    if any(cells * step != size for size, cells, step in zip(img_size, grid, stride)):
        raise ImageSizeError(
            f'{model_name(backbone)} takes images whose height is a multiple of {stride[0]} and width a multiple of '
            f'{stride[1]}, got {img_size[0]} x {img_size[1]} pixels.')


def default_num_heads(backbone: nn.Module, width: int) -> int:
    """Return the number of attention heads of the first block (12 if unknown), reduced until it divides a width."""
    numbers = (getattr(module, 'num_heads', None) for module in backbone.modules())
    num_heads = next((number for number in numbers if isinstance(number, int)), 12)
    return next(heads for heads in range(num_heads, 0, -1) if width % heads == 0)


def has_class_token(backbone: nn.Module) -> bool:
    """Whether the first prefix token of a model is a class token."""
    holders = (backbone, getattr(backbone, 'embeds', None))  # NaFlexVit keeps its tokens in `embeds`
    return any(getattr(holder, 'cls_token', None) is not None for holder in holders)
