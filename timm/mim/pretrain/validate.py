"""Evaluation of a pre-training run by its checkpoint: how well it predicts, pictures, probes.

A script needs two calls, as for training: `add_arguments(parser)`, and `run(args)` with the arguments that the user
gave. Model, method and images are those of the run unless said otherwise.
"""
import argparse
import csv
import logging
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
import torch.nn as nn
from PIL import Image
from torch.utils.data import Dataset

from timm.task import MaskedImageModelingTask
from timm.utils import is_primary
from ..visualize import save_views
from .task import autocast_of, create_method, describe_device, init_process, import_mim_module
from .checkpoints import mismatch_errors, load_checkpoint, evaluation_weights
from .data.datasets import HELD_OUT_LIMIT, image_mode, open_data, open_to_measure, resolve_image_config
from .flags.run_options import DEFAULTS, RunOptions
from .errors import UserError, exit_codes, flag_name
from ..files import to_json, write_complete
from .flags import add_validation_arguments as add_arguments  # noqa: F401, scripts take it from here
from .held_out import MASK_SEED, hold_out
from .options import resolve_options
from .probes.probes import Probes

_logger = logging.getLogger(__name__)

_PICTURE_ROWS = 8
# Flags of timm's validation script that go into the options of a run, and their names there
_OPTIONS = dict(
    data='data_dir', data_dir='data_dir', dataset='dataset', split='val_split', num_samples='val_num_samples',
    batch_size='validation_batch_size',
    **{name: name for name in (
        'dataset_download', 'dataset_trust_remote_code', 'input_key', 'target_key', 'input_img_mode', 'workers',
        'pin_mem', 'device', 'amp', 'amp_dtype', 'mean', 'std', 'interpolation', 'crop_pct', 'mim_probe_dir',
        'mim_probe', 'mim_probe_layers', 'mim_probe_pool', 'max_unreadable', 'max_pixels',
    )},
)
_OWN = ('mim', 'mim_module', 'checkpoint', 'use_ema', 'mask_seed', 'mim_pictures', 'results_file', 'results_format')
_SOURCES = ('data', 'data_dir', 'dataset', 'split')


def run(args: argparse.Namespace) -> None:
    """Evaluate as the arguments say: print the results as JSON, write them and pictures where that is asked for.

    Ends the program with one line and exit code 2 for a user's mistake, 1 for data that cannot be read.

    Args:
        args: The arguments that the user gave; what was not given is absent or None.
    """
    with exit_codes():
        results = evaluate({name: value for name, value in vars(args).items() if value is not None})
        if results:
            print(f'--result\n{to_json(results, indent=4)}')


def evaluate(given: Dict[str, Any]) -> Dict[str, Any]:
    """Return how well a checkpoint does by name, empty on all processes but the first.

    Args:
        given: The arguments that the user gave.

    Raises:
        UserError: The arguments ask for what there is not.
    """
    _check_flags(given)
    path = Path(given['checkpoint'])
    checkpoint = load_checkpoint(path, flag='--checkpoint').content
    options = _options_of_run(given, checkpoint, path)
    mode = image_mode(options.in_chans, options.input_img_mode)
    dataset, description = _open_images(given, options, mode)
    method, _ = create_method(options)
    process = init_process(options)
    data_config = resolve_image_config(options, method, mode)
    method.set_image_statistics(data_config['mean'], data_config['std'])
    ema = _load(method, checkpoint, path, given.get('use_ema', False))
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
        save_views(given['mim_pictures'], views, data_config['mean'], data_config['std'], caption)
    if given.get('results_file'):
        _save_results(Path(given['results_file']), results, given.get('results_format', 'json'))
    return results


def _check_flags(given: Dict[str, Any]) -> None:
    for name in given:
        if name not in _OPTIONS and name not in _OWN:
            raise UserError(f'{flag_name(name)} has no meaning with --mim.')
    if not given.get('checkpoint'):
        raise UserError('--mim evaluates a --checkpoint, which is not given.')
    if not Path(given['checkpoint']).is_file():
        raise UserError(f"--checkpoint: there is no file '{given['checkpoint']}'.")
    picture = given.get('mim_pictures')
    if picture and Path(picture).suffix.lower() not in Image.registered_extensions():
        raise UserError(f"--mim-pictures: '{picture}' must end like a picture, in .png for example.")


def _options_of_run(given: Dict[str, Any], checkpoint: Dict[str, Any], path: Path) -> argparse.Namespace:
    """The options that the run had, with what is said otherwise now."""
    saved = vars(checkpoint['args']) if isinstance(checkpoint.get('args'), argparse.Namespace) else {}
    if 'mim' not in saved:
        raise UserError(f"--checkpoint: '{path}' is of no pre-training run, it does not say by which method.")
    import_mim_module(argparse.Namespace(mim_module=given.get('mim_module', saved.get('mim_module'))))
    if given['mim'] != saved['mim']:
        raise UserError(f"--mim {given['mim']}: '{path}' was trained with {saved['mim']}.")
    # what has to do with training, or with where the run was written, is of no interest
    others = ('resume', 'fsdp', 'torchcompile', 'torchcompile_mode', 'log_wandb', 'wandb_project', 'wandb_tags',
              'wandb_resume_id', 'log_tensorboard', 'mim_probe_dir', 'mim_probe', 'mim_probe_layers',
              'mim_probe_interval', 'mim_probe_pool', 'pretrained', 'pretrained_path', 'initial_checkpoint',
              'val_num_samples', 'device')
    options = {name: value for name, value in saved.items() if name in DEFAULTS and name not in others}
    if any(name in given for name in _SOURCES):
        options.update(data_dir=None, dataset='', val_split=None)
    options.update({_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS})
    return resolve_options(argparse.Namespace(**options))[0]


def _open_images(given: Dict[str, Any], options: RunOptions, mode: str) -> Tuple[Dataset, str]:
    """The images that the run held out, or those that are named."""
    if any(name in given for name in _SOURCES):
        return open_to_measure(options, mode)
    return open_data(options, mode).held_out, 'held out by the run'


def _load(method: nn.Module, checkpoint: Dict[str, Any], path: Path, use_ema: bool) -> bool:
    """Load the weights that count, and return whether they are a moving average."""
    ema = 'state_dict_ema' in checkpoint
    if use_ema and not ema:
        raise UserError(f"--use-ema: '{path}' holds no moving average.")
    with mismatch_errors(path, flag='--checkpoint'):
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
