"""What a Masked Image Modeling Method Has to Know of a Model, and Does With It

Everything is read off the model by the embed / stages protocol, nothing is derived from a number of tokens. What the
protocol does not tell is found by a dry run, see `meta_run`.
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

# what it means that a model refuses a method of the protocol
_REFUSALS = dict(
    map_tokens='has no patch tokens apart from their positions that could be replaced',
    keep_tokens='needs its whole grid of tokens and cannot drop any',
    features_to_map='gives no feature map',
    patch_grid='has no grid of patches that divides an image, convolutions of its stem do not pad',
)
# large enough that one patch more or less at the border does not change the rounded stride
_LARGE_IMAGE = 1 << 20


def to_pair(value: Any, name: str) -> Tuple[int, int]:
    """Read a size in pixels, one number or (height, width).

    Raises:
        ValueError: It is something else, or not positive.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(size, int) and size > 0 for size in pair):
        raise ValueError(f'{name} must be a positive number of pixels or a pair (height, width), got {value}.')
    return pair


def model_name(backbone: nn.Module) -> str:
    """Name of a model for messages, its class where it was not built by name."""
    config = getattr(backbone, 'pretrained_cfg', None) or {}
    return config.get('architecture') or type(backbone).__name__


def model_input(backbone: nn.Module) -> Tuple[int, Tuple[int, int]]:
    """Number of channels and size (height, width) of the images that a model was built for."""
    channels, *img_size = get_model_input_config(backbone)['input_size']
    # a model that was not built by timm's factory has no record, its patch embedding knows
    img_size = getattr(getattr(backbone, 'patch_embed', None), 'img_size', None) or img_size
    return channels, to_pair(img_size, 'img_size')


def unsupported_reason(model: Union[nn.Module, Type[nn.Module]], methods: Sequence[str] = ()) -> Optional[str]:
    """Why tokens of a model, or model class, cannot be masked, None if they can.

    Args:
        model: Model or model class.
        methods: Methods of the embed / stages protocol that it must not refuse.
    """
    model_cls = model if isinstance(model, type) else type(model)
    if not has_embed_stages(model):
        return f'{model_cls.__name__} has no embed and forward_stages between which patch tokens could be masked'
    for name in methods:
        if getattr(getattr(model_cls, name), 'refused', False):
            return f'{model_cls.__name__} {_REFUSALS[name]}'
    return None


def refuse_patch_drop(backbone: nn.Module) -> None:
    """Refuse a model that drops patches by itself, before any could be masked.

    Raises:
        MIMUnsupportedError: The model was built with `patch_drop_rate`.
    """
    for module in backbone.modules():
        if isinstance(module, (PatchDropout, PatchDropoutWithIndices)) and module.prob > 0:
            raise MIMUnsupportedError(
                f'{model_name(backbone)} drops patches by itself, with them the places of the masked ones are lost: '
                f'build it with patch_drop_rate=0, not {module.prob}.')


def remove_unused(backbone: nn.Module, unused: List[str]) -> None:
    """Remove the classifier of a model, freeze what else its features do not depend on.

    What is frozen stays in the `state_dict`: a model that `timm.create_model(name, num_classes=0)` builds has it.

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
    """Stride (height, width) of a grid in pixels.

    Args:
        backbone: Model with the embed / stages protocol.
        img_size: Image (height, width) in pixels.
        grid: Method of the protocol that tells the grid, `patch_grid` or `keep_grid`.

    Raises:
        MIMUnsupportedError: The model has no one grid of patches.
        ImageSizeError: The image is not made of whole patches.
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
    """Feature map (B, C, H', W') of images (B, C, H, W) of which nothing is masked."""
    grid = backbone.patch_grid((images.shape[-2], images.shape[-1]))
    return backbone.features_to_map(backbone.forward_stages(backbone.embed(images)), grid)


def num_prefix_tokens(backbone: nn.Module) -> int:
    """Number of prefix tokens in front of the patches in what `forward_stages` returns."""
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
    """Function for `map_tokens` that puts a mask token in the place of masked patches.

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
    """Encode images with a mask token in the place of masked patches, before positions are added.

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
    """Check that cells of a stride tile an image.

    Args:
        backbone: Model, for the message.
        img_size: Image (height, width) in pixels.
        grid: Number of cells (down, across).
        stride: Stride (height, width) of a cell in pixels.

    Raises:
        ImageSizeError: They do not.
    """
    if any(cells * step != size for size, cells, step in zip(img_size, grid, stride)):
        raise ImageSizeError(
            f'{model_name(backbone)} takes images whose height is a multiple of {stride[0]} and width a multiple of '
            f'{stride[1]}, got {img_size[0]} x {img_size[1]} pixels.')
