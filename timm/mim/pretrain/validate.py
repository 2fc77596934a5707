"""Evaluate the checkpoint of a pre-training run: held-out errors, pictures and probes.

As for training, a script needs two calls: `add_arguments(parser)`, and `run(args)` with the arguments that the user
gave. Options that the user does not give come from the run.
"""
import argparse
import csv
import logging
import os
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
import torch.nn as nn
from PIL import Image
from torch.utils.data import Dataset

from timm.task import MaskedImageModelingTask
from timm.utils import is_primary
from ..visualize import save_views
from ..checkpoint_folder import is_checkpoint_folder
from .checkpoints import Checkpoint, evaluation_weights, load_checkpoint, mismatch_errors
from .processes import describe_device, init_process
from .task import autocast_of, create_method, import_mim_module
from .data.datasets import HELD_OUT_LIMIT, image_mode, open_data, open_to_measure, resolve_image_config
from .data.image_folder import describe_changes, fingerprint
from .flags.run_options import DEFAULTS, RunOptions
from .errors import UserError, exit_codes, flag_name
from ..files import to_json, write_complete
from .flags import add_validation_arguments as add_arguments  # noqa: F401, scripts take it from here
from .held_out import MASK_SEED
from .hold_out import hold_out
from .options import resolve_options
from .probes.probes import Probes

_logger = logging.getLogger(__name__)

_PICTURE_ROWS = 8
# Flags of timm's validation script, and the options of a run that they set.
_OPTIONS = dict(
    data='data_dir', data_dir='data_dir', dataset='dataset', split='val_split', num_samples='val_num_samples',
    batch_size='validation_batch_size',
    **{name: name for name in (
        'dataset_download', 'dataset_trust_remote_code', 'input_key', 'target_key', 'input_img_mode', 'workers',
        'pin_mem', 'device', 'amp', 'amp_dtype', 'mean', 'std', 'interpolation', 'crop_pct', 'mim_probe_dir',
        'mim_probe', 'mim_probe_layers', 'mim_probe_pool', 'max_unreadable', 'max_pixels', 'mim_bands', 'exif_rotation',
    )},
)
_OWN = ('mim', 'mim_module', 'checkpoint', 'use_ema', 'mask_seed', 'mim_pictures', 'results_file', 'results_format')
_SOURCES = ('data', 'data_dir', 'dataset', 'split')


def run(args: argparse.Namespace) -> None:
    """Evaluate a checkpoint and print the results as JSON. Also write results and pictures if the arguments ask for it.

    On failure, ends the program with one line and exit code 2 for a user's mistake, 1 for unreadable data.

    Args:
        args: The arguments that the user gave. Arguments that the user did not give are absent or None.
    """
    with exit_codes():
        results = evaluate({name: value for name, value in vars(args).items() if value is not None})
        if results:
            print(f'--result\n{to_json(results, indent=4)}')


def evaluate(given: Dict[str, Any]) -> Dict[str, Any]:
    """Evaluate a checkpoint.

    Args:
        given: The arguments that the user gave.

    Returns:
        Results by name; empty on all processes but the first.

    Raises:
        UserError: A flag is invalid or missing, or the checkpoint, the images or the method cannot be loaded.
    """
    _check_flags(given)
    path = Path(given['checkpoint'])
    loaded = load_checkpoint(path, flag='--checkpoint')
    checkpoint = loaded.content
    options = _options_of_run(given, checkpoint, path)
    mode = image_mode(options.in_chans, options.input_img_mode)
    dataset, description = _open_images(given, options, mode, checkpoint)
    method, _ = create_method(options)
    process = init_process(options)
    data_config = resolve_image_config(options, method, mode)
    method.set_image_statistics(data_config['mean'], data_config['std'])
    ema = _load(method, loaded, given.get('use_ema', False))
    if is_primary(process):
        _logger.info(describe_device(torch.device(process.device), chosen=options.device is not None))
    method = method.to(process.device)
    held_out = hold_out(
        dataset, options, data_config, process,
        limit=options.val_num_samples or HELD_OUT_LIMIT, mask_seed=given.get('mask_seed', MASK_SEED))
    autocast = autocast_of(options, torch.device(process.device))

    measured = held_out.measure(method, autocast)
    baselines = held_out.baselines(method, autocast)
    probed = Probes(options, method, data_config, process).measure(method, autocast) if options.mim_probe_dir else {}
    views = held_out.views(method, autocast, _PICTURE_ROWS) if given.get('mim_pictures') else []
    if not is_primary(process):
        return {}
    results = dict(
        model=options.model, method=options.mim, checkpoint=str(path), epoch=checkpoint.get('epoch'), ema=ema,
        images=description, num_images=held_out.num_images, masks_per_image=held_out.num_masks,
        mask_seed=held_out.mask_seed, **measured, **baselines, **probed)
    if views:
        name, error = next(iter(measured.items()))
        caption = f'{path.name}, {held_out.num_images} images ({name} over all of them: {error:.3f})'
        save_views(
            given['mim_pictures'], views, data_config['mean'], data_config['std'], caption, data_config.get('bands'))
    if given.get('results_file'):
        _save_results(Path(given['results_file']), results, given.get('results_format', 'json'))
    return results


def _check_flags(given: Dict[str, Any]) -> None:
    for name in given:
        if name not in _OPTIONS and name not in _OWN:
            raise UserError(f'{flag_name(name)} has no meaning with --mim.')
    if not given.get('checkpoint'):
        raise UserError('--mim needs --checkpoint FILE, the checkpoint to evaluate.')
    path = Path(given['checkpoint'])
    if not path.is_file() and not is_checkpoint_folder(path):
        raise UserError(f"--checkpoint: there is no file '{given['checkpoint']}'.")
    picture = given.get('mim_pictures')
    if picture and Path(picture).suffix.lower() not in Image.registered_extensions():
        raise UserError(f"--mim-pictures: '{picture}' needs the ending of an image format, such as .png.")


def _options_of_run(given: Dict[str, Any], checkpoint: Dict[str, Any], path: Path) -> argparse.Namespace:
    """Return the options of the run, changed by the arguments that the user gave.

    Raises:
        UserError: The checkpoint is not from a pre-training run or from another method, or an option is invalid.
    """
    saved = vars(checkpoint['args']) if isinstance(checkpoint.get('args'), argparse.Namespace) else {}
    if 'mim' not in saved:
        raise UserError(f"--checkpoint: '{path}' is not from a pre-training run: it does not name a method.")
    import_mim_module(argparse.Namespace(mim_module=given.get('mim_module', saved.get('mim_module'))))
    if given['mim'] != saved['mim']:
        raise UserError(f"--mim {given['mim']}: '{path}' was trained with {saved['mim']}.")
    # options that matter only in training, or on the machine of the run
    others = ('resume', 'torchcompile', 'torchcompile_mode', 'log_wandb', 'wandb_project', 'wandb_tags',
              'wandb_resume_id', 'log_tensorboard', 'mim_probe_dir', 'mim_probe', 'mim_probe_layers',
              'mim_probe_interval', 'mim_probe_pool', 'pretrained', 'pretrained_path', 'initial_checkpoint',
              'val_num_samples', 'device', *(name for name in DEFAULTS if name.startswith('fsdp')))
    options = {name: value for name, value in saved.items() if name in DEFAULTS and name not in others}
    if any(name in given for name in _SOURCES):
        options.update(data_dir=None, dataset='', val_split=None)
    options.update({_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS})
    return resolve_options(argparse.Namespace(**options))[0]


def _open_images(
        given: Dict[str, Any],
        options: RunOptions,
        mode: str,
        checkpoint: Dict[str, Any],
) -> Tuple[Dataset, str]:
    """Open the images that the user names, or else those that the run held out, and describe them in one line.

    A warning says so if the held-out images are not the same as during the run.
    """
    if any(name in given for name in _SOURCES):
        dataset, description = open_to_measure(options, mode)
        root = getattr(getattr(dataset, 'reader', None), 'root', '')
        trained_on = getattr(checkpoint['args'], 'data_dir', None)
        if trained_on and os.path.exists(trained_on) and root and os.path.samefile(root, trained_on):
            _logger.warning(
                f"'{trained_on}' holds the images that the run was trained on, and all of them are measured; leave out "
                '--data-dir to measure those that it held out.')
        return dataset, description
    data = open_data(options, mode)
    before = (checkpoint.get('run') or {}).get('data')
    changed = before and describe_changes(before, fingerprint(data.train, data.held_out))
    if not changed:
        return data.held_out, 'held out by the run'
    _logger.warning(
        f'the images have changed since the run: {changed}. Some that are held out now may have been trained on; '
        '--data-dir with --split names others.')
    return data.held_out, 'held out now, of images that have changed since the run'


def _load(method: nn.Module, checkpoint: Checkpoint, use_ema: bool) -> bool:
    """Load the moving average if the checkpoint has one, else the weights. Return whether it has a moving average.

    Raises:
        UserError: `--use-ema` is given and the checkpoint has no moving average, or the weights do not fit.
    """
    ema = 'state_dict_ema' in checkpoint.content
    if use_ema and not ema:
        raise UserError(f"--use-ema: '{checkpoint.path}' has no moving average; leave out --use-ema.")
    with mismatch_errors(checkpoint.path, flag='--checkpoint'):
        MaskedImageModelingTask(method, verbose=False).load_checkpoint_state(*evaluation_weights(checkpoint))
    return ema


def _save_results(path: Path, results: Dict[str, Any], kind: str) -> None:
    def write(partial_path: Path) -> None:
        with open(partial_path, 'w', newline='') as f:
            if kind == 'json':
                f.write(to_json(results, indent=4))
                return
            writer = csv.DictWriter(f, results)
            writer.writeheader()
            writer.writerow(results)
    write_complete(path, write)
