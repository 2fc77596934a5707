"""Going on from a checkpoint: weights, optimizer, and the place in the run."""
import argparse
from pathlib import Path
from typing import Any, Dict, Optional

import torch

from timm.task import MaskedImageModelingTask
from timm.utils import NativeScaler
from .checkpoints import check_same_run, fitting, load_checkpoint, newest_checkpoint, weights_that_count
from .errors import UserError
from .sharding import load_whole_optimizer


def find_checkpoint(options: argparse.Namespace, folder: Path) -> Optional[Path]:
    """Find the checkpoint that `--resume` means, and check that it is one of such a run.

    Args:
        options: Options of the run.
        folder: Folder of the run, where `--resume auto` looks.

    Returns:
        Its file, None for a run that begins anew.

    Raises:
        UserError: It is of another run, or cannot be read.
    """
    path = newest_checkpoint(folder) if options.resume == 'auto' else options.resume and Path(options.resume)
    if not path:
        return None
    check_same_run(load_checkpoint(path), path, options)
    return path


def restore_weights(task: MaskedImageModelingTask, saved: Dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint, and those of its moving average if the task has one.

    Args:
        task: Task to load into.
        saved: The checkpoint.
        path: Its file.

    Raises:
        UserError: They do not fit.
    """
    with fitting(path):
        task.load_checkpoint_state(saved['state_dict'], saved.get('task_state'))
        if task.has_ema():
            task.load_checkpoint_state(*weights_that_count(saved), ema=True)


def restore_optimizer(
        optimizer: torch.optim.Optimizer,
        scaler: Optional[NativeScaler],
        saved: Dict[str, Any],
        path: Path,
) -> None:
    """Load the state of optimizer and gradient scaler, as far as a checkpoint has them.

    Args:
        optimizer: Optimizer, whose parameters may be sharded.
        scaler: Gradient scaler, None without one.
        saved: The checkpoint.
        path: Its file.

    Raises:
        UserError: They do not fit.
    """
    with fitting(path):
        if 'optimizer' in saved:
            load_whole_optimizer(optimizer, saved['optimizer'])
        if scaler is not None and scaler.state_dict_key in saved:
            scaler.load_state_dict(saved[scaler.state_dict_key])


def updates_done(saved: Dict[str, Any], updates_per_epoch: int, images_per_update: int) -> int:
    """Return the number of updates after which a run goes on from a checkpoint.

    Args:
        saved: The checkpoint; one of another program counts as written at the end of its epoch.
        updates_per_epoch: Number of updates of an epoch now. Completed epochs may have had another.
        images_per_update: Number of images of an update now.

    Raises:
        UserError: The checkpoint was written within an epoch that is divided otherwise now.
    """
    run = saved.get('run')
    if run is None:
        return (saved.get('epoch', -1) + 1) * updates_per_epoch
    epochs, within = divmod(run['update'], run['updates_per_epoch'])
    if not within:
        return epochs * updates_per_epoch
    if (run['updates_per_epoch'], run['images_per_update']) != (updates_per_epoch, images_per_update):
        raise UserError(
            f'--resume: the checkpoint was written within an epoch of {run["updates_per_epoch"]} updates with '
            f'{run["images_per_update"]} images, which has {updates_per_epoch} with {images_per_update} now: go on '
            'with as many images and the same batch over all processes.')
    return run['update']
