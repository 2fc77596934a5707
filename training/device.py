"""Set up the device and the precision of a run."""
import argparse
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple

import torch

from timm.layers import set_fast_norm
from timm.mim.pretrain.processes import default_device, describe_device, import_device_modules, speed_up_cuda
from timm.mim.pretrain.task import autocast_of
from timm.utils import NativeScaler, init_distributed_device, is_primary, random_seed, set_jit_fuser
from .errors import user_errors

_logger = logging.getLogger(__name__)


@dataclass
class Process:
    """The device and the precision of this process.

    Args:
        device: Device of this process.
        dtype: Type of weights and images.
        autocast: Creates the autocast context of a forward pass.
        scaler: Loss scaler, for float16 on a GPU.
        primary: Whether this process reports and writes.
    """
    device: torch.device
    dtype: torch.dtype = torch.float32
    autocast: Callable = nullcontext
    scaler: Optional[NativeScaler] = None
    primary: bool = True

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        backend = getattr(torch, self.device.type, None)
        if self.device.type != 'cpu' and hasattr(backend, 'synchronize'):
            backend.synchronize()


def precision(args: argparse.Namespace, device: torch.device) -> Process:
    """Set up the precision for a device from --amp, --amp-dtype and --model-dtype."""
    process = Process(device)
    if args.model_dtype:
        process.dtype = getattr(torch, args.model_dtype)
    process.autocast = autocast_of(args, device)
    return process


def set_fused_operations(args: argparse.Namespace) -> None:
    """Set TorchScript's fuser from --fuser, and enable fast norm layers with --fast-norm.

    Raises:
        UserError: There is no such fuser.
    """
    if args.fuser:
        with user_errors(f'--fuser {args.fuser}', AssertionError):
            set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()


def set_up(args: argparse.Namespace) -> Process:
    """Set up the device and the precision, join the process group, and seed the random numbers.

    Sets `device`, `distributed`, `rank`, `local_rank` and `world_size` in the arguments.

    Raises:
        UserError: There is no such device, module or fuser.
    """
    import_device_modules(args.device_modules)
    speed_up_cuda()
    chosen = args.device is not None
    args.device = args.device or default_device()
    with user_errors(f'--device {args.device}', AssertionError, RuntimeError):
        device = init_distributed_device(args)
    process = precision(args, device)
    process.primary = is_primary(args)
    if args.amp and args.amp_dtype == 'float16' and device.type == 'cuda':
        process.scaler = NativeScaler(device=device.type)
    random_seed(args.seed, args.rank)
    set_fused_operations(args)
    if process.primary:
        types = f'{args.amp_dtype} where autocast allows it' if args.amp else str(process.dtype)
        _logger.info(describe_device(device, chosen))
        _logger.info(f'Training with {args.world_size} process(es), this one on {device}, in {types}.')
    return process


def to_device(
        args: argparse.Namespace,
        process: Process,
        images: Any,
        target: torch.Tensor,
) -> Tuple[Any, torch.Tensor]:
    """Move a batch to the device, unless the prefetcher has done so, and convert it to the model's memory format.

    Args:
        args: Arguments of the script: prefetcher, channels_last.
        process: Device and type.
        images: Images (B, C, H, W), or NaFlex's dictionary of patches, coordinates and masks.
        target: Labels.
    """
    if not args.prefetcher:
        target = target.to(process.device)
        if isinstance(images, dict):
            images = {name: value.to(process.device) if isinstance(value, torch.Tensor) else value
                      for name, value in images.items()}
            images['patches'] = images['patches'].to(process.dtype)
        else:
            images = images.to(device=process.device, dtype=process.dtype)
    if args.channels_last and not isinstance(images, dict):
        images = images.contiguous(memory_format=torch.channels_last)
    return images, target
