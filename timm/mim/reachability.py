"""Which Parameters a Tensor Depends On

Read off the graph that autograd records, on the meta device: nothing is computed. A parameter that the graph reaches
may still have a gradient of exactly zero, if all that it contributes to is cut away before the end. So is it in CaiT:
its class token joins the patches behind the last block, and a feature map consists of the patches alone. So the walk
follows a slice through operations that treat each token by itself, up to the `torch.cat` that joined what was cut away.
"""
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn

__all__ = ['unreached']

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
