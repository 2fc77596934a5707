"""Create the loaders of a run, with mixup and cutmix."""
import argparse
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Optional

import torch.nn as nn

from timm.data import AugMixDataset, FastCollateMixup, Mixup, NaFlexMixup, create_loader, create_naflex_loader
from timm.mim.pretrain.data.formats import BANDS
from . import bands
from .datasets import image_mode, open_splits, patch_size_of
from .device import Process
from .errors import user_errors
from .objective import mixes_labels

# Arguments of timm's loaders, and the flags that give them.
_AUGMENTATION = {
    **{name: name for name in (
        'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob',
        'grayscale_prob', 'gaussian_blur_prob', 'worker_seeding')},
    'auto_augment': 'aa', 'num_aug_repeats': 'aug_repeats', 'num_aug_splits': 'aug_splits',
    're_prob': 'reprob', 're_mode': 'remode', 're_count': 'recount', 're_split': 'resplit',
}


@dataclass
class Loaders:
    """The loaders of a run.

    Args:
        train: Loader of training batches.
        validation: Loader of validation batches, None for a run without validation.
        mixup: Mixes a batch on the device, None if the loader mixes or nothing does.
        average_batch_size: Average number of images in a training batch.
        batch_loss_scale: How the loss is scaled with the size of its batch: none, sqrt or linear.
    """
    train: Iterable
    validation: Optional[Iterable]
    mixup: Optional[Mixup]
    average_batch_size: float
    batch_loss_scale: str = 'none'

    def set_epoch(self, epoch: int, mixup_off_epoch: int) -> None:
        """Set the epoch of samplers and datasets, and turn off mixup from `mixup_off_epoch` on."""
        if hasattr(self.train.dataset, 'set_epoch'):
            self.train.dataset.set_epoch(epoch)
        for sampler in (self.train.batch_sampler, self.train.sampler):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
                break
        if mixup_off_epoch and epoch >= mixup_off_epoch:
            if self.mixup is not None:
                self.mixup.mixup_enabled = False
            elif getattr(self.train, 'mixup_enabled', False):
                self.train.mixup_enabled = False


def create_loaders(
        args: argparse.Namespace,
        model: nn.Module,
        data_config: Dict[str, Any],
        process: Process,
        defaults: Dict[str, Any],
) -> Loaders:
    """Open the datasets and make their loaders.

    Args:
        args: Arguments of the run.
        model: The model, for its patch size with --naflex-loader.
        data_config: Size and normalisation of images, from `training.datasets.resolve_image_config`.
        process: Device and type of the images.
        defaults: Defaults of the script, for what fits only photographs and nobody asked for.

    Raises:
        UserError: The data cannot be opened, or a flag does not fit it.
    """
    mode = image_mode(args, data_config)
    if mode == BANDS:
        bands.prepare(args, defaults)
    train, validation = open_splits(args, mode)
    if mode == BANDS:
        data_config.update(bands.statistics(args, model, data_config['input_size'][0], train))
    common = dict(
        mean=data_config['mean'],
        std=data_config['std'],
        pin_memory=args.pin_mem,
        img_dtype=process.dtype,
        device=process.device,
        distributed=args.distributed,
        use_prefetcher=args.prefetcher,
    )
    train_arguments = {**common, **_train_arguments(args, data_config)}
    validation_arguments = {**common, **_validation_arguments(args, data_config)}
    with user_errors('the training data', AssertionError, TypeError, ValueError):
        if args.naflex_loader:
            return _naflex_loaders(args, model, data_config, train, train_arguments, validation, validation_arguments)
        loaders = _image_loaders(args, data_config, train, train_arguments, validation, validation_arguments)
    if mode == BANDS:
        bands.use_band_transforms(data_config, loaders.train, loaders.validation)
    return loaders


def _train_arguments(args: argparse.Namespace, data_config: Dict[str, Any]) -> Dict[str, Any]:
    interpolation = '' if args.no_aug else args.train_interpolation
    return dict(
        is_training=True,
        batch_size=args.batch_size,
        num_workers=args.workers,
        interpolation=interpolation or data_config['interpolation'],
        **{name: getattr(args, flag) for name, flag in _AUGMENTATION.items()},
    )


def _validation_arguments(args: argparse.Namespace, data_config: Dict[str, Any]) -> Dict[str, Any]:
    streamed = 'tfds' in args.dataset or 'wds' in args.dataset
    return dict(
        batch_size=args.validation_batch_size or args.batch_size,
        is_training=False,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        # with fewer workers, the streams of several processes have closer lengths and need less padding
        num_workers=min(2, args.workers) if args.distributed and streamed else args.workers,
    )


def _mixup_arguments(args: argparse.Namespace) -> Dict[str, Any]:
    return dict(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        label_smoothing=args.smoothing,
        num_classes=args.num_classes,
        multi_label=args.task == 'multilabel',
    )


def _image_loaders(
        args: argparse.Namespace,
        data_config: Dict[str, Any],
        train,
        train_arguments: Dict[str, Any],
        validation,
        validation_arguments: Dict[str, Any],
) -> Loaders:
    collate = mixup = None
    if mixes_labels(args):
        mix = FastCollateMixup if args.prefetcher else Mixup
        mix = mix(**_mixup_arguments(args), cutmix_minmax=args.cutmix_minmax, mode=args.mixup_mode)
        collate, mixup = (mix, None) if args.prefetcher else (None, mix)
    if args.aug_splits:
        train = AugMixDataset(train, num_splits=args.aug_splits)
    train = create_loader(
        train,
        input_size=data_config['input_size'],
        collate_fn=collate,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        **train_arguments,
        **_size_schedule(args),
    )
    if validation is not None:
        validation = create_loader(validation, input_size=data_config['input_size'], **validation_arguments)
    if args.train_img_sizes is None:
        return Loaders(train, validation, mixup, args.batch_size)
    return Loaders(
        train, validation, mixup, train.batch_sampler.average_batch_size, args.variable_batch_loss_scale)


def _size_schedule(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the arguments of a loader whose image size varies between batches; empty for a fixed size."""
    if args.train_img_sizes is None:
        return {}
    return dict(
        input_size_choices=args.train_img_sizes,
        batch_size_choices=args.train_batch_sizes,
        num_batches=args.train_batches_per_epoch,
        batch_choice_seed=args.seed,
        batch_choice_weights=args.train_size_probs,
        batch_choice_schedule=args.train_size_schedule,
        batch_schedule_epochs=args.epochs,
        batch_schedule_random_mix=args.train_size_random_mix,
        batch_schedule_spread=args.train_size_schedule_spread,
    )


def _naflex_loaders(
        args: argparse.Namespace,
        model: nn.Module,
        data_config: Dict[str, Any],
        train,
        train_arguments: Dict[str, Any],
        validation,
        validation_arguments: Dict[str, Any],
) -> Loaders:
    patch_size = patch_size_of(model)
    mixup = None
    if mixes_labels(args):
        mixup = NaFlexMixup(**_mixup_arguments(args), mixup_off_epoch=args.mixup_off_epoch)
    patches = dict(patch_size=patch_size)
    if args.naflex_patch_sizes:
        patches = dict(
            patch_size_choices=args.naflex_patch_sizes, patch_size_choice_probs=args.naflex_patch_size_probs)
    layout = dict(
        channels=data_config['input_size'][0], patchify_channels_last=not args.naflex_patchify_channels_first)
    train = create_naflex_loader(
        train,
        train_seq_lens=args.naflex_train_seq_lens,
        mixup_fn=mixup,
        rank=args.rank,
        world_size=args.world_size,
        seed=args.seed,
        **patches,
        **layout,
        **train_arguments,
    )
    if validation is not None:
        validation = create_naflex_loader(
            validation,
            patch_size=patch_size,
            max_seq_len=args.naflex_max_seq_len,
            **layout,
            **validation_arguments,
        )
    return Loaders(train, validation, None, args.batch_size, args.naflex_loss_scale)
