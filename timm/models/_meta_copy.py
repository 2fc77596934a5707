"""Copies on the Meta Device

Tell the shape of what a module makes of an input without computing it: a copy of the module runs on the meta device,
where tensors have a shape and no content. The size of the input costs nothing. The module itself does not run: its
parameters, statistics, caches and hooks stay as they are.
"""
import copy
from types import MethodType
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn

__all__ = ['map_size', 'meta_copy']


class _MetaChildren(dict):
    """The children of a module by name, each copied to the meta device when it is first asked for.

    A model is thus copied no further than it runs.
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
    """Copy an attribute of a module: a tensor to the meta device, a container so that it can be written to."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device='meta')
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def meta_copy(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device, in eval mode, without its hooks and without gradient checkpointing.

    Args:
        module: Module, which is not changed.
    """
    replica = object.__new__(type(module))  # not copy.copy, a module with parametrizations refuses to be pickled
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
            state[name] = MethodType(value.__func__, replica)  # FasterNet chooses its forward
        else:
            state[name] = _to_meta(value)
    # LayerNorm asks with _fast_norm for the autocast of its device, which the meta device does not have
    state.update({name: False for name in ('training', 'grad_checkpointing', '_fast_norm') if name in state})
    state.pop('_compiled_call_impl', None)  # of module.compile(), it runs the module itself
    return replica


@torch.no_grad()
def map_size(module: nn.Module, size: Tuple[int, int]) -> Tuple[int, int]:
    """Find the size that a module gives to a map, without running it.

    Args:
        module: Module with convolutions that takes a map (B, C, H, W) and returns one.
        size: Size (H, W) of the map that goes in.

    Returns:
        Size (H', W') of the map that comes out.
    """
    channels = next(m.in_channels for m in module.modules() if hasattr(m, 'in_channels'))
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    with torch.device('meta'):
        height, width = meta_copy(module)(torch.empty(1, channels, *size, dtype=dtype)).shape[-2:]
    return height, width
