"""What becomes of an option that is changed where a run goes on from a checkpoint: every option has its place here."""
import argparse
from typing import Any, List, Optional

from .checkpoints import Checkpoint
from .defaults import DEFAULTS
from .errors import UserError, flag_name
from .run_folder import plain_options

# What is learned, and what is measured by: a change is refused.
SAME = (
    'mim', 'mim_kwargs', 'mask_ratio', 'mask_unit', 'model', 'model_kwargs', 'img_size', 'in_chans', 'input_size',
    'input_img_mode', 'mean', 'std', 'interpolation', 'crop_pct',
)
# What the state of the optimizer was made with: a change is refused, unless --no-resume-opt leaves that state.
SAME_OPTIMIZER = (
    'opt', 'opt_eps', 'opt_betas', 'momentum', 'opt_kwargs', 'layer_decay', 'layer_decay_min_scale',
    'layer_decay_no_opt_scale',
)
# Which image is seen when: a change is refused within an epoch, and takes effect at its end. How many there are of an
# epoch is compared by `updates_done`, which they are by `check_same_data`.
SAME_WITHIN_EPOCH = ('seed',)
# Where a run begins: what is given anew is refused. Left out, they change nothing.
BEGINNING = ('pretrained', 'pretrained_path', 'initial_checkpoint', 'start_epoch')
# What takes effect from the checkpoint on.
TAKES_EFFECT = (
    # dataset
    'data_dir', 'dataset', 'train_split', 'val_split', 'train_num_samples', 'val_num_samples', 'dataset_download',
    'dataset_trust_remote_code', 'input_key', 'target_key', 'max_unreadable',
    # model
    'drop_path', 'grad_checkpointing', 'channels_last', 'fast_norm', 'torchcompile', 'torchcompile_mode',
    # device
    'device', 'amp', 'amp_dtype', 'no_ddp_bb', 'synchronize_step', 'device_modules', 'fsdp',
    # batches
    'batch_size', 'validation_batch_size', 'grad_accum_steps', 'epoch_repeats', 'workers', 'pin_mem',
    # optimizer
    'weight_decay', 'weight_decay_end', 'clip_grad', 'clip_mode',
    # schedule
    'lr', 'lr_base', 'lr_base_size', 'lr_base_scale', 'sched', 'epochs', 'stop_epoch', 'save_epochs', 'warmup_epochs',
    'warmup_lr', 'warmup_prefix', 'min_lr', 'cooldown_epochs', 'decay_milestones', 'decay_epochs', 'decay_rate',
    'lr_noise', 'lr_noise_pct', 'lr_noise_std', 'lr_cycle_mul', 'lr_cycle_decay', 'lr_cycle_limit', 'lr_k_decay',
    'lr_decay_fn', 'lr_stable_timescale',
    # augmentation
    'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob',
    'grayscale_prob', 'gaussian_blur_prob', 'aa', 'train_interpolation',
    # exponential moving average
    'model_ema', 'model_ema_decay', 'model_ema_warmup',
    # reports, probes and trackers
    'log_interval', 'val_interval', 'recovery_interval', 'checkpoint_hist', 'log_tensorboard', 'log_wandb',
    'wandb_project', 'wandb_tags', 'wandb_resume_id', 'mim_probe_dir', 'mim_probe', 'mim_probe_interval',
    'mim_probe_layers', 'mim_probe_pool', 'mim_module',
    # where it goes on
    'output', 'experiment', 'resume', 'no_resume_opt',
)
_UNTOLD = ('output', 'experiment', 'resume', 'no_resume_opt', 'dataset_download', *BEGINNING)


def check_same_run(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
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
    for name in SAME:
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was trained with {name} {_value(name, saved)}, not {_value(name, options)}.")
    for name in () if options.no_resume_opt else SAME_OPTIMIZER:
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was trained with {name} {_value(name, saved)}, not {_value(name, options)}; "
                '--no-resume-opt goes on from the weights, with a new optimizer.')
    for name in SAME_WITHIN_EPOCH if checkpoint.within_epoch else ():
        if _differs(name, saved, options):
            raise UserError(
                f"--resume: '{path}' was written within an epoch with {name} {_value(name, saved)}, not "
                f'{_value(name, options)}: change it where an epoch has ended.')


def _check_beginning(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    saved = saved_options(checkpoint) or argparse.Namespace()
    for name in BEGINNING:
        if name == 'start_epoch' and not checkpoint.goes_on:
            continue  # a run of its own begins there
        if _value(name, options) != DEFAULTS[name] and _differs(name, saved, options):
            what = (
                'the run has begun already: give another --experiment to count epochs anew'
                if name == 'start_epoch' else f"the weights come from '{checkpoint.path}'")
            raise UserError(f'{flag_name(name)} {getattr(options, name)} has no effect with --resume: {what}.')


def changes(checkpoint: Checkpoint, options: argparse.Namespace) -> List[str]:
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


def _value(name: str, options: argparse.Namespace) -> Any:
    """An option as checkpoints hold it; one that an older version did not have has its default."""
    return plain_options(argparse.Namespace(value=getattr(options, name, DEFAULTS[name])))['value']


def _differs(name: str, saved: argparse.Namespace, options: argparse.Namespace) -> bool:
    return _value(name, saved) != _value(name, options)
