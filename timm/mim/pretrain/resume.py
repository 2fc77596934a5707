"""Resume a run: find its checkpoint, decide what becomes of each option that changed, and load the state."""

import argparse
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from timm.task import MaskedImageModelingTask
from timm.utils import NativeScaler
from .checkpoints import (
    Checkpoint,
    evaluation_weights,
    load_checkpoint,
    mismatch_errors,
    newest_checkpoint,
    readable_checkpoints,
)
from .data.image_folder import describe_changes
from .errors import UserError, flag_name
from .flags.run_options import BEGINNING, DEFAULTS, SAME, SAME_OPTIMIZER, SAME_WITHIN_EPOCH, RunOptions, names_with
from .run_folder import first_checkpoint, lies_in, plain_options
from .sharding import load_whole_optimizer

_UNTOLD = ('output', 'experiment', 'resume', 'no_resume_opt', 'dataset_download', *names_with(resume=BEGINNING))

_logger = logging.getLogger(__name__)

# What groups of parameters hold that the options of the present run decide on, and not the checkpoint: learning rate
# and weight decay, which schedules set at every update, and how a step is computed on the device.
_OF_THE_OPTIONS = ('lr', 'weight_decay', 'fused', 'foreach', 'capturable', 'differentiable')

# What schedules note in a group to begin from.
_OF_THE_SCHEDULES = ('initial_lr', 'initial_weight_decay')


def check_same_run(checkpoint: Checkpoint, options: RunOptions) -> None:
    """Check that no option was changed that has to stay as it was.

    Args:
        checkpoint: Checkpoint to go on from.
        options: Options of the run.

    Raises:
        UserError: One was.
    """
    path = checkpoint.path
    _check_beginning(checkpoint, options)
    saved = saved_options(checkpoint)
    if saved is None:
        return
    for name in names_with(resume=SAME):
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was trained with {name} {_value(name, saved)}, not {_value(name, options)}.")
    for name in () if options.no_resume_opt else names_with(resume=SAME_OPTIMIZER):
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was trained with {name} {_value(name, saved)}, not {_value(name, options)}; "
                '--no-resume-opt goes on from the weights, with a new optimizer.')
    for name in names_with(resume=SAME_WITHIN_EPOCH) if checkpoint.within_epoch else ():
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was written within an epoch with {name} {_value(name, saved)}, not "
                f'{_value(name, options)}: change it where an epoch has ended.')


def _check_beginning(checkpoint: Checkpoint, options: RunOptions) -> None:
    saved = saved_options(checkpoint) or argparse.Namespace()
    for name in names_with(resume=BEGINNING):
        if name == 'start_epoch' and not checkpoint.goes_on:
            continue  # a run of its own begins there
        if _value(name, options) != DEFAULTS[name] and _differs(name, saved, options):
            what = (
                'the run has begun already: give another --experiment to count epochs anew'
                if name == 'start_epoch' else f"the weights come from '{checkpoint.path}'")
            raise UserError(f'{flag_name(name)} {getattr(options, name)} has no effect with --resume: {what}.')


def changes(checkpoint: Checkpoint, options: RunOptions) -> List[str]:
    """Return what takes effect otherwise than when the checkpoint was written, as `lr 0.001 -> 0.0001`."""
    saved = saved_options(checkpoint)
    if saved is None:
        return []
    return [
        f'{name} {_value(name, saved)} -> {_value(name, options)}'
        for name in DEFAULTS if name not in _UNTOLD and _differs(name, saved, options)]


def saved_options(checkpoint: Checkpoint) -> Optional[argparse.Namespace]:
    """The options of the run that wrote a checkpoint, None for one of another program."""
    saved = checkpoint.content.get('args')
    return saved if isinstance(saved, argparse.Namespace) else None


def _value(name: str, options: RunOptions) -> Any:
    """An option as checkpoints hold it; one that an older version did not have has its default."""
    return plain_options(argparse.Namespace(value=getattr(options, name, DEFAULTS[name])))['value']


def _differs(name: str, saved: argparse.Namespace, options: RunOptions) -> bool:
    return _value(name, saved) != _value(name, options)


def find_checkpoint(options: RunOptions, folder: Path) -> Optional[Checkpoint]:
    """Load the checkpoint that `--resume` means, and check that the run may go on from it.

    Args:
        options: Options of the run.
        folder: Folder of the run, where `--resume auto` looks.

    Returns:
        The checkpoint, None for a run that begins anew.

    Raises:
        UserError: It is of another run, is damaged, or the folder has a newer one.
    """
    if not options.resume:
        return None
    if options.resume == 'auto':
        checkpoint = newest_checkpoint(folder)
        if checkpoint is None:
            _check_begins_anew(folder)
            return None
    else:
        checkpoint = load_checkpoint(Path(options.resume))
    checkpoint = checkpoint._replace(in_place=lies_in(checkpoint.path, folder))
    check_same_run(checkpoint, options)
    if options.resume != 'auto' and checkpoint.in_place:
        _check_newest(checkpoint, folder)
    changed = changes(checkpoint, options)
    if changed:
        _logger.info(f"changed since '{checkpoint.path}': {', '.join(changed)}")
    return checkpoint


def _check_begins_anew(folder: Path) -> None:
    first = first_checkpoint(folder)
    if first is not None:
        raise UserError(
            f"--resume auto: the run in '{folder}' began from '{first}' and has no checkpoint yet: give --resume "
            f'{first} again.')


def _check_newest(checkpoint: Checkpoint, folder: Path) -> None:
    """Check that no later checkpoint of the same folder would be lost."""
    others, _ = readable_checkpoints(folder, besides=checkpoint.path)
    if others and others[0].update > checkpoint.update:
        raise UserError(
            f"--resume: '{checkpoint.path}' is from before '{others[0].path.name}', which the run would overwrite: go "
            'on with --resume auto, or begin a new run from this checkpoint: give an --experiment that does not exist '
            'yet.')


def check_same_data(checkpoint: Checkpoint, fingerprint: Dict[str, Any], tell: bool = True) -> None:
    """Tell what has changed in the lists of images since a checkpoint was written.

    Args:
        checkpoint: Checkpoint to go on from.
        fingerprint: That of the data now, see `timm.mim.pretrain.data.image_folder`.
        tell: Warn of it, as one process of a run does.

    Raises:
        UserError: The checkpoint was written within an epoch, whose images would be others.
    """
    if checkpoint.run is None:
        return
    warn = _logger.warning if tell else _logger.debug
    if 'data' not in checkpoint.run:
        warn(
            f"'{checkpoint.path}' is of an earlier version, which did not note the images and held out others of a "
            'folder without a validation split: images that are held out now may have been trained on.')
        return
    changed = describe_changes(checkpoint.run['data'], fingerprint)
    if not changed:
        return
    if checkpoint.within_epoch:
        raise UserError(
            f"--resume: '{checkpoint.path}' was written within an epoch of other images: {changed}. Go on with the "
            'same images, or from a checkpoint at the end of an epoch.')
    warn(
        f"the images are not those of '{checkpoint.path}': {changed}. Errors on held-out images compare only as far as "
        'these are the same.')


def restore_weights(task: MaskedImageModelingTask, checkpoint: Checkpoint) -> None:
    """Load the weights of a checkpoint, and those of its moving average if the task has one.

    Args:
        task: Task to load into.
        checkpoint: The checkpoint.

    Raises:
        UserError: They do not fit.
    """
    content = checkpoint.content
    with mismatch_errors(checkpoint.path):
        task.load_checkpoint_state(content['state_dict'], content.get('task_state'))
        if task.has_ema():
            task.load_checkpoint_state(*evaluation_weights(content), ema=True)


def restore_optimizer(
        optimizer: torch.optim.Optimizer,
        scaler: Optional[NativeScaler],
        checkpoint: Checkpoint,
) -> None:
    """Load the state of optimizer and gradient scaler, as far as a checkpoint has them.

    Learning rate and weight decay stay those that the optimizer was created with.

    Args:
        optimizer: Optimizer, whose parameters may be sharded.
        scaler: Gradient scaler, None without one.
        checkpoint: The checkpoint.

    Raises:
        UserError: They do not fit.
    """
    content = checkpoint.content
    with mismatch_errors(checkpoint.path):
        if 'optimizer' in content:
            load_whole_optimizer(optimizer, _with_present_options(content['optimizer'], optimizer))
        if scaler is not None and scaler.state_dict_key in content:
            scaler.load_state_dict(content[scaler.state_dict_key])


def _with_present_options(saved: Dict[str, Any], optimizer: torch.optim.Optimizer) -> Dict[str, Any]:
    """The state of an optimizer that was saved, with what the present options say of its groups."""
    groups = optimizer.state_dict()['param_groups']
    if [len(group['params']) for group in groups] != [len(group['params']) for group in saved['param_groups']]:
        raise ValueError(
            'its optimizer groups the parameters otherwise, as --weight-decay 0 does and any other weight decay does '
            'not; --no-resume-opt goes on from the weights, with a new optimizer')
    kept = [
        {name: value for name, value in group.items() if name not in _OF_THE_OPTIONS + _OF_THE_SCHEDULES}
        for group in saved['param_groups']]
    present = [{name: group[name] for name in _OF_THE_OPTIONS if name in group} for group in groups]
    return {**saved, 'param_groups': [{**old, **new} for old, new in zip(kept, present)]}


def updates_done(checkpoint: Checkpoint, updates_per_epoch: int, images_per_update: int) -> int:
    """Return the number of updates after which a run goes on from a checkpoint.

    Args:
        checkpoint: The checkpoint; one of another program counts as written at the end of its epoch.
        updates_per_epoch: Number of updates of an epoch now. Completed epochs may have had another.
        images_per_update: Number of images of an update now.

    Raises:
        UserError: The checkpoint was written within an epoch that is divided otherwise now.
    """
    run = checkpoint.run
    if run is None:
        return (checkpoint.content.get('epoch', -1) + 1) * updates_per_epoch
    if not checkpoint.within_epoch:
        return run['update'] // run['updates_per_epoch'] * updates_per_epoch
    if (run['updates_per_epoch'], run['images_per_update']) != (updates_per_epoch, images_per_update):
        raise UserError(
            f'--resume: the checkpoint was written within an epoch of {run["updates_per_epoch"]} updates with '
            f'{run["images_per_update"]} images, which has {updates_per_epoch} with {images_per_update} now: go on '
            'with as many images and the same batch over all processes.')
    return run['update']
