"""A record of every ATen call of a forward pass on the meta device, where a trace costs Python and nothing else.

Runs with stock timm and with the fork, like `probe`. Most of the time of a plain meta run goes into meta kernels, which
are Python functions that find out shapes, so a kernel is asked once for operands of a layout (dtype, shape, stride) and
its answer is used for all other calls with the same ones.
"""
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

# what fills or scales a tensor that is there
INITIALIZERS = {
    getattr(torch.Tensor, name)
    for name in ('normal_', 'uniform_', 'fill_', 'zero_', 'clamp_', 'erfinv_', 'mul_', 'add_', 'sub_', 'div_')
} | {getattr(nn.init, name) for name in ('normal_', 'uniform_', 'constant_', 'kaiming_uniform_')}


class MetaDevice(DeviceContext):
    """The meta device as the default one, for building a model. How tensors are initialised is written down, not done.

    Attributes:
        lines: One line per initialisation, in order: what is done, the shape, the scalars.
    """

    def __init__(self):
        super().__init__(torch.device('meta'))
        self.lines: List[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        tensor = args[0] if args else (kwargs or {}).get('tensor')
        if func in INITIALIZERS and isinstance(tensor, torch.Tensor) and tensor.is_meta:
            values = [*enumerate(args), *(kwargs or {}).items()]
            scalars = ', '.join(f'{key}={value}' for key, value in values if not isinstance(value, torch.Tensor))
            self.lines.append(f'{func.__name__}({list(tensor.shape)}, {scalars})')
            return tensor
        return super().__torch_function__(func, types, args, kwargs)


class Layout(NamedTuple):
    """All that a meta kernel knows of a tensor, as text too."""
    text: str
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]
    dtype: torch.dtype
    repeatable: bool  # an empty tensor on the meta device is the same


def layout(tensor: torch.Tensor) -> Layout:
    shape, stride, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    place = f'{"" if tensor.is_meta else tensor.device}{f"+{offset}" if offset else ""}'
    repeatable = tensor.is_meta and not offset and type(tensor) is torch.Tensor
    return Layout(f'{tensor.dtype}{list(shape)}{stride}{place}', shape, stride, tensor.dtype, repeatable)


class Function(NamedTuple):
    """An ATen function, by what it returns: a tensor of its own, several of them, or its first operand.

    All three are False for views and what is rare: these functions are called each time.
    """
    text: str
    fresh: bool
    several: bool
    in_place: bool


def classify(func: torch._ops.OpOverload) -> Function:
    arguments, returns = func._schema.arguments, func._schema.returns
    aliases = [value.alias_info for value in [*arguments, *returns] if value.alias_info]
    in_place = (
        torch.Tag.inplace_view not in func.tags and len(aliases) == 2 and len(returns) == 1
        and all(alias.is_write for alias in aliases) and arguments[0].alias_info is not None)
    types = {str(value.type) for value in returns}
    return Function(
        str(func), fresh=not aliases and types == {'Tensor'} and len(returns) == 1,
        several=not aliases and types == {'Tensor'} and len(returns) > 1, in_place=in_place and types == {'Tensor'})


class OperationRecorder(TorchDispatchMode):
    """Writes one line per ATen call: operands by layout and origin, scalars, layouts of the results.

    The origin of a tensor is the name of a parameter, buffer or input, or the call that made it. Layouts alone would
    not do: with the blocks in reverse order every shape stays the same.
    """
    functions: Dict[Any, Function] = {}
    answers: Dict[str, List[Layout]] = {}  # of meta kernels, by the text of a call without origins

    def __init__(self, model: nn.Module, inputs: Dict[str, torch.Tensor]):
        super().__init__()
        self.lines: List[str] = []
        self.alive: List[torch.Tensor] = []  # an id is unique among living objects only
        self.known: Dict[int, Tuple[str, Layout]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers(), *inputs.items()]:
            self.remember(tensor, name, layout(tensor))

    def remember(self, tensor: torch.Tensor, origin: str, its_layout: Layout) -> None:
        self.alive.append(tensor)
        self.known[id(tensor)] = origin, its_layout

    def describe(self, value: Any, origins: List[str]) -> str:
        """Text of an operand, a tensor by its layout. Origins of tensors are appended."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self.known:
                self.remember(value, 'constant', layout(value))
            origin, its_layout = self.known[id(value)]
            origins.append(origin)
            return its_layout.text
        if isinstance(value, (list, tuple)):
            return f'[{", ".join([self.describe(v, origins) for v in value])}]'
        return repr(value)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        function = self.functions.get(func)
        if function is None:
            function = self.functions[func] = classify(func)
        origins: List[str] = []
        operands = [self.describe(value, origins) for value in args]
        operands += [f'{key}={self.describe(value, origins)}' for key, value in kwargs.items()]
        call = f'{function.text}({", ".join(operands)})'
        with torch._C.DisableTorchFunction():  # the device of new tensors was decided before
            result, results, layouts = self.run(func, function, call, args, kwargs)
        for i, (tensor, its_layout) in enumerate(zip(results, layouts)):
            # an in-place call returns its operand: what it holds from here on is another value
            self.remember(tensor, f'%{len(self.lines)}.{i}', its_layout)
        made = ', '.join([its_layout.text for its_layout in layouts])
        self.lines.append(f'{call} of {", ".join(origins)} -> {made}')
        return result

    def run(
            self,
            func: torch._ops.OpOverload,
            function: Function,
            call: str,
            args: Sequence[Any],
            kwargs: Dict[str, Any],
    ) -> Tuple[Any, Sequence[torch.Tensor], List[Layout]]:
        """What a call returns, the tensors in it, and their layouts."""
        layouts = self.answers.get(call)
        if layouts is not None:
            results = args[:1] if function.in_place else [
                torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device='meta') for like in layouts]
            return tuple(results) if function.several else results[0], results, layouts
        result = func(*args, **kwargs)
        results = [value for _, value in tensors(result)]
        layouts = [layout(value) for value in results]
        if (function.fresh or function.several or function.in_place) and all(like.repeatable for like in layouts):
            self.answers[call] = layouts
        return result, results, layouts


def tensors(value: Any, path: str = '') -> Iterator[Tuple[str, torch.Tensor]]:
    """All tensors of a nested result with their place in it."""
    if isinstance(value, torch.Tensor):
        yield path or '.', value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from tensors(v, f'{path}.{k}')
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from tensors(v, f'{path}.{i}')
