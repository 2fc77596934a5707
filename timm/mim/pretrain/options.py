"""What the flags of a training script mean for pre-training: defaults, recipes of the methods, refusals.

A run starts from what the user gave, and nothing else: a flag that was not given is absent, or None. That is how a
value from the recipe can be told from one that the user chose.
"""
import argparse
import math
from typing import Any, Dict, List, Optional, Tuple

from ..factory import list_mims
from ..model_names import nearest_names
from .build_method import check_model_name
from .data.datasets import check_folder
from .defaults import DEFAULTS
from .errors import UserError, flag_name
from .flags import Mistakes
from .option_checks import check_values
from .recipes import RECIPES
from .refused_flags import MEANINGLESS, UNSUPPORTED


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
    _check(options)
    return options, from_recipe


def _check(options: argparse.Namespace) -> None:
    """Tell all mistakes at once that can be seen without reading anything: images, model, values."""
    mistakes = Mistakes()
    if options.data_dir and not options.dataset:
        with mistakes.noted():
            check_folder(options.data_dir)
    with mistakes.noted():
        check_model_name(options)
    with mistakes.noted():
        check_values(options)
    mistakes.tell()


def resolve_learning_rate(options: argparse.Namespace, global_batch_size: int) -> float:
    """Return the absolute learning rate: `--lr`, or the base rate scaled to the batch."""
    if options.lr is not None:
        return options.lr
    scale = global_batch_size / options.lr_base_size
    return options.lr_base * (math.sqrt(scale) if options.lr_base_scale == 'sqrt' else scale)


def _check_method(method: Optional[str]) -> None:
    if method not in list_mims():
        near = nearest_names(str(method), list_mims(), 1)
        hint = f'did you mean {near[0]}?' if near else f"choose {' or '.join(list_mims())}."
        raise UserError(f"--mim: '{method}' is no method; {hint}")


def _refuse(chosen: Dict[str, Any]) -> None:
    mistakes = Mistakes()
    for name in chosen:
        if name in MEANINGLESS:
            mistakes.note(f'{flag_name(name)} has no meaning with --mim: {MEANINGLESS[name]}.')
        elif name in UNSUPPORTED:
            mistakes.note(f'{flag_name(name)} is not supported with --mim: {UNSUPPORTED[name]}.')
        elif name not in DEFAULTS and name not in ('data', 'config'):
            mistakes.note(f'{flag_name(name)} is not an option of pre-training.')
    mistakes.tell()
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
        return None  # the method takes what fits the model
    height, width = _pair('mask_unit', value)
    return height if height == width else (height, width)
