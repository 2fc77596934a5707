""" What a Masked Image Modeling Method Has to Know of a Model

Everything is read off the model, by the embed / stages protocol and by one dry run, nothing is derived from a number of
tokens. The dry run takes place on a copy of the model's structure on the meta device: it computes nothing, holds no
weights, draws no random numbers, and leaves no trace in the model.
"""
import copy
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type, Union

import torch
import torch.nn as nn

from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models import get_model_input_config, has_embed_stages

from .output import MIMUnsupportedError

__all__ = [
    'FeatureMap', 'VisibleTokens', 'dry_run', 'dry_run_visible', 'encode_visible', 'feature_map', 'model_input',
    'model_name', 'num_prefix_tokens', 'patch_stride', 'refuse_patch_drop', 'remove_unused', 'to_pair',
    'unsupported_reason',
]

# what it means that a model refuses a method of the protocol
_REFUSALS = dict(
    map_tokens='has no patch tokens apart from their positions that could be replaced',
    keep_tokens='needs its whole grid of tokens and cannot drop any',
    features_to_map='gives no feature map',
)
# large enough that one patch more or less at the border does not change the rounded stride
_LARGE_IMAGE = 1 << 20


class FeatureMap(NamedTuple):
    """ The feature map of a model, as a dry run found it.

    Attributes:
        channels: Width of the feature map.
        stride: Stride (height, width) of the feature map in pixels.
        unused: Names of the trainable parameters that the feature map does not depend on.
    """
    channels: int
    stride: Tuple[int, int]
    unused: List[str]


class VisibleTokens(NamedTuple):
    """ What a model makes of the visible patches of an image, as a dry run found it.

    Attributes:
        channels: Width of the tokens.
        unused: Names of the trainable parameters that the tokens do not depend on.
    """
    channels: int
    unused: List[str]


def to_pair(value: Any, name: str) -> Tuple[int, int]:
    """ Read a size in pixels, one number or (height, width).

    Raises:
        ValueError: It is something else, or not positive.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(size, int) and size > 0 for size in pair):
        raise ValueError(f'{name} must be a positive number of pixels or a pair (height, width), got {value}.')
    return pair


def model_name(backbone: nn.Module) -> str:
    """ Name of a model for messages, its class where it was not built by name.
    """
    config = getattr(backbone, 'pretrained_cfg', None) or {}
    return config.get('architecture') or type(backbone).__name__


def model_input(backbone: nn.Module) -> Tuple[int, Tuple[int, int]]:
    """ Number of channels and size (height, width) of the images that a model was built for.
    """
    channels, *img_size = get_model_input_config(backbone)['input_size']
    # a model that was not built by timm's factory has no record, its patch embedding knows
    img_size = getattr(getattr(backbone, 'patch_embed', None), 'img_size', None) or img_size
    return channels, to_pair(img_size, 'img_size')


def unsupported_reason(model: Union[nn.Module, Type[nn.Module]], methods: Sequence[str] = ()) -> Optional[str]:
    """ Why tokens of a model, or model class, cannot be masked, None if they can.

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
    """ Refuse a model that drops patches by itself, before any could be masked.

    Raises:
        MIMUnsupportedError: The model was built with `patch_drop_rate`.
    """
    for module in backbone.modules():
        if isinstance(module, (PatchDropout, PatchDropoutWithIndices)) and module.prob > 0:
            raise MIMUnsupportedError(
                f'{model_name(backbone)} drops patches by itself, with them the places of the masked ones are lost: '
                f'build it with patch_drop_rate=0, not {module.prob}.')


def remove_unused(backbone: nn.Module, unused: List[str]) -> None:
    """ Remove the classifier of a model, freeze what else its features do not depend on.

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
    """ Stride (height, width) of a grid in pixels.

    Args:
        backbone: Model with the embed / stages protocol.
        img_size: Image (height, width) in pixels.
        grid: Method of the protocol that tells the grid, `patch_grid` or `keep_grid`.

    Raises:
        MIMUnsupportedError: The model has no one grid of patches.
        ValueError: The image is not made of whole patches.
    """
    try:
        grid_size = getattr(backbone, grid)(img_size)
        large_grid_size = getattr(backbone, grid)((_LARGE_IMAGE, _LARGE_IMAGE))
    except NotImplementedError as error:
        raise MIMUnsupportedError(f'{model_name(backbone)} has no patch grid: {_first_line(error)}') from error
    stride = tuple(round(_LARGE_IMAGE / cells) for cells in large_grid_size)
    _check_divides(backbone, img_size, grid_size, stride)
    return stride


def dry_run(backbone: nn.Module, in_chans: int, img_size: Tuple[int, int]) -> FeatureMap:
    """ Find the feature map of a model for images of a size, without running the model.

    Args:
        backbone: Model with the embed / stages protocol.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.

    Raises:
        MIMUnsupportedError: The model has no feature map.
        ValueError: The model does not take images of that size, or pads them.
    """
    features, unused = _run_on_meta(backbone, in_chans, img_size, feature_map, 'gives no feature map')
    _, channels, *map_size = features.shape
    return FeatureMap(channels, _feature_stride(backbone, img_size, backbone.patch_grid(img_size), map_size), unused)


def dry_run_visible(
        backbone: nn.Module,
        in_chans: int,
        img_size: Tuple[int, int],
        num_visible: int,
) -> VisibleTokens:
    """ Find what a model makes of some of the patches of an image, without running the model.

    Args:
        backbone: Model with the embed / stages protocol.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        num_visible: Number of visible patches.

    Raises:
        MIMUnsupportedError: The model cannot drop tokens, or does not give a token per patch.
        ValueError: The model does not take images of that size.
    """
    def visible_tokens(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
        keep = torch.zeros(len(images), num_visible, dtype=torch.int64, device=images.device)
        return replica.forward_stages(replica.keep_tokens(replica.embed(images), keep))

    tokens, unused = _run_on_meta(backbone, in_chans, img_size, visible_tokens, 'cannot drop tokens')
    if tokens.ndim != 3 or tokens.shape[1] != num_prefix_tokens(backbone) + num_visible:
        raise MIMUnsupportedError(
            f'{model_name(backbone)} does not give a token for each visible patch: of {num_visible} and '
            f'{num_prefix_tokens(backbone)} prefix tokens it makes a tensor of shape {tuple(tokens.shape)}.')
    return VisibleTokens(tokens.shape[2], unused)


def feature_map(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """ Feature map (B, C, H', W') of images (B, C, H, W) of which nothing is masked.
    """
    grid = backbone.patch_grid((images.shape[-2], images.shape[-1]))
    return backbone.features_to_map(backbone.forward_stages(backbone.embed(images)), grid)


def num_prefix_tokens(backbone: nn.Module) -> int:
    """ Number of prefix tokens in front of the patches in what `forward_stages` returns.
    """
    return getattr(backbone, 'num_prefix_tokens', 0)


def encode_visible(
        backbone: nn.Module,
        images: torch.Tensor,
        pixel_mask: torch.Tensor,
        visible: torch.Tensor,
) -> torch.Tensor:
    """ Encode the visible patches of images, without a trace of the others.

    Args:
        backbone: Model with the embed / stages protocol.
        images: Images of shape (B, C, H, W).
        pixel_mask: Masked pixels of shape (B, 1, H, W) bool.
        visible: Indices of the visible patches of shape (B, K).

    Returns:
        Prefix tokens and visible patches of shape (B, P + K, C).
    """
    # where a stem overlaps, a visible token holds pixels of masked neighbours
    embedded = backbone.embed(images.masked_fill(pixel_mask, 0.))
    return backbone.forward_stages(backbone.keep_tokens(embedded, visible))


@torch.enable_grad()
def _run_on_meta(
        backbone: nn.Module,
        in_chans: int,
        img_size: Tuple[int, int],
        run: Callable[[nn.Module, torch.Tensor], torch.Tensor],
        refusal: str,
) -> Tuple[torch.Tensor, List[str]]:
    """ Run a function of a model and images on the meta device.

    Args:
        backbone: Model, of which a replica is run.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        run: Function of the replica and of images.
        refusal: What it means if the model refuses.

    Returns:
        What the function returned, and the names of the trainable parameters that it does not depend on.
    """
    replica = _meta_replica(backbone)
    parameters = {name: parameter for name, parameter in replica.named_parameters() if parameter.requires_grad}
    dtype = next((p.dtype for p in replica.parameters() if p.is_floating_point()), None)
    images = torch.empty(2, in_chans, *img_size, device='meta', dtype=dtype)
    try:
        features = run(replica, images)
    except NotImplementedError as error:
        raise MIMUnsupportedError(f'{model_name(backbone)} {refusal}: {_first_line(error)}') from error
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'{model_name(backbone)} does not take images of {img_size[0]} x {img_size[1]} pixels with {in_chans} '
            f'channels: {_first_line(error)} Build it for them (img_size=, in_chans=), or for any size where it has '
            f'that option (dynamic_img_size=True).') from error
    return features, _unused_parameters(features, parameters)


def _meta_replica(backbone: nn.Module) -> nn.Module:
    """ Copy a model in eval mode to the meta device, without copying its weights in between.
    """
    memo = {}
    for module in backbone.modules():
        # plain tensor attributes too, ConViT for one keeps a cache in one
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False), *vars(module).values())
        for value in tensors:
            if isinstance(value, torch.Tensor):
                empty = torch.empty_like(value, device='meta', requires_grad=False)
                is_parameter = isinstance(value, nn.Parameter)
                memo[id(value)] = nn.Parameter(empty, value.requires_grad) if is_parameter else empty
    replica = copy.deepcopy(backbone, memo).eval()
    if hasattr(replica, 'set_grad_checkpointing'):
        replica.set_grad_checkpointing(False)
    return replica


def _unused_parameters(features: torch.Tensor, parameters: Dict[str, nn.Parameter]) -> List[str]:
    """ Names of the parameters that a backward pass would not reach, read off the graph: nothing has to be computed.
    """
    used, seen, nodes = set(), set(), [features.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        used.add(id(getattr(node, 'variable', None)))  # where gradients of a parameter are accumulated
        nodes += [following for following, _ in node.next_functions]
    return [name for name, parameter in parameters.items() if id(parameter) not in used]


def _feature_stride(
        backbone: nn.Module,
        img_size: Tuple[int, int],
        grid: Tuple[int, int],
        map_size: Tuple[int, int],
) -> Tuple[int, int]:
    """ Stride (height, width) of the feature map in pixels.
    """
    stride = []
    for size, patches, cells in zip(img_size, grid, map_size):
        # stages halve the grid, an odd one is padded: the power of two is what they reduce by, padded or not
        reduction = 1
        while reduction * cells < patches:
            reduction *= 2
        stride.append(reduction * size // patches)
    _check_divides(backbone, img_size, map_size, stride)
    return tuple(stride)


def _check_divides(
        backbone: nn.Module,
        img_size: Tuple[int, int],
        grid: Tuple[int, int],
        stride: Tuple[int, int],
) -> None:
    if any(cells * step != size for size, cells, step in zip(img_size, grid, stride)):
        raise ValueError(
            f'{model_name(backbone)} takes images whose height is a multiple of {stride[0]} and width a multiple of '
            f'{stride[1]}, got {img_size[0]} x {img_size[1]} pixels.')


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n')[0] or type(error).__name__
