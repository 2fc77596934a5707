"""Mixed precision."""
import argparse
from contextlib import nullcontext
from functools import partial
from typing import Callable, Optional

import torch

from timm.utils import NativeScaler


def autocast_of(options: argparse.Namespace, device: torch.device) -> Callable:
    """Return what makes the context of a forward pass."""
    if not options.amp:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, options.amp_dtype))


def scaler_of(options: argparse.Namespace, device: torch.device) -> Optional[NativeScaler]:
    """Return the scaler of the gradients, None where they need none: bfloat16 has the range of float32."""
    return NativeScaler(device=device.type) if options.amp and options.amp_dtype == 'float16' else None
