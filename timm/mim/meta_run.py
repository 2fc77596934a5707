"""Find the feature shapes and the unused parameters of a model by running a copy of it on the meta device.

The copy has no weights, computes no values and draws no random numbers; the model itself stays unchanged.

Unused parameters are found in the autograd graph of the result. A parameter that the graph contains may still have a
gradient of exactly zero, if a slice later removes everything that depends on it. In CaiT, for example, the class token
is concatenated with the patches after the last block, and the feature map contains the patches only. The graph search
therefore follows a slice back through operations that treat each token separately, to the `torch.cat` that concatenated
the removed tokens.
"""

import copy
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from .backbone import check_divides, encode_visible, feature_map, model_name, num_prefix_tokens
from .errors import ImageSizeError, MIMUnsupportedError, first_line
from .extraction import BlockRecorder

__all__ = [
    'FeatureMap', 'VisibleMaps', 'VisibleTokens', 'dry_run', 'dry_run_maps', 'dry_run_visible', 'run_on_meta',
    'unreached',
]

# backward nodes of operations whose output at an index of an axis depends only on their input at the same index, for
# inputs that have the shape of the output; for layer norms this excludes the last axis, which they normalise
_ELEMENTWISE = (
    'AddBackward0', 'CloneBackward0', 'ContiguousBackward0', 'MulBackward0', 'NativeLayerNormBackward0',
    'FusedRmsNormBackward0', 'ToCopyBackward0',
)


class _Range(NamedTuple):
    """The used part of a node's result: indices `start` to `stop` (exclusive) of an axis."""
    axis: int
    start: int
    stop: int


def unreached(result: torch.Tensor, parameters: Dict[str, nn.Parameter]) -> List[str]:
    """Return the names of the parameters that a tensor does not depend on.

    If the graph is inconclusive, the tensor counts as dependent on the parameter.

    Args:
        result: Tensor with its autograd graph.
        parameters: Parameters by name.
    """
    reached, seen, nodes = set(), set(), [(result.grad_fn, None)]
    while nodes:
        node, used = nodes.pop()
        if node is None or (node, used) in seen or (node, None) in seen:
            continue
        seen.add((node, used))
        reached.add(id(getattr(node, 'variable', None)))  # AccumulateGrad nodes hold their parameter
        nodes += _inputs(node, used)
    return [name for name, parameter in parameters.items() if id(parameter) not in reached]


def _inputs(node: Any, used: Optional[_Range]) -> Iterator[Tuple[Any, Optional[_Range]]]:
    """Yield the input nodes of a node, each with the used part of its result (None for all of it)."""
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
    """Return the part of its input that a slice selects, or None for all of it."""
    sizes = getattr(node, '_saved_self_sym_sizes', None)
    if sizes is None:
        return None
    axis = _signed(node._saved_dim) % len(sizes)
    size = int(sizes[axis])
    ends = node._saved_start or 0, size if node._saved_end is None else node._saved_end
    start, stop = (min(max(end + size if end < 0 else end, 0), size) for end in map(_signed, ends))
    return None if (start, stop) == (0, size) else _Range(axis, start, stop)


def _joined(node: Any, used: _Range) -> Iterator[Tuple[Any, Optional[_Range]]]:
    """Yield the inputs of a `torch.cat` that overlap the used part of its output."""
    shapes = [None if following is None else _shape(following, number) for following, number in node.next_functions]
    known = all(shape is not None for shape in shapes)
    axis = _signed(node._saved_dim) % len(shapes[0]) if known else None
    if axis != used.axis:
        # concatenated along another axis, or with a tensor that has no graph and thus no known size
        yield from ((following, None) for following, _ in node.next_functions)
        return
    first = 0
    for (following, _), shape in zip(node.next_functions, shapes):
        last = first + shape[axis]
        if first < used.stop and used.start < last:
            yield following, None
        first = last


def _shape(node: Any, number: int) -> Optional[Sequence[int]]:
    """Return the shape of result number `number` of a node, or None if this version of torch does not record it."""
    if hasattr(node, 'variable'):
        return tuple(node.variable.shape)
    metadata = getattr(node, '_input_metadata', None)  # of the node's incoming gradients
    return tuple(int(size) for size in metadata[number].shape) if metadata else None


def _signed(value: Any) -> int:
    """Return a signed integer that the graph may hold as unsigned."""
    value = int(value)
    return value - (1 << 64) if value >= 1 << 63 else value


class FeatureMap(NamedTuple):
    """Properties of the feature map of a model, see `dry_run`.

    Attributes:
        channels: Number of channels of the feature map.
        stride: Stride (height, width) of the feature map in pixels.
        unused: Names of the trainable parameters that the feature map does not depend on.
    """
    channels: int
    stride: Tuple[int, int]
    unused: List[str]


class VisibleMaps(NamedTuple):
    """Properties of the outputs of a model's blocks for visible patches, see `dry_run_maps`.

    Attributes:
        channels: Width of the outputs.
        unused: Names of the trainable parameters that the outputs do not depend on.
        blocks: Numbers of the blocks. None stands for the features that the model returns instead.
    """
    channels: int
    unused: List[str]
    blocks: Optional[List[int]]


class VisibleTokens(NamedTuple):
    """Properties of the tokens that a model returns for visible patches, see `dry_run_visible`.

    Attributes:
        channels: Width of the tokens.
        unused: Names of the trainable parameters that the tokens do not depend on.
    """
    channels: int
    unused: List[str]


def dry_run(backbone: nn.Module, in_chans: int, img_size: Tuple[int, int]) -> FeatureMap:
    """Find the properties of a model's feature map for an image size, without running the model.

    Args:
        backbone: Model with the embed / stages protocol.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.

    Raises:
        MIMUnsupportedError: The model has no feature map.
        ImageSizeError: The model does not accept images of that size, or pads them.
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
    """Find the properties of a model's output for visible patches, without running the model.

    Args:
        backbone: Model with the embed / stages protocol.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        num_visible: Number of visible patches.

    Raises:
        MIMUnsupportedError: The model cannot drop tokens, or does not return one token per patch.
        ImageSizeError: The model does not accept images of that size.
    """
    def visible_tokens(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
        visible = torch.zeros(len(images), num_visible, dtype=torch.int64, device=images.device)
        return encode_visible(replica, images, visible)

    tokens, unused = run_on_meta(backbone, in_chans, img_size, visible_tokens, 'cannot drop tokens')
    if tokens.ndim != 3 or tokens.shape[1] != num_prefix_tokens(backbone) + num_visible:
        raise MIMUnsupportedError(
            f'{model_name(backbone)} does not return one token per visible patch: for {num_visible} patches and '
            f'{num_prefix_tokens(backbone)} prefix tokens it returns a tensor of shape {tuple(tokens.shape)}.')
    return VisibleTokens(tokens.shape[2], unused)


def dry_run_maps(
        backbone: nn.Module,
        in_chans: int,
        img_size: Tuple[int, int],
        num_visible: int,
) -> VisibleMaps:
    """Find the blocks whose outputs for visible patches have the shape of the features that the model returns.

    Hiera, for example, has them in its last stage only. CaiT adds the class token after its blocks, and has none.

    Args:
        backbone: Model with the embed / stages protocol.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        num_visible: Number of visible patches.

    Raises:
        MIMUnsupportedError: The model cannot drop tokens, or does not return one token per patch.
        ImageSizeError: The model does not accept images of that size.
    """
    tokens = dry_run_visible(backbone, in_chans, img_size, num_visible)
    blocks: List[int] = []

    def sum_of_maps(replica: nn.Module, images: torch.Tensor) -> torch.Tensor:
        visible = torch.zeros(len(images), num_visible, dtype=torch.int64, device=images.device)
        features, outputs = BlockRecorder(replica).record(lambda: encode_visible(replica, images, visible))
        blocks.extend(number for number, output in enumerate(outputs) if output.shape == features.shape)
        return torch.stack([outputs[number] for number in blocks]).sum(0) if blocks else features

    _, unused = run_on_meta(backbone, in_chans, img_size, sum_of_maps, 'cannot drop tokens')
    return VisibleMaps(tokens.channels, unused, blocks) if blocks else VisibleMaps(tokens.channels, tokens.unused, None)


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
        backbone: Model; a copy of it runs.
        in_chans: Number of image channels.
        img_size: Image (height, width) in pixels.
        run: Function of the copy and the images.
        refusal: Error message if the model raises `NotImplementedError`.

    Returns:
        The result of the function, and the names of the trainable parameters that it does not depend on.
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
            f'channels: {first_line(error)} Build the model for such images (img_size=, in_chans=), or, if it has the '
            f'option, for any image size (dynamic_img_size=True).') from error
    return features, unreached(features, parameters)


def _meta_replica(backbone: nn.Module) -> nn.Module:
    """Return a copy of a model on the meta device in eval mode, without a temporary copy of its weights."""
    memo = {}
    for module in backbone.modules():
        # plain tensor attributes too: ConViT, for example, has a cache in one
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
            module._fast_norm = False  # fast norms query the autocast state, which the meta device does not have
    return replica


def _feature_stride(
        backbone: nn.Module,
        img_size: Tuple[int, int],
        grid: Tuple[int, int],
        map_size: Tuple[int, int],
) -> Tuple[int, int]:
    """Return the stride (height, width) of the feature map in pixels."""
    stride = []
    for size, patches, cells in zip(img_size, grid, map_size):
        # stages halve the grid, after padding it to an even size: the reduction is a power of two
        reduction = 1
        while reduction * cells < patches:
            reduction *= 2
        if -(-patches // reduction) != cells and patches % cells == 0:
            reduction = patches // cells  # not the result of halving: the model pools to a fixed size
        stride.append(reduction * size // patches)
    check_divides(backbone, img_size, map_size, stride)
    return tuple(stride)
