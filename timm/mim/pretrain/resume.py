"""Resume a run: find its checkpoint, accept or refuse each changed option, and load the state."""

import argparse
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from timm.task import MaskedImageModelingTask
from timm.utils import NativeScaler
from ..checkpoint_folder import named_tensors
from .checkpoints import (
    Checkpoint,
    evaluation_weights,
    load_checkpoint,
    mismatch_errors,
    newest_checkpoint,
    readable_checkpoints,
    weights_of,
)
from .data.datasets import image_mode
from .data.formats import BANDS
from .data.image_folder import describe_changes
from .errors import UserError, flag_name
from .flags.run_options import BEGINNING, DEFAULTS, SAME, SAME_OPTIMIZER, SAME_WITHIN_EPOCH, RunOptions, names_with
from .run_folder import first_checkpoint, lies_in, plain_options
from .sharding import load_whole_optimizer

# Options whose changes are not reported.
_NOT_REPORTED = ('output', 'experiment', 'resume', 'no_resume_opt', 'dataset_download', *names_with(resume=BEGINNING))

_logger = logging.getLogger(__name__)

# Entries of a parameter group that come from the current options, not from the checkpoint: the learning rate and the
# weight decay, which schedules set at every update, and the implementation of the step.
_FROM_OPTIONS = ('lr', 'weight_decay', 'fused', 'foreach', 'capturable', 'differentiable')

# Entries of a parameter group in which schedules keep their initial values.
_FROM_SCHEDULES = ('initial_lr', 'initial_weight_decay')


def check_same_run(checkpoint: Checkpoint, options: RunOptions) -> None:
    """Check that the options which must not change when a run resumes have not changed.

    Args:
        checkpoint: Checkpoint to resume from.
        options: Options of the run.

    Raises:
        UserError: Such an option has changed.
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
                '--no-resume-opt resumes the weights only, with a new optimizer.')
    for name in names_with(resume=SAME_WITHIN_EPOCH) if checkpoint.within_epoch else ():
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was written within an epoch with {name} {_value(name, saved)}, not "
                f'{_value(name, options)}: change it only at the end of an epoch.')


def _check_beginning(checkpoint: Checkpoint, options: RunOptions) -> None:
    saved = saved_options(checkpoint) or argparse.Namespace()
    for name in names_with(resume=BEGINNING):
        if name == 'start_epoch' and not checkpoint.goes_on:
            continue  # a new run may begin at any epoch
        if _value(name, options) != DEFAULTS[name] and _differs(name, saved, options):
            what = (
                'the run has already begun: give another --experiment to start a new one'
                if name == 'start_epoch' else f"the weights come from '{checkpoint.path}'")
            raise UserError(f'{flag_name(name)} {getattr(options, name)} has no effect with --resume: {what}.')


def take_measured(options: RunOptions, checkpoint: Checkpoint) -> None:
    """Set the mean and standard deviation of bands that the run measured when it began, unless the user gives others.

    Args:
        options: Options of the run, which change.
        checkpoint: Checkpoint to resume from.
    """
    saved = saved_options(checkpoint)
    if saved is None or image_mode(options.in_chans, options.input_img_mode) != BANDS:
        return
    for name in ('mean', 'std'):
        if getattr(options, name) is None:
            setattr(options, name, getattr(saved, name, None))


def changes(checkpoint: Checkpoint, options: RunOptions) -> List[str]:
    """Return the options that have changed since the checkpoint was written, each as `lr 0.001 -> 0.0001`."""
    saved = saved_options(checkpoint)
    if saved is None:
        return []
    return [
        f'{name} {_value(name, saved)} -> {_value(name, options)}'
        for name in DEFAULTS if name not in _NOT_REPORTED and _differs(name, saved, options)]


def saved_options(checkpoint: Checkpoint) -> Optional[argparse.Namespace]:
    """Return the options of the run that wrote a checkpoint, None if another program wrote it."""
    saved = checkpoint.content.get('args')
    return saved if isinstance(saved, argparse.Namespace) else None


def _value(name: str, options: RunOptions) -> Any:
    """Return an option as a checkpoint stores it. An option that an older version did not have gets its default."""
    return plain_options(argparse.Namespace(value=getattr(options, name, DEFAULTS[name])))['value']


def _differs(name: str, saved: argparse.Namespace, options: RunOptions) -> bool:
    return _value(name, saved) != _value(name, options)


def find_checkpoint(options: RunOptions, folder: Path) -> Optional[Checkpoint]:
    """Load the checkpoint that `--resume` names, and check that the run can resume from it.

    Args:
        options: Options of the run.
        folder: Folder of the run, which `--resume auto` searches.

    Returns:
        The checkpoint, None for a new run.

    Raises:
        UserError: The checkpoint does not fit the options or is damaged, or the folder has a newer one.
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
    take_measured(options, checkpoint)
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
            f"--resume auto: the run in '{folder}' started from '{first}' and has no checkpoint yet: give --resume "
            f'{first} again.')


def _check_newest(checkpoint: Checkpoint, folder: Path) -> None:
    """Check that the folder has no newer checkpoint, which the resumed run would overwrite."""
    others, _ = readable_checkpoints(folder, besides=checkpoint.path)
    if others and others[0].update > checkpoint.update:
        raise UserError(
            f"--resume: '{checkpoint.path}' is older than '{others[0].path.name}', which the run would overwrite: "
            'continue with --resume auto, or start a new run from this checkpoint with an --experiment that does not '
            'exist yet.')


def check_same_data(checkpoint: Checkpoint, fingerprint: Dict[str, Any], tell: bool = True) -> None:
    """Compare the image lists with those of a checkpoint, and warn about changes.

    Args:
        checkpoint: Checkpoint to resume from.
        fingerprint: Fingerprint of the current images, see `timm.mim.pretrain.data.image_folder`.
        tell: Log the changes as a warning. One process of a run does so; the others log them at debug level.

    Raises:
        UserError: The images have changed, and the checkpoint was written within an epoch.
    """
    if checkpoint.run is None:
        return
    warn = _logger.warning if tell else _logger.debug
    if 'data' not in checkpoint.run:
        warn(
            f"'{checkpoint.path}' was written by an earlier version, which did not store the list of images and held "
            'out different images of a folder without a validation split: the run may have been trained on images that '
            'are held out now.')
        return
    before, now = (data['train'].get('readers') for data in (checkpoint.run['data'], fingerprint))
    if checkpoint.within_epoch and before != now:
        raise UserError(
            f"--resume: '{checkpoint.path}' was written within an epoch of a stream that {before} processes read, and "
            f'now {now} would, which changes the order of the images: resume with the same number of processes and '
            '--workers, or from a checkpoint at the end of an epoch.')
    changed = describe_changes(checkpoint.run['data'], fingerprint)
    if not changed:
        return
    if checkpoint.within_epoch:
        raise UserError(
            f"--resume: '{checkpoint.path}' was written within an epoch of other images: {changed}. Resume with the "
            'same images, or from a checkpoint at the end of an epoch.')
    warn(
        f"the images are not those of '{checkpoint.path}': {changed}. Held-out errors before and after this point are "
        'comparable only if the held-out images are the same.')


def restore_weights(task: MaskedImageModelingTask, checkpoint: Checkpoint) -> None:
    """Load the weights of a checkpoint, and its moving average if the task keeps one.

    Args:
        task: Task to load into. With a checkpoint that is a folder, its parameters may be sharded.
        checkpoint: The checkpoint.

    Raises:
        UserError: The weights do not fit the task.
    """
    with mismatch_errors(checkpoint.path):
        task.load_checkpoint_state(*weights_of(checkpoint, like=_named(task.get_checkpoint_state())))
        if task.has_ema():
            like = _named(task.get_checkpoint_state(ema=True))
            if 'state_dict_ema' not in checkpoint.content:  # the average begins with the weights
                like = {name.replace('_ema', '', 1): tensor for name, tensor in like.items()}
            task.load_checkpoint_state(*evaluation_weights(checkpoint, like), ema=True)


def _named(state: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    return dict(named_tensors(state))


def restore_optimizer(
        optimizer: torch.optim.Optimizer,
        scaler: Optional[NativeScaler],
        checkpoint: Checkpoint,
) -> None:
    """Load the states of the optimizer and the gradient scaler, if the checkpoint has them.

    The optimizer keeps the learning rate and the weight decay that it was created with.

    Args:
        optimizer: Optimizer, whose parameters may be sharded.
        scaler: Gradient scaler, or None.
        checkpoint: The checkpoint.

    Raises:
        UserError: A state does not fit.
    """
    content = checkpoint.content
    with mismatch_errors(checkpoint.path):
        if 'optimizer' in content:
            saved = checkpoint.part('optimizer', _state_like(optimizer, content['optimizer']))
            load_whole_optimizer(optimizer, _with_current_options(saved, optimizer))
        if scaler is not None and scaler.state_dict_key in content:
            scaler.load_state_dict(content[scaler.state_dict_key])


def _state_like(optimizer: torch.optim.Optimizer, saved: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """Return for each tensor in the saved state of a parameter, by its name, the parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return {
        name: parameters[number] for number, state in saved['state'].items() if number < len(parameters)
        for name, _ in named_tensors(state, f'optimizer.state.{number}')}


def _with_current_options(saved: Dict[str, Any], optimizer: torch.optim.Optimizer) -> Dict[str, Any]:
    """Return a saved optimizer state whose parameter groups have the settings of the current options.

    Raises:
        ValueError: The two optimizers have different parameter groups.
    """
    groups = optimizer.state_dict()['param_groups']
    if [len(group['params']) for group in groups] != [len(group['params']) for group in saved['param_groups']]:
        raise ValueError(
            'its optimizer has other parameter groups, as when only one of the two runs has --weight-decay 0; '
            '--no-resume-opt resumes the weights only, with a new optimizer')
    kept = [
        {name: value for name, value in group.items() if name not in _FROM_OPTIONS + _FROM_SCHEDULES}
        for group in saved['param_groups']]
    current = [{name: group[name] for name in _FROM_OPTIONS if name in group} for group in groups]
    return {**saved, 'param_groups': [{**old, **new} for old, new in zip(kept, current)]}


def updates_done(checkpoint: Checkpoint, updates_per_epoch: int, images_per_update: int) -> int:
    """Return the number of updates that a resumed run counts as done.

    Args:
        checkpoint: The checkpoint. If another program wrote it, it counts as written at the end of its epoch.
        updates_per_epoch: Current number of updates in an epoch. Completed epochs may have had another number.
        images_per_update: Current number of images per update.

    Raises:
        UserError: The checkpoint was written within an epoch, and one of the two numbers has changed.
    """
    run = checkpoint.run
    if run is None:
        return (checkpoint.content.get('epoch', -1) + 1) * updates_per_epoch
    if not checkpoint.within_epoch:
        return run['update'] // run['updates_per_epoch'] * updates_per_epoch
    if (run['updates_per_epoch'], run['images_per_update']) != (updates_per_epoch, images_per_update):
        raise UserError(
            f'--resume: the checkpoint was written within an epoch of {run["updates_per_epoch"]} updates with '
            f'{run["images_per_update"]} images each, and an epoch now has {updates_per_epoch} with '
            f'{images_per_update}: resume with the same number of images and the same global batch size.')
    return run['update']
