"""Copy modules to the meta device, to find the shapes of their outputs without computing values.

Tensors on the meta device have a shape but no data, so that the input size costs no memory or time. Only the copy runs;
parameters, statistics, caches and hooks of the module stay unchanged.
"""
import copy
from types import MethodType
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn

__all__ = ['map_size', 'meta_copy']


class _MetaChildren(dict):
    """Children of a module by name, each copied to the meta device on first access, so that unused ones are not copied.
    """

    def __init__(self, children: Dict[str, Optional[nn.Module]]):
        super().__init__(children)
        self.originals = {name for name, child in children.items() if child is not None}

    def __getitem__(self, name: str) -> Optional[nn.Module]:
        if name in self.originals:
            self.originals.remove(name)
            self[name] = meta_copy(super().__getitem__(name))
        return super().__getitem__(name)

    def values(self):
        return [self[name] for name in self]

    def items(self):
        return [(name, self[name]) for name in self]


def _to_meta(value: Any) -> Any:
    """Copy an attribute of a module: a tensor to the meta device, a container shallowly; return others unchanged."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device='meta')
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module on the meta device, in eval mode, without hooks and gradient checkpointing.

    Args:
        module: Module, which stays unchanged.
    """
    replica = object.__new__(type(module))  # copy.copy raises for modules with parametrizations
    state = vars(replica)
    state.update(vars(module))
    for name, value in state.items():
        if name == '_modules':
            state[name] = _MetaChildren(value)
        elif name in ('_parameters', '_buffers'):
            state[name] = {key: _to_meta(tensor) for key, tensor in value.items()}
        elif name.startswith('_') and '_hooks' in name:
            state[name] = type(value)() if isinstance(value, dict) else value
        elif isinstance(value, MethodType) and value.__self__ is module:
            state[name] = MethodType(value.__func__, replica)  # FasterNet assigns its forward in the constructor
        else:
            state[name] = _to_meta(value)
    # with _fast_norm, LayerNorm queries the autocast state of its device, which the meta device does not have
    state.update({name: False for name in ('training', 'grad_checkpointing', '_fast_norm') if name in state})
    state.pop('_compiled_call_impl', None)  # set by module.compile(); it would run the original module
    return replica


@torch.no_grad()
def map_size(module: nn.Module, size: Tuple[int, int]) -> Tuple[int, int]:
    """Return the size of a module's output map, without running the module.

    Args:
        module: Module with convolutions that takes a map (B, C, H, W) and returns one.
        size: Size (H, W) of the input map.

    Returns:
        Size (H', W') of the output map.
    """
    channels = next(m.in_channels for m in module.modules() if hasattr(m, 'in_channels'))
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    with torch.device('meta'):
        height, width = meta_copy(module)(torch.empty(1, channels, *size, dtype=dtype)).shape[-2:]
    return height, width
