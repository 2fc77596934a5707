"""Learn what a method needs to know about a model by running a copy of it on the meta device.

The copy computes no values, holds no weights, draws no random numbers, and leaves the model unchanged. It tells the
shapes of features, and which parameters the result depends on.

Parameters are read off the graph that autograd records. A parameter that the graph reaches may still have a gradient of
exactly zero, if everything that it contributes to is cut away before the end. In CaiT, for example, the class token
joins the patches after the last block, and a feature map consists of the patches alone. The walk therefore follows a
slice through operations that treat each token separately, up to the `torch.cat` that joined what was cut away.
"""

import copy
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .backbone import check_divides, feature_map, model_name, num_prefix_tokens
from .errors import ImageSizeError, MIMUnsupportedError, first_line

__all__ = ['FeatureMap', 'VisibleTokens', 'dry_run', 'dry_run_visible', 'run_on_meta', 'unreached']

# backward nodes of operations whose output at one place of an axis depends on their input at that place alone, for
# inputs of the output's shape; the layer norms normalise the last axis
_ELEMENTWISE = (
    'AddBackward0', 'CloneBackward0', 'ContiguousBackward0', 'MulBackward0', 'NativeLayerNormBackward0',
    'FusedRmsNormBackward0', 'ToCopyBackward0',
)


class _Range(NamedTuple):
    """The part of the result of a node that is used: places `start` to `stop` of an axis."""
    axis: int
    start: int
    stop: int


def unreached(result: torch.Tensor, parameters: Dict[str, nn.Parameter]) -> List[str]:
    """Names of the parameters that a tensor does not depend on.

    Where the graph does not tell, a parameter counts as one that it does depend on.

    Args:
        result: Tensor, with its graph.
        parameters: Parameters by name.
    """
    reached, seen, nodes = set(), set(), [(result.grad_fn, None)]
    while nodes:
        node, used = nodes.pop()
        if node is None or (node, used) in seen or (node, None) in seen:
            continue
        seen.add((node, used))
        reached.add(id(getattr(node, 'variable', None)))  # where gradients of a parameter are accumulated
        nodes += _inputs(node, used)
    return [name for name, parameter in parameters.items() if id(parameter) not in reached]


def _inputs(node: Any, used: Optional[_Range]) -> Iterator[Tuple[Any, Optional[_Range]]]:
    """The nodes whose results a node takes, each with the part of it that is used, None for all."""
    name = node.name()
    if name == 'SliceBackward0' and used is None:
        yield from ((following, _cut(node)) for following, _ in node.next_functions)
    elif name == 'CatBackward0' and used is not None:
        yield from _joined(node, used)
    elif name in _ELEMENTWISE and used is not None:
        shape = _shape(node, 0)
        for following, number in node.next_functions:
            same = following is not None and shape is not None and _shape(following, number) == shape
            is_last = used.axis == len(shape or ()) - 1
            yield following, used if same and not is_last else None
    else:
        yield from ((following, None) for following, _ in node.next_functions)


def _cut(node: Any) -> Optional[_Range]:
    """The part of its input that a slice takes, None if it takes all of it."""
    sizes = getattr(node, '_saved_self_sym_sizes', None)
    if sizes is None:
        return None
    axis = _signed(node._saved_dim) % len(sizes)
    size = int(sizes[axis])
    ends = node._saved_start or 0, size if node._saved_end is None else node._saved_end
    start, stop = (min(max(end + size if end < 0 else end, 0), size) for end in map(_signed, ends))
    return None if (start, stop) == (0, size) else _Range(axis, start, stop)


def _joined(node: Any, used: _Range) -> Iterator[Tuple[Any, Optional[_Range]]]:
    """The inputs of a `torch.cat` of which some part is used."""
    shapes = [None if following is None else _shape(following, number) for following, number in node.next_functions]
    known = all(shape is not None for shape in shapes)
    axis = _signed(node._saved_dim) % len(shapes[0]) if known else None
    if axis != used.axis:
        # joined along another axis, or of a tensor without a graph, whose size is not known
        yield from ((following, None) for following, _ in node.next_functions)
        return
    first = 0
    for (following, _), shape in zip(node.next_functions, shapes):
        last = first + shape[axis]
        if first < used.stop and used.start < last:
            yield following, None
        first = last


def _shape(node: Any, number: int) -> Optional[Sequence[int]]:
    """Shape of a result of a node, None where this version of torch does not tell."""
    if hasattr(node, 'variable'):
        return tuple(node.variable.shape)
    metadata = getattr(node, '_input_metadata', None)  # of the gradient that comes in
    return tuple(int(size) for size in metadata[number].shape) if metadata else None


def _signed(value: Any) -> int:
    """An integer that the graph may hold as unsigned."""
    value = int(value)
    return value - (1 << 64) if value >= 1 << 63 else value


class FeatureMap(NamedTuple):
    """The feature map of a model, as a dry run found it.

    Attributes:
        channels: Width of the feature map.
        stride: Stride (height, width) of the feature map in pixels.
        unused: Names of the trainable parameters that the feature map does not depend on.
    """
    channels: int
    stride: Tuple[int, int]
    unused: List[str]


class VisibleTokens(NamedTuple):
    """What a model makes of the visible patches of an image, as a dry run found it.

    Attributes:
        channels: Width of the tokens.
        unused: Names of the trainable parameters that the tokens do not depend on.
    """
    channels: int
    unused: List[str]


def dry_run(backbone: nn.Module, in_chans: int, img_size: Tuple[int, int]) -> FeatureMap:
    """Find the feature map of a model for images of a size, without running the model.

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
    """Find what a model makes of some of the patches of an image, without running the model.

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
    """Run a function of a model and images on the meta device.

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
    """Copy a model in eval mode to the meta device, without copying its weights in between."""
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
    """Stride (height, width) of the feature map in pixels."""
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
