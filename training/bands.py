"""Train and evaluate with labels on images of any number of bands."""
import argparse
import logging
from typing import Any, Dict, Iterable

import torch.nn as nn
from torch.utils.data import Dataset

from timm.data import AugMixDataset
from timm.mim.pretrain.data.augmenting import on_bands
from timm.mim.pretrain.data.bands import measure_bands
from timm.mim.pretrain.data.loading import check_band_augmentation
from .errors import UserError

_logger = logging.getLogger(__name__)

_REFUSED = ('aug_splits', 'naflex_loader', 'train_img_sizes', 'tf_preprocessing', 'crop_mode', 'crop_border_pixels')


def prepare(args: argparse.Namespace, defaults: Dict[str, Any]) -> None:
    """Check that the flags fit images of bands, and set others: images are normalised in the workers, as they need.

    Args:
        args: Arguments of the script, which change.
        defaults: Defaults of the script, empty for one that does not augment.

    Raises:
        UserError: A flag needs colours of 8 bits, or PIL images.
    """
    for name in _REFUSED:
        if getattr(args, name, None):
            raise UserError(f"--{name.replace('_', '-')} does not work with --input-img-mode bands.")
    for name in check_band_augmentation(vars(args), defaults) if defaults else ():
        _logger.info(f"bands: --{name.replace('_', '-')} {getattr(args, name)} is off, it changes colours of 8 bits.")
        setattr(args, name, None)
    args.prefetcher = False


def statistics(args: argparse.Namespace, model: nn.Module, channels: int, train: Dataset = None) -> Dict[str, Any]:
    """Return mean and standard deviation of bands: of the flags, else of the model, else measured on training images.

    Args:
        args: Arguments of the script. Measured values are set in them.
        model: The model. Statistics of three channels in its configuration are those of photographs, and not used.
        channels: Number of bands.
        train: Training images; None for a script that has none.

    Raises:
        UserError: The statistics are unknown.
    """
    if None not in (args.mean, args.std):
        return {}
    config = getattr(model, 'pretrained_cfg', None) or {}
    if channels > 3 and len(config.get('mean') or ()) == len(config.get('std') or ()) == channels:
        return {}
    if train is None or (args.mean, args.std) != (None, None):
        raise UserError(
            '--mean and --std are needed for bands, one number per band: args.yaml of the training run has them.')
    args.mean, args.std, count = measure_bands(train, channels)
    args.mean, args.std = list(args.mean), list(args.std)
    flags = ' '.join(f"--{name} {' '.join(map(str, getattr(args, name)))}" for name in ('mean', 'std'))
    _logger.info(f'bands: measured on {count} images: {flags}')
    return dict(mean=tuple(args.mean), std=tuple(args.std))


def use_band_transforms(data_config: Dict[str, Any], *loaders: Iterable) -> None:
    """Replace timm's transforms of loaders by the same on bands.

    Args:
        data_config: Input size, interpolation and crop of the images.
        *loaders: timm's loaders without prefetcher, or None.

    Raises:
        UserError: The interpolation needs PIL images.
    """
    if data_config['interpolation'] not in ('bilinear', 'bicubic'):
        raise UserError(f"--interpolation {data_config['interpolation']}: use bilinear or bicubic with bands.")
    for loader in loaders:
        if loader is not None:
            assert not isinstance(loader.dataset, AugMixDataset)
            loader.dataset.transform = on_bands(
                loader.dataset.transform, tuple(data_config['input_size'][1:]), data_config['crop_pct'],
                data_config['interpolation'])
