""" Dry Runs: What a Model Makes of Images, Without Running It

On a copy of the model's structure on the meta device: it computes nothing, holds no weights, draws no random numbers,
and leaves no trace in the model.
"""
import copy
from typing import Callable, List, NamedTuple, Tuple

import torch
import torch.nn as nn

from .backbone import check_divides, feature_map, first_line, model_name, num_prefix_tokens
from .output import ImageSizeError, MIMUnsupportedError
from .reachability import unreached

__all__ = ['FeatureMap', 'VisibleTokens', 'dry_run', 'dry_run_visible', 'run_on_meta']


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


def dry_run(backbone: nn.Module, in_chans: int, img_size: Tuple[int, int]) -> FeatureMap:
    """ Find the feature map of a model for images of a size, without running the model.

    Args:
        backbone: Model with the embed / stages protocol.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.

    Raises:
        MIMUnsupportedError: The model has no feature map.
        ImageSizeError: The model does not take images of that size, or pads them.
    """
    features, unused = run_on_meta(backbone, in_chans, img_size, feature_map, 'gives no feature map')
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
        ImageSizeError: The model does not take images of that size.
    """
    def visible_tokens(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
        keep = torch.zeros(len(images), num_visible, dtype=torch.int64, device=images.device)
        return replica.forward_stages(replica.keep_tokens(replica.embed(images), keep))

    tokens, unused = run_on_meta(backbone, in_chans, img_size, visible_tokens, 'cannot drop tokens')
    if tokens.ndim != 3 or tokens.shape[1] != num_prefix_tokens(backbone) + num_visible:
        raise MIMUnsupportedError(
            f'{model_name(backbone)} does not give a token for each visible patch: of {num_visible} and '
            f'{num_prefix_tokens(backbone)} prefix tokens it makes a tensor of shape {tuple(tokens.shape)}.')
    return VisibleTokens(tokens.shape[2], unused)


@torch.enable_grad()
def run_on_meta(
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
    except (MIMUnsupportedError, NotImplementedError) as error:
        raise MIMUnsupportedError(f'{model_name(backbone)} {refusal}: {first_line(error)}') from error
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ImageSizeError(
            f'{model_name(backbone)} does not take images of {img_size[0]} x {img_size[1]} pixels with {in_chans} '
            f'channels: {first_line(error)} Build it for them (img_size=, in_chans=), or for any size where it has '
            f'that option (dynamic_img_size=True).') from error
    return features, unreached(features, parameters)


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
    for module in replica.modules():
        if getattr(module, '_fast_norm', False):
            module._fast_norm = False  # it asks for autocast of the device, which the meta device does not have
    return replica


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
        # stages halve the grid and pad an odd one: the power of two is what they reduce by, padded or not
        reduction = 1
        while reduction * cells < patches:
            reduction *= 2
        if -(-patches // reduction) != cells and patches % cells == 0:
            reduction = patches // cells  # no halving gives that map, it was pooled to a size of its own
        stride.append(reduction * size // patches)
    check_divides(backbone, img_size, map_size, stride)
    return tuple(stride)
