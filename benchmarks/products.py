"""Measure a lower bound for the time of a step: its matrix products and attentions alone."""
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .timing import seconds

PRODUCTS = ('mm', 'addmm', 'bmm', 'baddbmm', 'convolution', 'convolution_backward')
ATTENTION = '_scaled_dot_product_'
REPEATS = 3


class _Recorder(TorchDispatchMode):
    """Records calls of products and attentions, by operation and layout of the operands, and their order."""

    def __init__(self):
        super().__init__()
        self.calls: Dict[str, Tuple[Callable, Any, Any]] = {}
        self.order: List[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS or name.startswith(ATTENTION):
            call = tree_map(_layout, (args, kwargs or {}))
            key = f'{func} {call}'
            self.calls[key] = (func, *call)
            self.order.append(key)
        return func(*args, **(kwargs or {}))


def _layout(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return ('tensor', tuple(value.shape), value.stride(), value.dtype, str(value.device))


def _operand(value: Any) -> Any:
    if not (isinstance(value, tuple) and value and value[0] == 'tensor'):
        return value
    _, shape, stride, dtype, device = value
    size = 1 + sum((extent - 1) * step for extent, step in zip(shape, stride))
    if dtype.is_floating_point:
        storage = torch.randn(max(size, 1), device=device).mul_(0.02).to(dtype)
    else:
        storage = torch.zeros(max(size, 1), dtype=dtype, device=device)
    return storage.as_strided(shape, stride)


def record(step: Callable[[], Any]) -> _Recorder:
    """Run a step and record its products and attentions."""
    with _Recorder() as recorder:
        step()
    return recorder


def seconds_of_products(recorder: _Recorder, device: torch.device) -> float:
    """Return the seconds that the recorded operations take in the order of the step, the minimum of a few runs.

    The order matters: an operation that runs repeatedly would find its operands in the cache, which in a step other
    operations have overwritten.
    """
    def is_layout(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) > 0 and value[0] == 'tensor'

    calls = {
        key: (func, *tree_map(_operand, (args, kwargs), is_leaf=is_layout))
        for key, (func, args, kwargs) in recorder.calls.items()}

    def replay() -> None:
        for key in recorder.order:
            func, args, kwargs = calls[key]
            func(*args, **kwargs)

    return min([seconds(replay, device) for _ in range(REPEATS + 1)][1:])


def against_products(section: str, case: str, step: Callable[[], Any], rounds: int, device: torch.device) -> List[dict]:
    """Compare the time of our step with that of its products alone, timed in turns."""
    recorder = record(step)
    step()
    pairs = [(seconds(step, device), seconds_of_products(recorder, device)) for _ in range(rounds)]
    ours, floor = (min(values) for values in zip(*pairs))
    ratio = sorted(a / b for a, b in pairs)[len(pairs) // 2]
    row = dict(
        section=section, case=case, step_ms=ours * 1e3, products_ms=floor * 1e3, ratio=ratio,
        ratio_of_minima=ours / floor)
    print(f'  {case:<52}step {ours * 1e3:9.1f} ms, its products {floor * 1e3:9.1f} ms, ratio {ours / floor:6.3f}',
          flush=True)
    return [row]
