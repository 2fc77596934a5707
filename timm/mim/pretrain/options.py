"""Complete the user's options with the defaults of the method, and validate them before doing any work.

A flag that the user did not give is absent or None, so that a default of the method never replaces a value that the
user chose. Flags of timm's training script that pre-training does not support are refused with a reason.
"""

import argparse
import math
import os
from difflib import get_close_matches
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from timm.optim import list_optimizers
from ..checkpoint_folder import has_folders
from ..factory import get_mim, list_mims, nearest_names
from ..native_aspect import NaFlexMethod
from .data.datasets import check_folder
from .errors import UserError, flag_name
from .flags import Mistakes, only_given, parse
from .flags.run_options import DEFAULTS, FIELDS, ONE_OR_MORE, POSITIVE, SHARE, ZERO_OR_MORE, RunOptions
from .recipes import RECIPES
from .sharding import has_fsdp2
from .task import check_model_name

_LABELS = 'it works on class labels, and pre-training has none'
_HEAD = "it acts on the classifier head, which a pre-trained encoder does not have"
_MIXING = 'it mixes images and their labels'
_ERASING = 'it erases pixels, which masking already does'
_SPLITS = 'it compares the predicted classes of augmented copies of an image'
_DISTILLATION = 'pre-training does not distill a classifier'
_RESOLUTION = 'the image size of a pre-training run is fixed'
_PATCH_SIZES = 'the methods predict patches of the size that the model was built for'
_LAYOUT = 'the methods need models that take patches with channels last'
_SCHEDULE = 'schedules step at every update, as in the published recipes'

# Flags that have no meaning in pre-training, and the reason.
MEANINGLESS = {
    name: reason
    for reason, names in {
        _LABELS:
            'class_map num_classes smoothing bce_loss bce_sum bce_target_thresh bce_pos_weight loss task '
            'multilabel_threshold target_format eval_metric tta loss_pos_weight loss_class_weight loss_weight_power '
            'loss_weight_beta loss_weight_max class_stats asl_gamma_pos asl_gamma_neg asl_clip asl_reduction '
            'poly_epsilon poly_gamma poly_alpha twoway_tp twoway_tn db_neg_scale db_init_bias db_focal_gamma',
        _HEAD: 'gp head_init_scale head_init_bias drop drop_block drop_connect',
        _MIXING: 'mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode mixup_off_epoch',
        _ERASING: 'reprob remode recount resplit',
        _SPLITS: 'aug_splits jsd_loss split_bn',
        _DISTILLATION:
            'kd_model_name kd_distill_type kd_loss_type distill_loss_weight task_loss_weight kd_temperature '
            'kd_student_feature_dim kd_teacher_feature_dim kd_token_distill_type',
        _RESOLUTION:
            'train_img_sizes train_batch_sizes train_size_probs train_size_schedule train_size_schedule_spread '
            'train_size_random_mix train_batches_per_epoch variable_batch_loss_scale',
        _PATCH_SIZES: 'naflex_patch_sizes naflex_patch_size_probs',
        _LAYOUT: 'naflex_patchify_channels_first',
        _SCHEDULE: 'sched_on_updates',
    }.items()
    for name in names.split()
}

# Flags that pre-training could support but does not, and what to do instead.
UNSUPPORTED = dict(
    torchscript='use --torchcompile',
    fuser='use --torchcompile',
    model_dtype='use --amp',
    local_rank='start the script with torchrun',
    pretrained_cfg_overlay='use --pretrained-path for weights, --mean and --std for images',
    aug_repeats='use --epoch-repeats',
    bn_momentum='set it in --model-kwargs',
    bn_eps='set it in --model-kwargs',
    sync_bn='each process keeps its own batch statistics; SparK and FCMAE have --mim-kwargs sync_batch_norm=True',
    dist_bn='each process keeps its own batch statistics',
    model_ema_force_cpu='the average stays on the device of the model',
    patience_epochs='--sched plateau is not available',
    worker_seeding='every image has its own seed, derived from --seed',
    use_multi_epochs_loader='workers are kept between epochs anyway',
    no_prefetcher='images are always normalised on the device',
    save_images='the run folder contains pictures of held-out images',
)

_SEEDS = 2 ** 32  # number of seeds that NumPy accepts
_LARGEST = 2 ** 31 - 1  # largest count that PyTorch and the file formats accept

_NUMBERS = {
    ONE_OR_MORE: lambda value: value >= 1,
    ZERO_OR_MORE: lambda value: value >= 0,
    POSITIVE: lambda value: 0 < value < math.inf,
    SHARE: lambda value: 0 <= value <= 1,
}
_PROBES = ('knn', 'linear', 'attentive')


def check_values(options: RunOptions) -> None:
    """Validate all option values that can be checked without a model or data.

    Args:
        options: All options of a run.

    Raises:
        UserError: A value is out of range or not among the choices, or two options exclude each other.
    """
    mistakes = Mistakes()
    for check in (_check_text, _check_numbers, _check_lists, _check_choices, _check_others):
        with mistakes.collected():
            check(options)
    mistakes.raise_all()


def _check_choices(options: RunOptions) -> None:
    mistakes = Mistakes()
    for name, field in FIELDS.items():
        value = getattr(options, name)
        if field.metadata['choices'] and not (value is None and field.default is None):
            with mistakes.collected():
                _check_choice(name, value, field.metadata['choices'])
    with mistakes.collected():
        _check_choice('opt', options.opt.lower(), list_optimizers())
    mistakes.raise_all()


def _check_others(options: RunOptions) -> None:
    if options.stop_epoch is not None and options.stop_epoch > options.epochs:
        raise UserError(f'--stop-epoch {options.stop_epoch} is after the last epoch, {options.epochs}.')
    if options.torchcompile_mode and not options.torchcompile:
        raise UserError('--torchcompile-mode is for --torchcompile, which is not given.')
    if options.checkpoint_format == 'folder' and not has_folders:
        raise UserError(f'--checkpoint-format folder needs PyTorch 2.5 or newer, this is {torch.__version__}.')
    _check_sharding(options)
    if options.grad_checkpointing and options.grad_checkpointing_every:
        raise UserError('--grad-checkpointing recomputes all blocks: leave it or --grad-checkpointing-every out.')
    _check_probes(options)
    _check_naflex(options)
    if options.device is not None:
        _check_device(options.device)


def _check_text(options: RunOptions) -> None:
    """Check that all text can be written as UTF-8, as reports, checkpoints and trackers do."""
    for name, value in vars(options).items():
        for word in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(word, str) and not _is_utf8(word):
                shown = word.encode(errors='backslashreplace').decode()
                raise UserError(f"{flag_name(name)}: '{shown}' is not valid UTF-8; rename it, or give a link to it.")


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_numbers(options: RunOptions) -> None:
    mistakes = Mistakes()
    if not 0 <= options.seed < _SEEDS:
        mistakes.add(f'--seed {options.seed} must be 0 or more, and less than {_SEEDS}.')
    if options.mask_ratio is not None and not 0 < options.mask_ratio < 1:
        mistakes.add(f'--mask-ratio {options.mask_ratio:g} must lie between 0 and 1, both excluded.')
    for name, field in FIELDS.items():
        value, allowed = getattr(options, name), field.metadata['allowed']
        if allowed is None or value is None:
            continue
        if not _NUMBERS[allowed](value):
            mistakes.add(f'{flag_name(name)} {value:g} must {allowed}.')
        elif allowed != POSITIVE and value > _LARGEST:
            mistakes.add(f'{flag_name(name)} {value:.3g} is more than {_LARGEST}, the most that is allowed.')
    if options.crop_pct == 0:
        mistakes.add('--crop-pct 0 removes the whole image: give more than 0.')
    mistakes.raise_all()


def _check_lists(options: RunOptions) -> None:
    for name in ('scale', 'ratio'):
        value = getattr(options, name)
        if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1]):
            raise UserError(f'{flag_name(name)} takes a range: two positive numbers, the smaller one first.')
    for name in ('mean', 'std'):
        value = getattr(options, name)
        if value is not None and len(value) not in (1, options.in_chans):
            raise UserError(f'{flag_name(name)} has {len(value)} values: give one, or one per channel.')


def _check_probes(options: RunOptions) -> None:
    for name in options.mim_probe:
        _check_choice('mim_probe', name, _PROBES)
    _check_choice('mim_probe_pool', options.mim_probe_pool, ('model', 'avg'))
    for name in ('mim_probe', 'mim_probe_interval', 'mim_probe_layers', 'mim_probe_pool', 'mim_probe_best'):
        if not options.mim_probe_dir and getattr(options, name) != DEFAULTS[name]:
            raise UserError(f'{flag_name(name)} is for --mim-probe-dir, which is not given.')


# Options that timm's NaFlex transforms do not use
_NOT_WITH_NAFLEX = dict(
    img_size='images keep their shape: --naflex-train-seq-lens and --naflex-max-seq-len give their size',
    crop_pct='held-out images are not cropped',
    train_crop_mode='training images are cropped by --scale and --ratio',
    channels_last='patches have no memory layout of images',
)


def _check_naflex(options: RunOptions) -> None:
    if not options.naflex_loader:
        for name in ('naflex_max_seq_len', 'naflex_train_seq_lens', 'naflex_loss_scale'):
            if getattr(options, name) != DEFAULTS[name]:
                raise UserError(f'{flag_name(name)} is for --naflex-loader, which is not given.')
        return
    mistakes = Mistakes()
    method = get_mim(options.mim)
    if not issubclass(method, NaFlexMethod):
        mistakes.add(f'--naflex-loader does not work with --mim {options.mim}: {method.naflex_refusal(None)}.')
    for name, reason in _NOT_WITH_NAFLEX.items():
        if getattr(options, name):
            mistakes.add(f'{flag_name(name)} has no meaning with --naflex-loader: {reason}.')
    if options.plan is not None:
        mistakes.add('--plan computes what images of one size cost, and does not work with --naflex-loader.')
    for length in options.naflex_train_seq_lens:
        if not 1 <= length <= _LARGEST:
            mistakes.add(f'--naflex-train-seq-lens {length} must be 1 or more, and at most {_LARGEST}.')
    if options.mim_probe_dir and list(options.mim_probe_layers) != ['last']:
        mistakes.add('--mim-probe-layers works with images of one size: with --naflex-loader only last is probed.')
    if options.mim_probe_dir and 'attentive' in options.mim_probe:
        mistakes.add('--mim-probe attentive needs tokens of one grid: with --naflex-loader use knn or linear.')
    mistakes.raise_all()


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = [word for word in allowed if word] if len(allowed) <= 10 else get_close_matches(value, allowed, n=5)
        choices = f'; choose {", ".join(near)}.' if near else '.'
        raise UserError(f"{flag_name(name)}: there is no '{value}'{choices}")


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"--device: there is no '{device}'; give cpu, cuda or cuda:1, for example.") from None
    if kind == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'--device {device}: CUDA is not available here; leave out --device, or give --device cpu.')


def _check_sharding(options: RunOptions) -> None:
    if not options.fsdp:
        for name in ('fsdp_replicas', 'fsdp_reshard', 'fsdp_param_dtype', 'fsdp_reduce_dtype', 'fsdp_build_dir'):
            if getattr(options, name) != DEFAULTS[name]:
                raise UserError(f'{flag_name(name)} is for --fsdp, which is not given.')
        return
    if not has_fsdp2:
        raise UserError(f'--fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}.')
    if options.channels_last:
        raise UserError('--channels-last does not work with --fsdp: leave one of them out.')
    if options.clip_grad and options.clip_mode == 'agc':
        raise UserError('--clip-mode agc needs unsharded parameters, and --fsdp shards them: use norm or value.')
    for name in ('fsdp_replicas', 'fsdp_reshard', 'fsdp_param_dtype') if options.plan is not None else ():
        if getattr(options, name) != DEFAULTS[name]:
            raise UserError(f'--plan does not count what {flag_name(name)} changes: leave one of them out.')
    folder = options.fsdp_build_dir
    if folder and not os.path.isdir(folder):
        raise UserError(f"--fsdp-build-dir: there is no folder '{folder}'.")
    if folder and not hasattr(os, 'posix_fallocate'):
        raise UserError('--fsdp-build-dir needs a system that can reserve disk space, such as Linux.')
    dtype = options.fsdp_param_dtype
    if dtype and not (options.amp and options.amp_dtype == dtype):
        raise UserError(f'--fsdp-param-dtype {dtype} needs --amp --amp-dtype {dtype}: operations run in that type.')


def given_arguments(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line again, and return only the arguments that the user gave.

    A script for supervised training has other defaults than pre-training, so `run` must not receive them. Ends the
    program with exit code 2 if the configuration file cannot be read or contains an unknown flag.

    Args:
        parser: The parser of the script. It need not define `-c/--config FILE`: this function reads the YAML file.
            Flags in the file count as given by the user; the command line overrides them.
        argv: Arguments of the command line; None for `sys.argv[1:]`.

    Returns:
        The arguments that the user gave.
    """
    try:
        return only_given(parser, *parse(parser, argv))
    except UserError as e:
        parser.error(str(e))


def resolve_options(given: argparse.Namespace) -> Tuple[RunOptions, List[str]]:
    """Complete the user's options with the defaults of the method and the general defaults.

    Args:
        given: The flags that the user gave; others are absent or None.

    Returns:
        All options of a run, and the names of those that have the method's default.

    Raises:
        UserError: An option is unknown, has no meaning in pre-training, or has an impossible value.
    """
    chosen = {name: value for name, value in vars(given).items() if value is not None}
    _check_method(chosen.get('mim'))
    _refuse(chosen)
    chosen.pop('config', None)
    if 'data' in chosen:  # the positional form of --data-dir
        chosen.setdefault('data_dir', chosen.pop('data'))

    recipe = dict(RECIPES.get(chosen['mim'], {}))
    if 'lr_base' in chosen:
        recipe.pop('lr_base_size', None)  # a base rate that the user gives is for 256 images, the general default
    if 'opt' in chosen:
        recipe.pop('opt_kwargs', None)  # another optimizer has other arguments
    if chosen.get('train_crop_mode', 'rrc') != 'rrc':
        # the recipe's ranges are for random resized crops
        recipe = {k: v for k, v in recipe.items() if k not in ('scale', 'ratio')}
    for name in ('mask_ratio', 'mask_unit'):
        if name in chosen.get('mim_kwargs', {}):
            if name in chosen:
                raise UserError(f'{flag_name(name)} is given twice, once in --mim-kwargs: give it once.')
            recipe.pop(name, None)
    from_recipe = [name for name in recipe if name not in chosen]
    if 'lr' in chosen:
        from_recipe = [name for name in from_recipe if not name.startswith('lr_base')]

    options = RunOptions(**{**recipe, **chosen})
    if options.warmup_epochs is None:
        options.warmup_epochs = min(10, options.epochs // 10)
    options.img_size = _image_size(options)
    options.in_chans = options.input_size[0] if options.input_size else options.in_chans or 3
    options.input_size = None
    options.mask_unit = _mask_unit(options.mask_unit)
    _check(options)
    return options, from_recipe


def _check(options: RunOptions) -> None:
    """Check the image folder, the model name and all values, and report all mistakes together."""
    mistakes = Mistakes()
    if options.data_dir and not options.dataset:
        with mistakes.collected():
            check_folder(options.data_dir)
    with mistakes.collected():
        check_model_name(options)
    with mistakes.collected():
        check_values(options)
    mistakes.raise_all()


def resolve_learning_rate(options: RunOptions, global_batch_size: int) -> float:
    """Return the learning rate: `--lr`, or `--lr-base` scaled to the global batch size."""
    if options.lr is not None:
        return options.lr
    return scaled_learning_rate(options.lr_base, global_batch_size / options.lr_base_size, options.lr_base_scale)


def scaled_learning_rate(base: float, ratio: float, scale: str) -> float:
    """Scale a base learning rate to the number of images per update.

    Args:
        base: Learning rate for the base number of images.
        ratio: Number of images per update, divided by the base number.
        scale: 'linear' or 'sqrt'.
    """
    return base * (math.sqrt(ratio) if scale == 'sqrt' else ratio)


def _check_method(method: Optional[str]) -> None:
    if method not in list_mims():
        near = nearest_names(str(method), list_mims(), 1)
        hint = f'did you mean {near[0]}?' if near else f"choose {' or '.join(list_mims())}."
        raise UserError(f"--mim: there is no method '{method}'; {hint}")


def _refuse(chosen: Dict[str, Any]) -> None:
    mistakes = Mistakes()
    for name in chosen:
        if name in MEANINGLESS:
            mistakes.add(f'{flag_name(name)} has no meaning with --mim: {MEANINGLESS[name]}.')
        elif name in UNSUPPORTED:
            mistakes.add(f'{flag_name(name)} is not supported with --mim: {UNSUPPORTED[name]}.')
        elif name not in DEFAULTS and name not in ('data', 'config'):
            mistakes.add(f'{flag_name(name)} is not an option of pre-training.')
    mistakes.raise_all()
    if 'data' in chosen and 'data_dir' in chosen:
        raise UserError('the image folder is given twice, with --data-dir and as a plain argument: give it once.')
    if chosen.get('model_kwargs', {}).get('patch_drop_rate'):
        raise UserError(
            'patch_drop_rate in --model-kwargs drops random patches before masking: leave it out.')


def _pair(name: str, value: Any) -> Tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, 2) or not all(isinstance(v, int) and v > 0 for v in values):
        raise UserError(f'{flag_name(name)} {" ".join(map(str, values))}: give one size, or height and width.')
    return values[0], values[-1]


def _image_size(options: RunOptions) -> Optional[Tuple[int, int]]:
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
        return None  # the method chooses a size that fits the model
    height, width = _pair('mask_unit', value)
    return height if height == width else (height, width)
