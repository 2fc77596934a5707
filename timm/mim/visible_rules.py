"""Rules for operations that act on each value, mix neighbouring cells, or move values."""
import math
from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch

from .errors import MIMUnsupportedError
from .visible_map import VisibleMap, data_of, rule, seen_in_all

# operations on each value by itself. The result of these is 0 where their first argument is 0
_KEEP_ZERO = {
    'relu', 'relu_', 'relu6', 'gelu', 'silu', 'hardswish', 'tanh', 'leaky_relu', 'leaky_relu_', 'elu', 'elu_', 'mish',
    'celu', 'selu', 'dropout', 'neg', '__neg__', 'abs', 'square', 'sqrt', 'clone', 'contiguous', 'to', 'float', 'half',
    'bfloat16', 'type', 'detach', 'mul', 'mul_', '__mul__', '__rmul__', '__imul__', 'multiply', 'div', 'div_',
    '__truediv__', '__itruediv__', 'alpha_dropout', 'feature_dropout', 'dropout2d', 'prelu', 'hardtanh', 'hardtanh_',
}
# the result of these is 0 where all their arguments are 0
_ADD = {'add', 'add_', '__add__', '__radd__', '__iadd__', 'sub', 'sub_', '__sub__', '__isub__'}
_POINTWISE = _KEEP_ZERO | _ADD | {
    'sigmoid', 'sigmoid_', 'hardsigmoid', 'softplus', 'logsigmoid', 'clamp', 'clamp_', 'clip', 'exp', 'log', 'rsqrt',
    'pow', '__pow__', '__rsub__', 'rsub', '__rtruediv__', 'reciprocal', 'sin', 'cos', 'maximum', 'minimum', 'where',
    'lerp', 'softsign', 'addcmul',
}


@rule(*_POINTWISE)
def _pointwise(func: Callable, *args: Any, **kwargs: Any) -> VisibleMap:
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, (VisibleMap, torch.Tensor))]
    maps = [value for value in operands if isinstance(value, VisibleMap)]
    data = func(*map(data_of, args), **{name: data_of(value) for name, value in kwargs.items()})
    visible = seen_in_all(maps, data.ndim)
    name = func.__name__
    is_zero = all(value.is_zero for value in maps) and (
        name in _KEEP_ZERO and not (len(maps) > 1 and 'div' in name)
        or name in _ADD and all(isinstance(value, VisibleMap) or _is_zero(value) for value in args[:2]))
    if isinstance(args[0], VisibleMap) and data is args[0].data:  # in place: other references to the map see it too
        args[0].visible, args[0].is_zero = visible, is_zero
        return args[0]
    return VisibleMap(data, visible, maps[0].units, is_zero)


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


# operations that mix neighbouring cells


@rule('conv2d')
def _conv2d(
        func: Callable, input: VisibleMap, weight: torch.Tensor, bias: Optional[torch.Tensor] = None, *args, **kwargs,
) -> VisibleMap:
    is_pointwise = tuple(weight.shape[2:]) == (1, 1) and input.visible.shape[1] == 1
    data = func(input.data if is_pointwise else input.zeroed(), weight, bias, *args, **kwargs)
    return input.resized(data, is_pointwise and input.is_zero and bias is None)


@rule('linear')
def _linear(func: Callable, input: VisibleMap, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> VisibleMap:
    if input.visible.shape[-1] != 1:
        raise MIMUnsupportedError('there is no rule for a linear layer that mixes cells')
    return input.like(func(input.data, weight, bias), input.is_zero and bias is None)


@rule('max_pool2d')
def _max_pool2d(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.zeroed(-math.inf), *args, **kwargs)
    pooled = input.resized(data)
    # the largest value of a window without visible cells is -inf
    return pooled.like(torch.where(pooled.visible & (data > -math.inf), data, 0.), is_zero=True)


@rule('avg_pool2d')
def _avg_pool2d(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.zeroed(), *args, **kwargs)
    visible = input.visible.to(input.data.dtype)
    # divide by the share of visible cells among those that the dense pool counts, which depends on its padding
    share = func(visible, *args, **kwargs) / func(torch.ones_like(visible), *args, **kwargs)
    data = data / torch.where(share > 0, share, 1.)
    if input.units.divide(*data.shape[2:]):
        return input.resized(data)
    return VisibleMap(data, share > 0, input.units)  # cells larger than a unit, as in the attention of GhostNetV2


@rule('interpolate')
def _interpolate(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    mode = args[2] if len(args) > 2 else kwargs.get('mode', 'nearest')
    if mode != 'nearest':
        raise MIMUnsupportedError(f'there is no rule for {mode} interpolation of a feature map with masked cells')
    return input.resized(func(input.zeroed(), *args, **kwargs))


@rule('pad')
def _pad(
        func: Callable, input: VisibleMap, pad: List[int], mode: str = 'constant', value: Optional[float] = None,
) -> VisibleMap:
    data = func(input.data, pad, mode, value)
    pad = [0 if input.visible.shape[-1 - index // 2] == 1 else width for index, width in enumerate(pad)]
    # constant padding is visible, reflected cells are as visible as their originals
    visible = func(input.visible.float(), pad, mode, 1. if mode == 'constant' else None) > 0
    return VisibleMap(data, visible, input.units, input.is_zero and not value)


# operations that move axes and values


@rule('permute', 'transpose', 'unsqueeze', 'movedim', 'swapaxes', 'roll', 'flip')
def _move(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.data, *args, **kwargs)
    return VisibleMap(data, func(input.visible, *args, **kwargs), input.units, input.is_zero)


@rule('reshape', 'view', 'flatten', 'unflatten', 'squeeze')
def _reshape(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.data, *args, **kwargs)
    visible = _reshaped(input.visible, tuple(input.data.shape), tuple(data.shape))
    return VisibleMap(data, visible, input.units, input.is_zero)


def _reshaped(visible: torch.Tensor, old: Tuple[int, ...], new: Tuple[int, ...]) -> torch.Tensor:
    """Reshape visible cells as a map of shape `old` is reshaped to `new`; axes of size 1 stay of size 1 if they can."""
    shape, i, j = [], 0, 0
    sizes = list(visible.shape)
    while i < len(old) or j < len(new):
        # the smallest groups of axes that hold as many values
        first_i, first_j = i, j
        left, right = 1, 1
        while True:
            if left <= right and i < len(old) and (left < right or i == first_i):
                left, i = left * old[i], i + 1
            elif j < len(new) and (right < left or j == first_j):
                right, j = right * new[j], j + 1
            elif left != right:
                raise RuntimeError(f'cannot reshape {old} to {new}')
            else:
                break
        if all(size == 1 for size in visible.shape[first_i:i]):
            shape += [1] * (j - first_j)
        else:
            shape += new[first_j:j]
            sizes[first_i:i] = old[first_i:i]
    return visible.expand(sizes).reshape(shape)


@rule('expand')
def _expand(func: Callable, input: VisibleMap, *args: Any) -> VisibleMap:
    data = func(input.data, *args)
    visible = input.visible.reshape(*[1] * (data.ndim - input.visible.ndim), *input.visible.shape)
    return VisibleMap(data, visible, input.units, input.is_zero)


@rule('expand_as')
def _expand_as(func: Callable, input: torch.Tensor, other: VisibleMap) -> torch.Tensor:
    if isinstance(input, VisibleMap):
        return input.expand(other.shape)
    return func(input, other.data)


@rule('chunk', 'split', 'split_with_sizes', 'tensor_split', 'unbind')
def _split(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> List[VisibleMap]:
    name = func.__name__
    number = 0 if name == 'unbind' else 1
    dim = args[number] if len(args) > number else kwargs.get('dim', 0)
    parts = func(input.data, *args, **kwargs)
    if input.visible.shape[dim] != 1:
        visible = func(input.visible, *args, **kwargs)
    else:
        visible = [input.visible.squeeze(dim) if name == 'unbind' else input.visible] * len(parts)
    return [VisibleMap(part, cells, input.units, input.is_zero) for part, cells in zip(parts, visible)]


@rule('__getitem__')
def _getitem(func: Callable, input: VisibleMap, index: Any) -> VisibleMap:
    index = index if isinstance(index, tuple) else (index,)
    if any(isinstance(item, (torch.Tensor, list, VisibleMap)) for item in index):
        raise MIMUnsupportedError('there is no rule for indexing a feature map with masked cells by a tensor')
    data = input.data[index]
    taken = sum(item is not None and item is not Ellipsis for item in index)
    visible, axis, of_visible = input.visible, 0, []
    for item in index:
        if item is Ellipsis:
            axis += input.data.ndim - taken
        elif item is not None:
            if visible.shape[axis] == 1:
                item = slice(None) if isinstance(item, slice) else 0
            axis += 1
        of_visible.append(item)
    return VisibleMap(data, visible[tuple(of_visible)], input.units, input.is_zero)


@rule('cat', 'concat')
def _cat(func: Callable, tensors: Sequence[Any], dim: int = 0) -> VisibleMap:
    if not all(isinstance(tensor, VisibleMap) for tensor in tensors):
        raise MIMUnsupportedError('there is no rule for joining a feature map with masked cells and a tensor')
    data = func([tensor.data for tensor in tensors], dim)
    if all(tensor.visible.shape[dim] == 1 for tensor in tensors):
        visible = seen_in_all(tensors, data.ndim)
    else:
        visible = func([
            tensor.visible.expand([
                size if axis == dim % data.ndim else -1 for axis, size in enumerate(tensor.data.shape)])
            for tensor in tensors], dim)
    return VisibleMap(data, visible, tensors[0].units, all(tensor.is_zero for tensor in tensors))


@rule('stack')
def _stack(func: Callable, tensors: Sequence[Any], dim: int = 0) -> VisibleMap:
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)
