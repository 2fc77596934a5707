"""A feature map with masked cells, which operations of PyTorch take in the place of a tensor.

`VisibleMap` takes part in the `__torch_function__` protocol: PyTorch hands each operation on it to a rule. The modules
`visible_rules` and `visible_statistics` hold the rules. An operation without one raises `MIMUnsupportedError`.
"""
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from .errors import ImageSizeError, MIMUnsupportedError
from .masking import upsample_mask
from .zeroing import zero_masked

__all__ = ['RULES', 'VisibleMap', 'VisibleUnits', 'data_of', 'rule', 'seen_in_all']

RULES: Dict[str, Callable] = {}  # what to do for a function of PyTorch, by the name of the function


def rule(*names: str) -> Callable[[Callable], Callable]:
    """Return a decorator that registers a rule for functions of PyTorch."""
    def register(handler: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, handler))
        return handler
    return register


class VisibleUnits:
    """The visible mask units of a batch of images. They tell which cells of a feature map of any size are visible.

    Args:
        visible: Units of shape (B, h, w) bool, True is visible.
        synchronized: Batch norms take their statistics over the visible cells of all processes.
    """

    def __init__(self, visible: torch.Tensor, synchronized: bool = False) -> None:
        self.visible = visible
        self.synchronized = synchronized
        self._cells: Dict[Tuple[int, int], torch.Tensor] = {}

    @property
    def sizes(self) -> List[Tuple[int, int]]:
        """Sizes (height, width) of the feature maps that asked for their visible cells."""
        return list(self._cells)

    def divide(self, height: int, width: int) -> bool:
        """Whether each unit consists of whole cells of a feature map."""
        return height % self.visible.shape[1] == 0 and width % self.visible.shape[2] == 0

    def cells(self, height: int, width: int) -> torch.Tensor:
        """Return the visible cells (B, 1, height, width) bool of a feature map. They are computed once per size.

        Raises:
            ImageSizeError: The units do not consist of whole cells.
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
    """A feature map, or images, with masked cells. Operations of PyTorch take it in the place of a tensor.

    Args:
        data: Values, in any layout. Values at masked cells have no meaning.
        visible: Visible cells, bool, with as many axes as `data`. Axes along which visibility does not change have
            size 1.
        units: Mask units, which give the visible cells of feature maps of other sizes.
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
        handler = RULES.get(func.__name__)
        if handler is None:
            raise MIMUnsupportedError(f'there is no rule for {func.__name__} of a feature map with masked cells')
        return handler(func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name in _METADATA:
            return getattr(self.data, name)
        if name.startswith('__') or not hasattr(torch.Tensor, name):
            raise AttributeError(f'VisibleMap has no attribute {name}')
        if name.startswith('new_') or name in _QUESTIONS:
            return getattr(self.data, name)  # a question about the data, or a new tensor that does not depend on it

        def method(*args: Any, **kwargs: Any) -> Any:
            return VisibleMap.__torch_function__(getattr(torch.Tensor, name), (), (self, *args), kwargs)
        return method

    def zeroed(self, value: float = 0.) -> torch.Tensor:
        """Return the values, with a constant at masked cells."""
        if value == 0.:
            return self.data if self.is_zero else zero_masked(self.data, self.visible)
        return torch.where(self.visible, self.data, value)

    def like(self, data: torch.Tensor, is_zero: bool = False) -> 'VisibleMap':
        """Return a map of other values with the same visible cells."""
        return VisibleMap(data, self.visible, self.units, is_zero)

    def resized(self, data: torch.Tensor, is_zero: bool = False) -> 'VisibleMap':
        """Return a map (B, C, H, W) of other values, of any size."""
        if data.shape[2:] == self.data.shape[2:] and self.visible.shape[1] == 1:
            return self.like(data, is_zero)
        if data.shape[0] != self.units.visible.shape[0]:
            raise MIMUnsupportedError('there is no rule for convolutions of samples that were folded into channels')
        return VisibleMap(data, self.units.cells(*data.shape[-2:]), self.units, is_zero)


_METADATA = {'shape', 'dtype', 'device', 'ndim', 'layout', 'is_cuda', 'is_meta', 'requires_grad', 'is_mps', 'is_cpu'}
_QUESTIONS = {'size', 'dim', 'numel', 'stride', 'is_contiguous', 'is_floating_point', 'type_as', 'get_device'}
_OPERATORS = (
    'add', 'radd', 'iadd', 'sub', 'rsub', 'isub', 'mul', 'rmul', 'imul', 'truediv', 'rtruediv', 'itruediv', 'pow',
    'neg', 'matmul', 'getitem')


def _operator(name: str) -> Callable:
    function = getattr(torch.Tensor, name)

    def apply(self: VisibleMap, *args: Any) -> Any:
        return VisibleMap.__torch_function__(function, (), (self, *args))
    return apply


for _name in _OPERATORS:  # Python looks operators up in the class, not through __getattr__
    setattr(VisibleMap, f'__{_name}__', _operator(f'__{_name}__'))


def data_of(value: Any) -> Any:
    """Return the values of a map, and anything else as it is."""
    return value.data if isinstance(value, VisibleMap) else value


def seen_in_all(maps: Sequence[VisibleMap], ndim: int) -> torch.Tensor:
    """Return the cells that are visible in each of some maps, with `ndim` axes."""
    visible = maps[0].visible
    for other in maps[1:]:
        if other.visible is not visible:
            visible = visible & other.visible
    return visible.reshape(*[1] * (ndim - visible.ndim), *visible.shape) if ndim > visible.ndim else visible
