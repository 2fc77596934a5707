"""How much memory a run takes."""
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were taken so far: allocated on an accelerator, resident for the CPU.

    Zero where the system does not tell.

    Args:
        device: Device that is trained on.
    """
    backend = getattr(torch, device.type, None)
    if device.type != 'cpu' and hasattr(backend, 'max_memory_allocated'):
        return backend.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
