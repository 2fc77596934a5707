"""Where a process computes: its device, and its rank among the processes of the run."""
import argparse
import importlib
import logging
import os

import torch

from timm.utils import init_distributed_device, is_primary
from .errors import UserError, one_line

_logger = logging.getLogger(__name__)


def default_device() -> str:
    """Return the type of the accelerator that PyTorch finds on this machine (cuda, xpu, mps, ...), or 'cpu'."""
    if hasattr(torch, 'accelerator'):  # PyTorch 2.6 and newer
        return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else 'cpu'
    if torch.cuda.is_available():
        return 'cuda'
    return 'mps' if torch.backends.mps.is_available() else 'cpu'


def describe_device(device: torch.device, chosen: bool) -> str:
    """Say in one line where a run computes.

    Args:
        device: Device of this process.
        chosen: Whether the user named it.
    """
    text = f'device: {device}'
    if device.type == 'cuda':
        text += f' ({torch.cuda.get_device_name(device)})'
    if chosen:
        return text
    return text + (', since there is no accelerator' if device.type == 'cpu' else ', the accelerator of this machine')


def find_place(options: argparse.Namespace) -> argparse.Namespace:
    """Find the device and the rank of this process, in a namespace of its own: args.yaml says what the user gave.

    Args:
        options: Options of the run.

    Returns:
        What `timm.utils.init_distributed_device` sets: `device`, `distributed`, `rank`, `local_rank` and `world_size`.

    Raises:
        UserError: There is one process only, and `--fsdp` shards over several.
    """
    place = argparse.Namespace(device=options.device or default_device())
    if options.fsdp and int(os.environ.get('WORLD_SIZE', 1)) < 2:
        raise UserError('--fsdp shards a model over processes, and there is one: start the script with torchrun.')
    device = init_distributed_device(place)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if is_primary(place):
        _logger.info(describe_device(device, chosen=options.device is not None))
    return place


def import_device_modules(options: argparse.Namespace) -> None:
    """Import the modules of `--device-modules`, which make a device known to PyTorch.

    Raises:
        UserError: One cannot be imported.
    """
    for module in options.device_modules or []:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UserError(f'--device-modules {module}: {one_line(e)}') from e
