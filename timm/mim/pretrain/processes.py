"""The device and the rank of this process, and what several processes need to give the same result every time."""

import argparse
import importlib
from typing import List, Optional

import torch
from torch.nn.parallel import DistributedDataParallel

from timm.utils import init_distributed_device, world_info_from_env
from .errors import UserError, one_line
from .flags.run_options import RunOptions


def default_device() -> str:
    """Return the type of the accelerator that PyTorch finds on this machine (cuda, xpu, mps, ...), or 'cpu'."""
    if hasattr(torch, 'accelerator'):  # PyTorch 2.6 and newer
        return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else 'cpu'
    if torch.cuda.is_available():
        return 'cuda'
    return 'mps' if torch.backends.mps.is_available() else 'cpu'


def describe_device(device: torch.device, chosen: bool) -> str:
    """Return one line that names the device of a run.

    Args:
        device: Device of this process.
        chosen: The user named the device.
    """
    text = f'device: {device}'
    if device.type == 'cuda':
        text += f' ({torch.cuda.get_device_name(device)})'
    if chosen:
        return text
    return text + (', because there is no accelerator' if device.type == 'cpu' else ', the accelerator of this machine')


def init_process(options: RunOptions) -> argparse.Namespace:
    """Set up the device and the rank of this process.

    Args:
        options: Options of the run. They do not change: args.yaml stores what the user gave.

    Returns:
        What `timm.utils.init_distributed_device` sets: `device`, `distributed`, `rank`, `local_rank` and `world_size`.

    Raises:
        UserError: The processes cannot be sharded over as `--fsdp` and `--fsdp-replicas` say.
    """
    process = argparse.Namespace(device=options.device or default_device())
    if options.fsdp:
        _check_groups(world_info_from_env()[2], options.fsdp_replicas)
    init_distributed_device(process)
    speed_up_cuda()
    return process


def _check_groups(num_processes: int, replicas: int) -> None:
    if num_processes < 2:
        raise UserError('--fsdp needs several processes, and there is one: start the script with torchrun.')
    if num_processes % replicas:
        raise UserError(f'--fsdp-replicas {replicas} does not divide the number of processes, {num_processes}.')
    if num_processes == replicas:
        raise UserError(
            f'--fsdp-replicas {replicas} leaves one process in each group, and nothing to shard: give less, or leave '
            'out --fsdp.')


def speed_up_cuda() -> None:
    """Enable TF32 matrix products on CUDA devices, and cuDNN's search for the fastest convolution algorithm."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def import_device_modules(modules: Optional[List[str]]) -> None:
    """Import the modules of `--device-modules`, which register a device with PyTorch.

    Raises:
        UserError: A module cannot be imported.
    """
    for module in modules or []:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UserError(f'--device-modules {module}: {one_line(e)}') from e


def settle_buckets(model: DistributedDataParallel) -> None:
    """Let DistributedDataParallel choose its final buckets before the first update.

    It sums the gradients of a first backward pass in one bucket, and from then on in buckets in the order in which
    gradients became ready. The place of a gradient in a bucket decides in which order three or more processes add it
    up, which changes the last bits. Without this function, the first update of a resumed run would therefore differ
    from the same update of a run that was never stopped. Here the first backward pass has gradients that do not count.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.reducer.prepare_for_backward([])  # as the forward pass of DistributedDataParallel does
    sum(parameter.sum() for parameter in parameters).backward()
    for parameter in parameters:
        parameter.grad = None
