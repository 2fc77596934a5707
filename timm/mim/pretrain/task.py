"""The task around a method: its moving average, shards, compilation and distribution."""
import argparse
from typing import Optional

import torch
import torch.nn as nn

from timm.task import MaskedImageModelingTask
from timm.utils import is_primary
from .checkpoints import Checkpoint
from .errors import UserError, one_line
from .resume import restore_weights
from .sharding import shard


def create_task(
        options: argparse.Namespace,
        method: nn.Module,
        place: argparse.Namespace,
        checkpoint: Optional[Checkpoint] = None,
) -> MaskedImageModelingTask:
    """Create the task, with its moving average, the weights of a checkpoint, and shards where they are asked for.

    Args:
        options: Options of the run.
        method: Masked image modeling method, on its device.
        place: Device and rank of this process.
        checkpoint: Checkpoint to go on from.

    Raises:
        UserError: The checkpoint does not fit.
    """
    device = torch.device(place.device)
    if options.channels_last:
        method = method.to(memory_format=torch.channels_last)
    task = MaskedImageModelingTask(method, device=device, verbose=is_primary(place))
    if options.model_ema:
        task.setup_ema(
            decay=options.model_ema_decay,
            use_warmup=options.model_ema_warmup,
            foreach=not options.fsdp,  # shards and buffers, which have none, do not mix in one operation
        )
    if checkpoint is not None:
        restore_weights(task, checkpoint)
    if options.fsdp:
        for ema in (False, True) if task.has_ema() else (False,):
            shard(task.get_method(ema=ema), device)
    return task


def compile_and_distribute(
        task: MaskedImageModelingTask,
        options: argparse.Namespace,
        place: argparse.Namespace,
) -> None:
    """Compile the method, and average its gradients over the processes, unless shards do that.

    Args:
        task: Task, whose optimizer exists already: that goes by the names of parameters, which wrappers change.
        options: Options of the run.
        place: Device and rank of this process.

    Raises:
        UserError: There is no such backend.
    """
    if options.torchcompile:
        try:
            task.compile(backend=options.torchcompile, mode=options.torchcompile_mode)
        except RuntimeError as e:
            raise UserError(f'--torchcompile {options.torchcompile}: {one_line(e)}') from e
    if place.distributed and not options.fsdp:
        device = torch.device(place.device)
        task.prepare_distributed(
            device_ids=None if device.type == 'cpu' else [device],
            **(dict(broadcast_buffers=False) if options.no_ddp_bb else {}),
        )
