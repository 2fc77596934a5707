"""Values of options that cannot be, before anything is done."""
import argparse
import math
from difflib import get_close_matches
from typing import Sequence

import torch

from timm.optim import list_optimizers
from .defaults import DEFAULTS
from .errors import UserError, flag_name
from .flags import Mistakes
from .sharding import has_fsdp2

_ONE_OR_MORE = (
    'batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'checkpoint_hist', 'in_chans',
    'validation_batch_size', 'stop_epoch', 'lr_base_size',
)
_ZERO_OR_MORE = (
    'workers', 'epoch_repeats', 'warmup_epochs', 'weight_decay', 'weight_decay_end', 'clip_grad', 'start_epoch',
    'recovery_interval', 'mim_probe_interval', 'max_pixels',
)
_POSITIVE = ('lr', 'lr_base')
_SEEDS = 2 ** 32  # as many as NumPy takes
_LARGEST = 2 ** 31 - 1  # of a count; far beyond what a run can do, and what PyTorch and the file formats take
_SHARES = (
    'hflip', 'vflip', 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'drop_path', 'crop_pct',
    'max_unreadable',
)
_INTERPOLATIONS = ('random', 'nearest', 'bilinear', 'bicubic', 'lanczos')
_CHOICES = dict(
    interpolation=_INTERPOLATIONS,
    train_interpolation=_INTERPOLATIONS,
    train_crop_mode=('rrc', 'rkrc', 'rkrr'),
    amp_dtype=('bfloat16', 'float16'),
    clip_mode=('norm', 'value', 'agc'),
    lr_base_scale=('linear', 'sqrt'),
    sched=('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none'),
)
_MAY_BE_EMPTY = ('interpolation', 'train_interpolation', 'train_crop_mode')
_PROBES = ('knn', 'linear', 'attentive')


def check_values(options: argparse.Namespace) -> None:
    """Check what can be checked without a model or data.

    Args:
        options: All options of a run.

    Raises:
        UserError: A value is outside of its range, there is no such choice, or two options exclude each other.
    """
    mistakes = Mistakes()
    for check in (_check_text, _check_numbers, _check_lists, _check_choices, _check_others):
        with mistakes.noted():
            check(options)
    mistakes.tell()


def _check_choices(options: argparse.Namespace) -> None:
    mistakes = Mistakes()
    for name, choices in _CHOICES.items():
        if getattr(options, name) or name not in _MAY_BE_EMPTY:
            with mistakes.noted():
                _check_choice(name, getattr(options, name), choices)
    with mistakes.noted():
        _check_choice('opt', options.opt.lower(), list_optimizers())
    mistakes.tell()


def _check_others(options: argparse.Namespace) -> None:
    if options.stop_epoch is not None and options.stop_epoch > options.epochs:
        raise UserError(f'--stop-epoch {options.stop_epoch} lies behind the last epoch, {options.epochs}.')
    if options.torchcompile_mode and not options.torchcompile:
        raise UserError('--torchcompile-mode is for --torchcompile, which is not given.')
    if options.fsdp:
        _check_sharding(options)
    _check_probes(options)
    if options.device is not None:
        _check_device(options.device)


def _check_text(options: argparse.Namespace) -> None:
    """Check that names can be written as UTF-8: reports, checkpoints and trackers hold them."""
    for name, value in vars(options).items():
        for word in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(word, str) and not _is_utf8(word):
                shown = word.encode(errors='backslashreplace').decode()
                raise UserError(f"{flag_name(name)}: '{shown}' is not UTF-8; rename it, or give a link to it.")


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_numbers(options: argparse.Namespace) -> None:
    mistakes = Mistakes()
    if not 0 <= options.seed < _SEEDS:
        mistakes.note(f'--seed {options.seed} must be 0 or more, and less than {_SEEDS}.')
    if options.mask_ratio is not None and not 0 < options.mask_ratio < 1:
        mistakes.note(f'--mask-ratio {options.mask_ratio:g} must lie between 0 and 1, both excluded.')
    for names, allowed, what in (
            (_ONE_OR_MORE, lambda value: value >= 1, 'be 1 or more'),
            (_ZERO_OR_MORE, lambda value: value >= 0, 'be 0 or more'),
            (_POSITIVE, lambda value: 0 < value < math.inf, 'be a positive number'),
            (_SHARES, lambda value: 0 <= value <= 1, 'lie between 0 and 1'),
    ):
        for name in names:
            value = getattr(options, name)
            if value is not None and not allowed(value):
                mistakes.note(f'{flag_name(name)} {value:g} must {what}.')
            elif value is not None and names is not _POSITIVE and value > _LARGEST:
                mistakes.note(f'{flag_name(name)} {value:.3g} is more than {_LARGEST}, the most that is allowed.')
    if options.crop_pct == 0:
        mistakes.note('--crop-pct 0 leaves nothing of an image.')
    mistakes.tell()


def _check_lists(options: argparse.Namespace) -> None:
    for name in ('scale', 'ratio'):
        value = getattr(options, name)
        if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1]):
            raise UserError(f'{flag_name(name)} takes a range: two positive numbers, the smaller one first.')
    for name in ('mean', 'std'):
        value = getattr(options, name)
        if value is not None and len(value) not in (1, options.in_chans):
            raise UserError(f'{flag_name(name)} has {len(value)} values: give one, or one per channel.')


def _check_probes(options: argparse.Namespace) -> None:
    for name in options.mim_probe:
        _check_choice('mim_probe', name, _PROBES)
    _check_choice('mim_probe_pool', options.mim_probe_pool, ('model', 'avg'))
    for name in ('mim_probe', 'mim_probe_interval', 'mim_probe_layers', 'mim_probe_pool'):
        if not options.mim_probe_dir and getattr(options, name) != DEFAULTS[name]:
            raise UserError(f'{flag_name(name)} is for --mim-probe-dir, which is not given.')


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = allowed if len(allowed) <= 10 else get_close_matches(value, allowed, n=5)
        choices = f'; choose {", ".join(near)}.' if near else '.'
        raise UserError(f"{flag_name(name)}: there is no '{value}'{choices}")


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"--device: there is no '{device}'; cpu, cuda or cuda:1, for example.") from None
    if kind == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {device}: CUDA is not available here; leave out --device, or give --device cpu.')


def _check_sharding(options: argparse.Namespace) -> None:
    if not has_fsdp2:
        raise UserError(f'--fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}.')
    for name in ('torchcompile', 'channels_last'):
        if getattr(options, name):
            raise UserError(f'{flag_name(name)} does not work with --fsdp: leave one of them out.')
    if options.clip_grad and options.clip_mode == 'agc':
        raise UserError('--clip-mode agc looks at whole parameters, and --fsdp shards them: use norm or value.')
