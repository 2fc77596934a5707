"""A guard against steps that wait for the device."""
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostSync(TorchDispatchMode):
    """Fails on operations whose result has to come to the host, or whose shape depends on values."""
    names = ('_local_scalar_dense', 'nonzero', 'masked_select', 'is_nonzero', 'equal', 'unique')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.names, func
        for arg in args[1:]:  # boolean indexing
            for index in arg if isinstance(arg, (list, tuple)) else ():
                assert not (isinstance(index, torch.Tensor) and index.dtype == torch.bool), func
        return func(*args, **(kwargs or {}))
