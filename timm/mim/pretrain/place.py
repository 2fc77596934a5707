"""Where a process computes: its device, and its rank among the processes of the run."""
import argparse
import importlib
import os

import torch

from timm.utils import init_distributed_device
from .errors import UserError, one_line


def find_place(options: argparse.Namespace) -> argparse.Namespace:
    """Find the device and the rank of this process, in a namespace of its own: args.yaml says what the user gave.

    Args:
        options: Options of the run.

    Returns:
        What `timm.utils.init_distributed_device` sets: `device`, `distributed`, `rank`, `local_rank` and `world_size`.

    Raises:
        UserError: There is one process only, and `--fsdp` shards over several.
    """
    place = argparse.Namespace(device=options.device)
    if options.fsdp and int(os.environ.get('WORLD_SIZE', 1)) < 2:
        raise UserError('--fsdp shards a model over processes, and there is one: start the script with torchrun.')
    if init_distributed_device(place).type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
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
