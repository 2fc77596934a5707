"""Rules for statistics over cells, which count visible cells only: norms, reductions, products over cells."""
import math
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch

from .errors import MIMUnsupportedError
from .visible_map import VisibleMap, rule
from .visible_norm import visible_batch_norm, visible_group_norm


@rule('batch_norm')
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
        input.zeroed(), input.visible, running_mean, running_var, weight, bias, momentum, eps, input.units.synchronized)
    return input.like(data, is_zero=True)


@rule('batch_norm_stats')
def _sync_batch_norm(func: Callable, *args: Any, **kwargs: Any) -> None:
    raise MIMUnsupportedError(
        'there is no rule for SyncBatchNorm: keep BatchNorm2d and build the method with sync_batch_norm=True')


@rule('group_norm')
def _group_norm(
        func: Callable,
        input: VisibleMap,
        num_groups: int,
        weight: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        eps: float = 1e-5,
) -> VisibleMap:
    return input.like(visible_group_norm(input.data, input.visible, num_groups, weight, bias, eps))


@rule('layer_norm', 'rms_norm')
def _layer_norm(func: Callable, input: VisibleMap, normalized_shape: Sequence[int], *args: Any, **kwargs) -> VisibleMap:
    if any(size != 1 for size in input.visible.shape[-len(normalized_shape):]):
        raise MIMUnsupportedError(f'there is no rule for {func.__name__} over cells')
    return input.like(func(input.data, normalized_shape, *args, **kwargs))


@rule('adaptive_avg_pool2d', 'adaptive_max_pool2d')
def _adaptive_pool(func: Callable, input: VisibleMap, output_size: Any, **kwargs: Any) -> torch.Tensor:
    if kwargs.get('return_indices') or output_size not in (1, (1, 1), [1, 1]):
        raise MIMUnsupportedError(f'there is no rule for {func.__name__} to a map of {output_size} cells')
    reduce = torch.mean if 'avg' in func.__name__ else torch.amax
    return reduce(input, dim=(2, 3), keepdim=True)


_VARIANCES = ('var', 'var_mean', 'std')
_ORDER = dict(norm=('p',), vector_norm=('ord',))


@rule('mean', 'sum', 'amax', 'norm', 'vector_norm', 'var', 'var_mean', 'std')
def _reduce(func: Callable, input: VisibleMap, *args: Any, **kwargs: Any) -> Any:
    """Reduce over channels in each cell, or over all cells by a statistic of the visible ones."""
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
        data = func(input.data, dim=dims, keepdim=keepdim, **_unbiased(name, kwargs))
        visible = input.visible if keepdim else _without_axes(input.visible, dims)
        parts = [VisibleMap(part, visible, input.units) for part in (data if isinstance(data, tuple) else (data,))]
        return tuple(parts) if isinstance(data, tuple) else parts[0]
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


def _sum(x: torch.Tensor, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    """Sum in float32 or better: a sum over the cells of a large map can exceed float16, and bfloat16 has 8 bits."""
    return x.sum(dims, keepdim=keepdim, dtype=torch.promote_types(x.dtype, torch.float32))


def _count(input: VisibleMap, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    """Count the visible values along axes."""
    visible = input.visible
    repeats = math.prod([input.data.shape[axis] // visible.shape[axis] for axis in dims])
    return visible.sum(dims, keepdim=keepdim).clamp(min=1) * repeats


def _mean(input: VisibleMap, dims: Sequence[int], keepdim: bool) -> torch.Tensor:
    return (_sum(input.zeroed(), dims, keepdim) / _count(input, dims, keepdim)).to(input.data.dtype)


def _var_mean(
        input: VisibleMap, dims: Sequence[int], keepdim: bool, unbiased: bool = True, correction: int = 1,
) -> Tuple[torch.Tensor, torch.Tensor]:
    mean = _mean(input, dims, True)
    deviation = torch.where(input.visible, input.data - mean, 0.)
    count = _count(input, dims, keepdim) - (correction if unbiased else 0)
    variance = (_sum(deviation.square(), dims, keepdim) / count).to(input.data.dtype)
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


@rule('softmax')
def _softmax(func: Callable, input: VisibleMap, dim: int, *args: Any, **kwargs: Any) -> VisibleMap:
    if input.visible.shape[dim] == 1:
        return input.like(func(input.data, dim, *args, **kwargs))
    return input.like(func(input.zeroed(torch.finfo(input.data.dtype).min), dim, *args, **kwargs))


@rule('matmul', '__matmul__', 'bmm')
def _matmul(func: Callable, a: Any, b: Any) -> Any:
    """Multiply channels by a matrix of weights, or sum products of two maps over cells, as linear attention does."""
    if isinstance(a, VisibleMap) and isinstance(b, torch.Tensor) and a.visible.shape[-1] == 1:
        return a.like(func(a.data, b), a.is_zero)
    if isinstance(a, VisibleMap) and isinstance(b, VisibleMap):
        rest = a.visible.shape[1:-1] + b.visible.shape[1:-2] + b.visible.shape[-1:]
        if all(size == 1 for size in rest):
            return func(a.zeroed(), b.zeroed())
    raise MIMUnsupportedError('there is no rule for a product of matrices of cells, as attention has it')


