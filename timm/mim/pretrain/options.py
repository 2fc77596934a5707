"""What the flags of a training script mean for pre-training: defaults, recipes of the methods, refusals.

A run starts from what the user gave, and nothing else: a flag that was not given is absent, or None. That is how a
value from the recipe can be told from one that the user chose.
"""
import argparse
import math
from difflib import get_close_matches
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from timm.optim import list_optimizers
from ..factory import list_mims
from .errors import UserError, flag_name
from .recipes import RECIPES
from .refused_flags import MEANINGLESS, UNSUPPORTED
from .sharding import has_fsdp2

DEFAULTS = dict(
    # dataset
    data_dir=None, dataset='', train_split='train', val_split=None, train_num_samples=None, val_num_samples=None,
    dataset_download=False, dataset_trust_remote_code=False, input_img_mode=None, input_key=None, target_key=None,
    max_unreadable=0.1,
    # model
    model='vit_small_patch16_224', pretrained=False, pretrained_path=None, initial_checkpoint='', model_kwargs={},
    img_size=None, in_chans=None, input_size=None, mean=None, std=None, interpolation='', crop_pct=None,
    drop_path=None, grad_checkpointing=False, channels_last=False, fast_norm=False, torchcompile=None,
    torchcompile_mode=None,
    # device
    device='cuda', amp=False, amp_dtype='bfloat16', no_ddp_bb=False, synchronize_step=False, device_modules=None,
    # batches
    batch_size=128, validation_batch_size=None, grad_accum_steps=1, epoch_repeats=0.0, workers=4, pin_mem=False,
    # optimizer
    opt='adamw', opt_eps=None, opt_betas=None, momentum=0.9, weight_decay=0.05, weight_decay_end=None,
    clip_grad=None, clip_mode='norm', layer_decay=None, layer_decay_min_scale=0.0, layer_decay_no_opt_scale=None,
    opt_kwargs={},
    # schedule
    lr=None, lr_base=1.5e-4, lr_base_size=256, lr_base_scale='linear', sched='cosine', epochs=300,
    start_epoch=None, stop_epoch=None, save_epochs=[], warmup_epochs=None, warmup_lr=0.0,
    warmup_prefix=False, min_lr=0.0, cooldown_epochs=0, decay_milestones=[90, 180, 270], decay_epochs=None,
    decay_rate=0.1, lr_noise=None, lr_noise_pct=0.67, lr_noise_std=1.0, lr_cycle_mul=1.0, lr_cycle_decay=0.5,
    lr_cycle_limit=1, lr_k_decay=1.0, lr_decay_fn=None, lr_stable_timescale=None,
    # augmentation
    no_aug=False, train_crop_mode=None, scale=None, ratio=None, hflip=0.5, vflip=0.0, color_jitter=0.0,
    color_jitter_prob=None, grayscale_prob=0.0, gaussian_blur_prob=0.0, aa=None, train_interpolation='bicubic',
    # exponential moving average
    model_ema=False, model_ema_decay=0.9998, model_ema_warmup=False,
    # miscellaneous
    seed=42, log_interval=50, val_interval=1, recovery_interval=0, checkpoint_hist=10, output='', experiment='',
    resume='', no_resume_opt=False,
    # trackers
    log_tensorboard=False, log_wandb=False, wandb_project=None, wandb_tags=None, wandb_resume_id='',
    # masked image modeling
    mim_probe_dir=None, mim_probe=['knn', 'linear'], mim_probe_interval=0, mim_probe_layers=['last'],
    mim_probe_pool='model',
    mim=None, mim_module=None, mim_kwargs={}, mask_ratio=None, mask_unit=None, fsdp=False,
)
PROBES = ('knn', 'linear', 'attentive')


def resolve_options(given: argparse.Namespace) -> Tuple[argparse.Namespace, List[str]]:
    """Complete what the user gave with the recipe of the method and the general defaults.

    Args:
        given: The flags that the user gave; others are absent or None.

    Returns:
        All options of a run, and the names of those that came from the recipe.

    Raises:
        UserError: An option is unknown, has no meaning in pre-training, or has an impossible value.
    """
    chosen = {name: value for name, value in vars(given).items() if value is not None}
    _check_method(chosen.get('mim'))
    _refuse(chosen)
    if 'data' in chosen:  # the positional form of --data-dir
        chosen.setdefault('data_dir', chosen.pop('data'))

    recipe = dict(RECIPES.get(chosen['mim'], {}))
    if 'lr_base' in chosen:
        recipe.pop('lr_base_size', None)  # the user's base rate counts per 256 images unless he says otherwise
    if chosen.get('train_crop_mode', 'rrc') != 'rrc':
        # its ranges are those of random resized crops
        recipe = {k: v for k, v in recipe.items() if k not in ('scale', 'ratio')}
    for name in ('mask_ratio', 'mask_unit'):
        if name in chosen.get('mim_kwargs', {}):
            if name in chosen:
                raise UserError(f'{flag_name(name)} is given twice, once in --mim-kwargs: give it once.')
            recipe.pop(name, None)
    from_recipe = [name for name in recipe if name not in chosen]
    if 'lr' in chosen:
        from_recipe = [name for name in from_recipe if not name.startswith('lr_base')]

    options = argparse.Namespace(**{**DEFAULTS, **recipe, **chosen})
    if options.warmup_epochs is None:
        options.warmup_epochs = min(10, options.epochs // 10)
    options.img_size = _image_size(options)
    options.in_chans = options.input_size[0] if options.input_size else options.in_chans or 3
    options.input_size = None
    options.mask_unit = _mask_unit(options.mask_unit)
    _check_values(options)
    return options, from_recipe


def resolve_learning_rate(options: argparse.Namespace, global_batch_size: int) -> float:
    """Return the absolute learning rate: `--lr`, or the base rate scaled to the batch."""
    if options.lr is not None:
        return options.lr
    scale = global_batch_size / options.lr_base_size
    return options.lr_base * (math.sqrt(scale) if options.lr_base_scale == 'sqrt' else scale)


def _check_method(method: Optional[str]) -> None:
    if method not in list_mims():
        raise UserError(f"--mim: '{method}' is no method; choose {' or '.join(list_mims())}.")


def _refuse(chosen: Dict[str, Any]) -> None:
    for name in chosen:
        if name in MEANINGLESS:
            raise UserError(f'{flag_name(name)} has no meaning with --mim: {MEANINGLESS[name]}.')
        if name in UNSUPPORTED:
            raise UserError(f'{flag_name(name)} is not supported with --mim: {UNSUPPORTED[name]}.')
        if name not in DEFAULTS and name not in ('data', 'config'):
            raise UserError(f'{flag_name(name)} is not an option of pre-training.')
    if 'data' in chosen and 'data_dir' in chosen:
        raise UserError('the image folder is given twice: as --data-dir and by position.')
    if chosen.get('model_kwargs', {}).get('patch_drop_rate'):
        raise UserError(
            'patch_drop_rate in --model-kwargs drops patches at random before masking can act: leave it out.')


def _pair(name: str, value: Any) -> Tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, 2) or not all(isinstance(v, int) and v > 0 for v in values):
        raise UserError(f'{flag_name(name)} {" ".join(map(str, values))}: give one size, or height and width.')
    return values[0], values[-1]


def _image_size(options: argparse.Namespace) -> Optional[Tuple[int, int]]:
    if options.input_size is not None:
        if options.img_size is not None:
            raise UserError('--img-size and --input-size both give an image size: use one of them.')
        if len(options.input_size) != 3:
            raise UserError('--input-size takes channels, height and width.')
        if options.in_chans is not None and options.in_chans != options.input_size[0]:
            raise UserError(f'--in-chans {options.in_chans} contradicts --input-size {options.input_size}.')
        return _pair('input_size', options.input_size[1:])
    return None if options.img_size is None else _pair('img_size', options.img_size)


def _mask_unit(value: Any) -> Any:
    if value is None:
        return None  # the user gave it in --mim-kwargs
    height, width = _pair('mask_unit', value)
    return height if height == width else (height, width)


def _check_values(options: argparse.Namespace) -> None:
    if options.mask_ratio is not None and not 0 < options.mask_ratio < 1:
        raise UserError(f'--mask-ratio {options.mask_ratio:g} must lie between 0 and 1, both excluded.')
    for name in ('batch_size', 'epochs', 'grad_accum_steps', 'log_interval', 'val_interval', 'checkpoint_hist',
                 'in_chans', 'validation_batch_size', 'stop_epoch', 'lr_base_size'):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f'{flag_name(name)} {value} must be 1 or more.')
    for name in ('workers', 'epoch_repeats', 'warmup_epochs', 'weight_decay', 'weight_decay_end', 'clip_grad',
                 'start_epoch', 'recovery_interval', 'mim_probe_interval'):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UserError(f'{flag_name(name)} {value:g} must be 0 or more.')
    for name in ('lr', 'lr_base'):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f'{flag_name(name)} {value:g} must be a positive number.')
    for name in ('hflip', 'vflip', 'color_jitter_prob', 'grayscale_prob', 'gaussian_blur_prob', 'drop_path',
                 'crop_pct', 'max_unreadable'):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f'{flag_name(name)} {value:g} must lie between 0 and 1.')
    if options.crop_pct == 0:
        raise UserError('--crop-pct 0 leaves nothing of an image.')
    for name in ('scale', 'ratio'):
        value = getattr(options, name)
        if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1]):
            raise UserError(f'{flag_name(name)} takes a range: two positive numbers, the smaller one first.')
    for name in ('mean', 'std'):
        value = getattr(options, name)
        if value is not None and len(value) not in (1, options.in_chans):
            raise UserError(f'{flag_name(name)} has {len(value)} values: give one, or one per channel.')
    if options.stop_epoch is not None and options.stop_epoch > options.epochs:
        raise UserError(f'--stop-epoch {options.stop_epoch} lies behind the last epoch, {options.epochs}.')
    for name in ('interpolation', 'train_interpolation'):
        _check_choice(name, getattr(options, name) or 'random', ('random', 'nearest', 'bilinear', 'bicubic', 'lanczos'))
    _check_choice('train_crop_mode', options.train_crop_mode or 'rrc', ('rrc', 'rkrc', 'rkrr'))
    _check_choice('amp_dtype', options.amp_dtype, ('bfloat16', 'float16'))
    _check_choice('clip_mode', options.clip_mode, ('norm', 'value', 'agc'))
    _check_choice('lr_base_scale', options.lr_base_scale, ('linear', 'sqrt'))
    _check_choice('opt', options.opt.lower(), list_optimizers())
    _check_choice(
        'sched', options.sched, ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none'))
    if options.torchcompile_mode and not options.torchcompile:
        raise UserError('--torchcompile-mode is for --torchcompile, which is not given.')
    if options.fsdp:
        _check_sharding(options)
    _check_probes(options)
    _check_device(options.device)


def _check_probes(options: argparse.Namespace) -> None:
    for name in options.mim_probe:
        _check_choice('mim_probe', name, PROBES)
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
        raise UserError(f'--device {device}: CUDA is not available here; use --device cpu.')


def _check_sharding(options: argparse.Namespace) -> None:
    if not has_fsdp2:
        raise UserError(f'--fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}.')
    for name in ('torchcompile', 'channels_last'):
        if getattr(options, name):
            raise UserError(f'{flag_name(name)} does not work with --fsdp: leave one of them out.')
    if options.clip_grad and options.clip_mode == 'agc':
        raise UserError('--clip-mode agc looks at whole parameters, and --fsdp shards them: use norm or value.')
