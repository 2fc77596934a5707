"""Run Convolutional Models on Images of Which a Part Is Masked

`masked_images` wraps images and a mask as a `VisibleMap`. A model that gets it in the place of a tensor runs as always,
and computes features of visible cells as if masked cells did not exist: what a convolution reads at a masked cell is 0,
pools skip it, and every statistic over space (batch norm, squeeze-excite, GRN) is one of visible cells.

Nothing is installed in the model: no class is replaced, no hook is registered, and no mask is stored anywhere but in
the feature maps themselves. `VisibleMap` is no tensor, but takes part in PyTorch's `__torch_function__` protocol: each
operation of PyTorch on it arrives in this file. An operation that is not listed here is refused by its name. So a model
either runs as said, or does not run at all, and a run on the meta device tells which before any training.

The idea is the sparse convolution of `Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling` (https://arxiv.org/abs/2301.03580), which multiplies the output of each convolution by the mask. Here masked
cells hold any value, and are set to 0 where an operation that mixes cells is about to read them: visible cells get the
same features, at less cost.
"""
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from .errors import ImageSizeError, MIMUnsupportedError
from .masking import upsample_mask
from .visible_norm import visible_batch_norm, visible_group_norm

__all__ = ['VisibleMap', 'VisibleUnits', 'masked_images']


class VisibleUnits:
    """The visible units of a batch of images, and which cells of a feature map of any size they make visible."""

    def __init__(self, visible: torch.Tensor) -> None:
        """
        Args:
            visible: Units (B, h, w) bool, True is visible.
        """
        self.visible = visible
        self._cells: Dict[Tuple[int, int], torch.Tensor] = {}

    @property
    def sizes(self) -> List[Tuple[int, int]]:
        """Sizes (height, width) of the feature maps that asked for their visible cells."""
        return list(self._cells)

    def divide(self, height: int, width: int) -> bool:
        """Whether units are made of whole cells of a feature map."""
        return height % self.visible.shape[1] == 0 and width % self.visible.shape[2] == 0

    def cells(self, height: int, width: int) -> torch.Tensor:
        """Visible cells (B, 1, height, width) bool of a feature map, made once per size.

        Raises:
            ImageSizeError: The units are not made of whole cells.
        """
        if (height, width) not in self._cells:
            rows, columns = self.visible.shape[1:]
            if not self.divide(height, width):
                raise ImageSizeError(
                    f'a feature map of {height} x {width} cells does not divide into {rows} x {columns} mask units')
            scale = height // rows, width // columns
            self._cells[height, width] = upsample_mask(self.visible, scale).unsqueeze(1)
        return self._cells[height, width]


class VisibleMap:
    """A feature map, or images, with cells that are masked. Operations of PyTorch take it in the place of a tensor.

    Attributes:
        data: Values, in any layout. What stands at masked cells has no meaning.
        visible: Visible cells, bool of as many axes as `data`. An axis on which it does not depend has size 1.
        units: What the visible cells of feature maps of other sizes are made of.
        is_zero: `data` is 0 at all masked cells.
    """

    def __init__(self, data: torch.Tensor, visible: torch.Tensor, units: VisibleUnits, is_zero: bool = False) -> None:
        self.data = data
        self.visible = visible
        self.units = units
        self.is_zero = is_zero

    @classmethod
    def __torch_function__(
            cls,
            func: Callable,
            types: Sequence[type],
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        name = func.__name__
        handler = _HANDLERS.get(name)
        if handler is None:
            raise MIMUnsupportedError(f'there is no rule for {name} of a feature map with masked cells')
        return handler(func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name in _METADATA:
            return getattr(self.data, name)
        if name.startswith('__') or not hasattr(torch.Tensor, name):
            raise AttributeError(f'VisibleMap has no attribute {name}')
        if name.startswith('new_') or name in _ABOUT_DATA:
            return getattr(self.data, name)  # tells of the layout of the data, or makes a tensor that is none of it

        def method(*args: Any, **kwargs: Any) -> Any:
            return VisibleMap.__torch_function__(getattr(torch.Tensor, name), (), (self, *args), kwargs)
        return method

    def zeroed(self, value: float = 0.) -> torch.Tensor:
        """Values, with a constant at masked cells."""
        if self.is_zero and value == 0.:
            return self.data
        return torch.where(self.visible, self.data, value)

    def like(self, data: torch.Tensor, is_zero: bool = False) -> 'VisibleMap':
        """A map with the same visible cells, and other values."""
        return VisibleMap(data, self.visible, self.units, is_zero)

    def resized(self, data: torch.Tensor, is_zero: bool = False) -> 'VisibleMap':
        """A map (B, C, H, W) of any size, and other values."""
        if data.shape[2:] == self.data.shape[2:] and self.visible.shape[1] == 1:
            return self.like(data, is_zero)
        if data.shape[0] != self.units.visible.shape[0]:
            raise MIMUnsupportedError('there is no rule for convolutions of samples that were folded into channels')
        return VisibleMap(data, self.units.cells(*data.shape[-2:]), self.units, is_zero)


def masked_images(images: torch.Tensor, mask: torch.Tensor) -> VisibleMap:
    """Wrap images for a model.

    Args:
        images: Images of shape (B, C, H, W). What stands at masked pixels is not read.
        mask: Masked units of shape (B, h, w) bool, True is masked, that divide the image.
    """
    units = VisibleUnits(~mask)
    return VisibleMap(images, units.cells(*images.shape[-2:]), units)


_METADATA = {'shape', 'dtype', 'device', 'ndim', 'layout', 'is_cuda', 'is_meta', 'requires_grad', 'is_mps', 'is_cpu'}
_ABOUT_DATA = {'size', 'dim', 'numel', 'stride', 'is_contiguous', 'is_floating_point', 'type_as', 'get_device'}
_HANDLERS: Dict[str, Callable] = {}


def _rule(*names: str) -> Callable[[Callable], Callable]:
    """Decorator that registers what to do for functions of PyTorch."""
    def register(handler: Callable) -> Callable:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler
    return register


# ---- operations on each value by itself

# of these the result is 0 where the first argument is
_KEEP_ZERO = {
    'relu', 'relu_', 'relu6', 'gelu', 'silu', 'hardswish', 'tanh', 'leaky_relu', 'leaky_relu_', 'elu', 'elu_', 'mish',
    'celu', 'selu', 'dropout', 'neg', '__neg__', 'abs', 'square', 'sqrt', 'clone', 'contiguous', 'to', 'float', 'half',
    'bfloat16', 'type', 'detach', 'mul', 'mul_', '__mul__', '__rmul__', '__imul__', 'multiply', 'div', 'div_',
    '__truediv__', '__itruediv__', 'alpha_dropout', 'feature_dropout', 'dropout2d', 'prelu', 'hardtanh', 'hardtanh_',
}
# of these the result is 0 where all arguments are
_ADD = {'add', 'add_', '__add__', '__radd__', '__iadd__', 'sub', 'sub_', '__sub__', '__isub__'}
_POINTWISE = _KEEP_ZERO | _ADD | {
    'sigmoid', 'sigmoid_', 'hardsigmoid', 'softplus', 'logsigmoid', 'clamp', 'clamp_', 'clip', 'exp', 'log', 'rsqrt',
    'pow', '__pow__', '__rsub__', 'rsub', '__rtruediv__', 'reciprocal', 'sin', 'cos', 'maximum', 'minimum', 'where',
    'lerp', 'softsign', 'addcmul',
}


@_rule(*_POINTWISE)
def _pointwise(func: Callable, *args: Any, **kwargs: Any) -> VisibleMap:
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, (VisibleMap, torch.Tensor))]
    maps = [value for value in operands if isinstance(value, VisibleMap)]
    data = func(*map(_data, args), **{name: _data(value) for name, value in kwargs.items()})
    visible = _seen_in_all(maps, data.ndim)
    name = func.__name__
    is_zero = all(value.is_zero for value in maps) and (
        name in _KEEP_ZERO and not (len(maps) > 1 and 'div' in name)
        or name in _ADD and all(isinstance(value, VisibleMap) or _is_zero(value) for value in args[:2]))
    if isinstance(args[0], VisibleMap) and data is args[0].data:  # in place: other references to the map see it too
        args[0].visible, args[0].is_zero = visible, is_zero
        return args[0]
    return VisibleMap(data, visible, maps[0].units, is_zero)


def _data(value: Any) -> Any:
    return value.data if isinstance(value, VisibleMap) else value


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _seen_in_all(maps: Sequence[VisibleMap], ndim: int) -> torch.Tensor:
    """Cells that are visible in all of some maps."""
    visible = maps[0].visible
    for other in maps[1:]:
        if other.visible is not visible:
            visible = visible & other.visible
    return visible.reshape(*[1] * (ndim - visible.ndim), *visible.shape) if ndim > visible.ndim else visible


# ---- operations that mix cells


@_rule('conv2d')
def _conv2d(
        func: Callable, input: VisibleMap, weight: torch.Tensor, bias: Optional[torch.Tensor] = None, *args, **kwargs,
) -> VisibleMap:
    is_pointwise = tuple(weight.shape[2:]) == (1, 1) and input.visible.shape[1] == 1
    data = func(input.data if is_pointwise else input.zeroed(), weight, bias, *args, **kwargs)
    return input.resized(data, is_pointwise and input.is_zero and bias is None)


@_rule('linear')
def _linear(func: Callable, input: VisibleMap, weight: torch.Tensor, bias: Optional[torch.Tensor] = None) -> VisibleMap:
    if input.visible.shape[-1] != 1:
        raise MIMUnsupportedError('there is no rule for a linear layer that mixes cells')
    return input.like(func(input.data, weight, bias), input.is_zero and bias is None)


@_rule('max_pool2d')
def _max_pool2d(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.zeroed(-math.inf), *args, **kwargs)
    pooled = input.resized(data)
    # windows of masked cells alone
    return pooled.like(torch.where(pooled.visible & (data > -math.inf), data, 0.), is_zero=True)


@_rule('avg_pool2d')
def _avg_pool2d(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.zeroed(), *args, **kwargs)
    visible = input.visible.to(input.data.dtype)
    # by padding too a window has fewer cells, which is none of the mask's business
    share = func(visible, *args, **kwargs) / func(torch.ones_like(visible), *args, **kwargs)
    data = data / torch.where(share > 0, share, 1.)
    if input.units.divide(*data.shape[2:]):
        return input.resized(data)
    return VisibleMap(data, share > 0, input.units)  # cells larger than a unit, as in the attention of GhostNetV2


@_rule('interpolate')
def _interpolate(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    mode = args[2] if len(args) > 2 else kwargs.get('mode', 'nearest')
    if mode != 'nearest':
        raise MIMUnsupportedError(f'there is no rule for {mode} interpolation of a feature map with masked cells')
    return input.resized(func(input.zeroed(), *args, **kwargs))


@_rule('pad')
def _pad(
        func: Callable, input: VisibleMap, pad: List[int], mode: str = 'constant', value: Optional[float] = None,
) -> VisibleMap:
    data = func(input.data, pad, mode, value)
    pad = [0 if input.visible.shape[-1 - index // 2] == 1 else width for index, width in enumerate(pad)]
    # a constant was not masked
    visible = func(input.visible.float(), pad, mode, 1. if mode == 'constant' else None) > 0
    return VisibleMap(data, visible, input.units, input.is_zero and not value)


# ---- statistics


@_rule('batch_norm')
def _batch_norm(
        func: Callable,
        input: VisibleMap,
        running_mean: Optional[torch.Tensor],
        running_var: Optional[torch.Tensor],
        weight: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
) -> VisibleMap:
    if not training:
        return input.like(func(input.data, running_mean, running_var, weight, bias, False, momentum, eps))
    data = visible_batch_norm(
        input.data, input.visible, running_mean, running_var, weight, bias, momentum, eps)
    return input.like(data, is_zero=True)


@_rule('group_norm')
def _group_norm(
        func: Callable,
        input: VisibleMap,
        num_groups: int,
        weight: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        eps: float = 1e-5,
) -> VisibleMap:
    return input.like(visible_group_norm(input.data, input.visible, num_groups, weight, bias, eps))


@_rule('layer_norm', 'rms_norm')
def _layer_norm(func: Callable, input: VisibleMap, normalized_shape: Sequence[int], *args: Any, **kwargs) -> VisibleMap:
    if any(size != 1 for size in input.visible.shape[-len(normalized_shape):]):
        raise MIMUnsupportedError(f'there is no rule for {func.__name__} over cells')
    return input.like(func(input.data, normalized_shape, *args, **kwargs))


@_rule('adaptive_avg_pool2d', 'adaptive_max_pool2d')
def _adaptive_pool(func: Callable, input: VisibleMap, output_size: Any, **kwargs: Any) -> torch.Tensor:
    if kwargs.get('return_indices') or output_size not in (1, (1, 1), [1, 1]):
        raise MIMUnsupportedError(f'there is no rule for {func.__name__} to a map of {output_size} cells')
    reduce = torch.mean if 'avg' in func.__name__ else torch.amax
    return reduce(input, dim=(2, 3), keepdim=True)


_VARIANCES = ('var', 'var_mean', 'std')
_ORDER = dict(norm=('p',), vector_norm=('ord',))


@_rule('mean', 'sum', 'amax', 'norm', 'vector_norm', 'var', 'var_mean', 'std')
def _reduce(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> Any:
    """Reduce over channels, each cell by itself, or over all cells, by a statistic of the visible ones."""
    name = func.__name__
    _refuse_other_arguments(name, args, kwargs)
    if name in ('norm', 'vector_norm'):
        order = args[0] if args else kwargs.get('p', kwargs.get('ord', 2))
        args = args[1:]
        if order not in (2, 2., None, 'fro'):
            raise MIMUnsupportedError(f'there is no rule for the norm of order {order} of a map with masked cells')
    dim = args[0] if args else kwargs.get('dim')
    keepdim = kwargs.get('keepdim', args[1] if len(args) > 1 else False)
    ndim = input.data.ndim
    dims = tuple(range(ndim)) if dim is None else tuple(
        axis % ndim for axis in (dim if isinstance(dim, (tuple, list)) else (dim,)))
    over_cells = {axis for axis, size in enumerate(input.visible.shape) if size != 1}
    if not over_cells & set(dims):
        data = getattr(torch, name)(input.data, dim=dims, keepdim=keepdim, **_unbiased(name, kwargs))
        visible = input.visible if keepdim else _without_axes(input.visible, dims)
        return VisibleMap(data, visible, input.units)
    if over_cells - set(dims) - {0}:
        raise MIMUnsupportedError(f'there is no rule for {name} over a part of the cells of a map')
    return _STATISTICS[name](input, dims, keepdim, **_unbiased(name, kwargs))


def _refuse_other_arguments(name: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
    """Raise `MIMUnsupportedError` for arguments of a reduction that would be ignored or read wrongly here."""
    known = {'dim', 'keepdim', *(('unbiased', 'correction') if name in _VARIANCES else ()), *_ORDER.get(name, ())}
    others = sorted(kwargs.keys() - known)
    if name in _VARIANCES and len(args) > 1:  # torch.var takes `unbiased` there, and `keepdim` behind it
        others.append('a second argument by position')
    if others:
        raise MIMUnsupportedError(f'there is no rule for {name} of a feature map with masked cells by {others[0]}')


def _unbiased(name: str, kwargs: Dict[str, Any]) -> Dict[str, Any]:
    return {key: kwargs[key] for key in ('unbiased', 'correction') if key in kwargs} if name in _VARIANCES else {}


def _without_axes(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


def _count(input: VisibleMap, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    """Number of visible values along axes."""
    visible = input.visible
    repeats = math.prod([input.data.shape[axis] // visible.shape[axis] for axis in dims])
    return visible.sum(dims, keepdim=keepdim).clamp(min=1).to(input.data.dtype) * repeats


def _mean(input: VisibleMap, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    return input.zeroed().sum(dims, keepdim=keepdim) / _count(input, dims, keepdim)


def _var_mean(
        input: VisibleMap, dims: Sequence[int], keepdim: bool, unbiased: bool = True, correction: int = 1,
) -> Tuple[torch.Tensor, torch.Tensor]:
    mean = _mean(input, dims, True)
    deviation = torch.where(input.visible, input.data - mean, 0.)
    count = _count(input, dims, keepdim) - (correction if unbiased else 0)
    variance = deviation.square().sum(dims, keepdim=keepdim) / count
    return variance, mean if keepdim else _without_axes(mean, dims)


_STATISTICS = dict(
    mean=_mean,
    sum=lambda x, dims, keepdim: x.zeroed().sum(dims, keepdim=keepdim),
    amax=lambda x, dims, keepdim: x.zeroed(-math.inf).amax(dims, keepdim=keepdim),
    norm=lambda x, dims, keepdim: torch.linalg.vector_norm(x.zeroed(), dim=dims, keepdim=keepdim),
    vector_norm=lambda x, dims, keepdim: torch.linalg.vector_norm(x.zeroed(), dim=dims, keepdim=keepdim),
    var_mean=_var_mean,
    var=lambda x, dims, keepdim, **options: _var_mean(x, dims, keepdim, **options)[0],
    std=lambda x, dims, keepdim, **options: _var_mean(x, dims, keepdim, **options)[0].sqrt(),
)


@_rule('softmax')
def _softmax(func: Callable, input: VisibleMap, dim: int, *args: Any, **kwargs: Any) -> VisibleMap:
    if input.visible.shape[dim] == 1:
        return input.like(func(input.data, dim, *args, **kwargs))
    return input.like(func(input.zeroed(torch.finfo(input.data.dtype).min), dim, *args, **kwargs))


@_rule('matmul', '__matmul__', 'bmm')
def _matmul(func: Callable, a: Any, b: Any) -> Any:
    """Multiply a matrix of channels by one of weights, or sum products over cells."""
    if isinstance(a, VisibleMap) and isinstance(b, torch.Tensor) and a.visible.shape[-1] == 1:
        return a.like(func(a.data, b), a.is_zero)
    if isinstance(a, VisibleMap) and isinstance(b, VisibleMap):
        rest = a.visible.shape[1:-1] + b.visible.shape[1:-2] + b.visible.shape[-1:]
        if all(size == 1 for size in rest):
            return func(a.zeroed(), b.zeroed())
    raise MIMUnsupportedError('there is no rule for a product of matrices of cells, as attention has it')


# ---- operations that move axes and values


@_rule('permute', 'transpose', 'unsqueeze', 'movedim', 'swapaxes', 'roll', 'flip')
def _move(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.data, *args, **kwargs)
    return VisibleMap(data, func(input.visible, *args, **kwargs), input.units, input.is_zero)


@_rule('reshape', 'view', 'flatten', 'unflatten', 'squeeze')
def _reshape(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> VisibleMap:
    data = func(input.data, *args, **kwargs)
    visible = _reshaped(input.visible, tuple(input.data.shape), tuple(data.shape))
    return VisibleMap(data, visible, input.units, input.is_zero)


def _reshaped(visible: torch.Tensor, old: Tuple[int, ...], new: Tuple[int, ...]) -> torch.Tensor:
    """Visible cells of a map of a shape, for the map in another shape. Axes that it does not depend on stay of size 1.
    """
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


@_rule('expand')
def _expand(func: Callable, input: VisibleMap, *args: Any) -> VisibleMap:
    data = func(input.data, *args)
    visible = input.visible.reshape(*[1] * (data.ndim - input.visible.ndim), *input.visible.shape)
    return VisibleMap(data, visible, input.units, input.is_zero)


@_rule('expand_as')
def _expand_as(func: Callable, input: torch.Tensor, other: VisibleMap) -> torch.Tensor:
    if isinstance(input, VisibleMap):
        return input.expand(other.shape)
    return func(input, other.data)


@_rule('chunk', 'split', 'split_with_sizes', 'tensor_split', 'unbind')
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


@_rule('__getitem__')
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


@_rule('cat', 'concat')
def _cat(func: Callable, tensors: Sequence[Any], dim: int = 0) -> VisibleMap:
    if not all(isinstance(tensor, VisibleMap) for tensor in tensors):
        raise MIMUnsupportedError('there is no rule for joining a feature map with masked cells and a tensor')
    data = func([tensor.data for tensor in tensors], dim)
    if all(tensor.visible.shape[dim] == 1 for tensor in tensors):
        visible = _seen_in_all(tensors, data.ndim)
    else:
        visible = func([
            tensor.visible.expand([
                size if axis == dim % data.ndim else -1 for axis, size in enumerate(tensor.data.shape)])
            for tensor in tensors], dim)
    return VisibleMap(data, visible, tensors[0].units, all(tensor.is_zero for tensor in tensors))


@_rule('stack')
def _stack(func: Callable, tensors: Sequence[Any], dim: int = 0) -> VisibleMap:
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def _operator(name: str) -> Callable:
    function = getattr(torch.Tensor, name)

    def apply(self: VisibleMap, *args: Any) -> Any:
        return VisibleMap.__torch_function__(function, (), (self, *args))
    return apply


for _name in ('add', 'radd', 'iadd', 'sub', 'rsub', 'isub', 'mul', 'rmul', 'imul', 'truediv', 'rtruediv', 'itruediv',
              'pow', 'neg', 'matmul', 'getitem'):
    setattr(VisibleMap, f'__{_name}__', _operator(f'__{_name}__'))
