"""Build a model in files, so that main memory need not hold the whole model before --fsdp shards it.

Initial weights depend on the order in which the whole model draws random numbers, and some schemes change weights that
they have drawn before. The model is therefore built as always, with the same numbers, but its large tensors lie in
files that are mapped into memory. The system writes their pages to the disk when memory runs short.
"""
import math
import os
import tempfile
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, Optional, Tuple

import torch
from torch.overrides import TorchFunctionMode

_LARGE = 2 ** 20  # bytes from which on a tensor gets a file

# What layers allocate their parameters with, and the value; None for any
_VALUES: Dict[Callable, Optional[float]] = {torch.empty: None, torch.zeros: 0., torch.ones: 1.}


class FilesForTensors(TorchFunctionMode):
    """Allocates large tensors on the CPU in files, while it is active. The files vanish with their tensors.

    It acts on `torch.empty`, `torch.zeros` and `torch.ones`, which layers call for their parameters, and on `clone`,
    which `copy.deepcopy` calls for a target encoder or a moving average.

    Args:
        folder: Folder for the files, on a disk.
    """

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def __torch_function__(self, func: Callable, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        kwargs = kwargs or {}
        if func in _VALUES and str(kwargs.get('device') or 'cpu') == 'cpu' and kwargs.get('out') is None:
            like = func(*args, **{**kwargs, 'device': 'meta', 'pin_memory': False})
            if _is_large(like):
                tensor = self._allocate(like)
                if _VALUES[func]:
                    tensor.fill_(_VALUES[func])
                return tensor.requires_grad_(like.requires_grad)
        elif func is torch.Tensor.clone and args[0].device.type == 'cpu' and not args[0].requires_grad:
            if _is_large(args[0]) and args[0].is_contiguous():
                return self._allocate(args[0]).copy_(args[0])
        return func(*args, **kwargs)

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor of zeros in a new file.

        Raises:
            OSError: The disk is full.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            size = like.numel() * like.element_size()
            os.posix_fallocate(file.fileno(), 0, size)  # a page that found no place later would end the process
            return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype).view(like.shape)


def _is_large(tensor: torch.Tensor) -> bool:
    return math.prod(tensor.shape) * tensor.element_size() >= _LARGE


def built_in(folder: Optional[str]) -> ContextManager:
    """Return a context in which models are built in files of a folder; None for main memory."""
    return FilesForTensors(folder) if folder else nullcontext()
