"""Load images in batches: their order, their augmentation, and the worker processes.

Order and augmentation depend only on the seed, the epoch and the position in the epoch. They are therefore the same for
any number of processes and workers, and in a new and a resumed run.
"""

import math
import os
from contextlib import contextmanager
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from timm.data import create_loader, create_transform
from timm.data.loader import PrefetchLoader
from ..errors import UserError, flag_name
from ..flags.run_options import DEFAULTS, RunOptions
from .augmenting import ResizeAndCenterCrop
from .formats import BANDS
from .naflex import create_naflex_evaluation_loader, create_naflex_train_loader
from .reading import ImageKey, KeyedImages, image_reader, leave_signals_alone, sample_seed
from .streams import Stream, StreamBatches

# Entries of the image configuration that timm's transforms and loaders take.
_NORMALISATION = ('input_size', 'mean', 'std')
EVALUATION = (*_NORMALISATION, 'interpolation', 'crop_pct')


@contextmanager
def ending_workers(loader: PrefetchLoader) -> Iterator[None]:
    """End the workers of a loader when the block ends, because they ignore the signals that stop the program."""
    try:
        yield
    finally:
        iterator = getattr(loader.loader, '_iterator', None)  # PyTorch has no public way
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()


class EpochSampler(Sampler):
    """Shuffles, repeats and distributes the images of an epoch in whole updates.

    Yields an `ImageKey` per image. Positions count over all processes, so two processes together see the same images
    as one process with twice the batch size. If an epoch has too few images for one update, they are repeated.

    Args:
        num_images: Number of images in the dataset.
        batch_size: Batch size per process.
        steps_per_update: Number of batches per update.
        repeats: Number of passes over the images in an epoch, at least 1.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
            self,
            num_images: int,
            batch_size: int,
            steps_per_update: int = 1,
            repeats: float = 1.0,
            seed: int = 0,
            rank: int = 0,
            world_size: int = 1,
    ):
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = self.first_batch = 0
        update_size = batch_size * world_size * steps_per_update
        num_updates = max(1, int(num_images * max(1.0, repeats)) // update_size)
        self.num_samples = num_updates * update_size

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, and the batch to start with when a run resumes within the epoch."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[ImageKey]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        passes = -(-self.num_samples // self.num_images)
        order = torch.cat([torch.randperm(self.num_images, generator=generator) for _ in range(passes)])
        positions = torch.arange(self.num_samples).view(-1, self.world_size, self.batch_size)
        positions = positions[self.first_batch:, self.rank].flatten()
        return iter([ImageKey(self.epoch, p, i) for p, i in zip(positions.tolist(), order[positions].tolist())])


def create_train_loader(
        dataset: Dataset,
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
) -> PrefetchLoader:
    """Create the loader of the training images.

    Args:
        dataset: Training images.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation and mode of the images.
        device: Device that receives and normalises the images.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: A batch does not fit into main memory, or an augmentation option is invalid.
    """
    if options.naflex_loader:
        return create_naflex_train_loader(
            dataset, options, data_config, _augmentation(options), device, rank, world_size)
    _check_batch(options.batch_size, data_config['input_size'])
    if data_config['mode'] == BANDS:
        check_band_augmentation({name: getattr(options, name) for name in DEFAULTS}, DEFAULTS)
    arguments = dict(is_training=True, **{name: data_config[name] for name in _NORMALISATION}, **_augmentation(options))
    try:
        if isinstance(dataset, Stream):
            return _create_batches_loader(dataset, options, data_config, device, rank, world_size, arguments)
        if isinstance(dataset, IterableDataset):
            return _create_stream_loader(dataset, options, device, world_size > 1, arguments)
        transform = create_transform(use_prefetcher=True, **arguments)
    except UserError:
        raise
    except (AssertionError, ValueError) as e:
        raise UserError(f'--aa, --color-jitter or another augmentation: {e}') from e
    sampler = EpochSampler(
        len(dataset),
        batch_size=options.batch_size,
        steps_per_update=options.grad_accum_steps,
        repeats=options.epoch_repeats,
        seed=options.seed,
        rank=rank,
        world_size=world_size,
    )
    return _create_loader(dataset, sampler, transform, options.batch_size, options, data_config, device)


def _create_batches_loader(
        stream: Stream,
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
        rank: int,
        world_size: int,
        arguments: Dict[str, Any],
) -> PrefetchLoader:
    """Create the loader of a stream. Its epochs are as long as those of a folder with as many images."""
    epoch = EpochSampler(
        len(stream), options.batch_size, options.grad_accum_steps, options.epoch_repeats, rank=rank,
        world_size=world_size)
    batches = StreamBatches(
        stream,
        image_reader(create_transform(use_prefetcher=True, **arguments), options, data_config),
        options.batch_size,
        len(epoch) // options.batch_size,
        options.seed,
        rank,
        world_size,
    )
    loader = DataLoader(
        batches,
        batch_size=options.batch_size,
        num_workers=options.workers,
        collate_fn=collate,
        pin_memory=options.pin_mem,
        persistent_workers=options.workers > 0,
    )
    leave_signals_alone(loader)
    return normalising(loader, data_config, device)


def _check_batch(batch_size: int, image_size: Sequence[int]) -> None:
    """Check that a batch fits into main memory.

    Raises:
        UserError: The batch is larger.
    """
    try:
        memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):  # this system does not report its memory
        return
    size = 4 * batch_size * math.prod(image_size)  # in float32
    if size > memory:
        raise UserError(
            f'--batch-size {batch_size}: the images of one batch take {size / 1e9:.0f} GB, and this machine has '
            f'{memory / 1e9:.0f} GB of main memory.')


def _augmentation(options: RunOptions) -> Dict[str, Any]:
    """Return the arguments of timm's training transform that come from flags."""
    names = (
        'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter_prob', 'grayscale_prob',
        'gaussian_blur_prob',
    )
    return dict(
        color_jitter=options.color_jitter or None,
        auto_augment=options.aa,
        interpolation=options.train_interpolation,
        **{name: getattr(options, name) for name in names},
    )


def _create_stream_loader(
        dataset: IterableDataset,
        options: RunOptions,
        device: torch.device,
        distributed: bool,
        arguments: Dict[str, Any],
) -> PrefetchLoader:
    """Create timm's loader of a stream. The stream determines the order, and its reader decodes the images."""
    if options.max_pixels != DEFAULTS['max_pixels']:
        raise UserError('--max-pixels has no effect on a stream, whose reader decodes the images: leave it out.')
    loader = create_loader(
        dataset,
        batch_size=options.batch_size,
        num_workers=options.workers,
        distributed=distributed,
        pin_memory=options.pin_mem,
        device=device,
        **arguments,
    )
    leave_signals_alone(loader.loader)
    return loader


def create_evaluation_loader(
        dataset: Dataset,
        indices: Sequence[int],
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
) -> PrefetchLoader:
    """Create a loader of some images of a dataset, with a fixed resize and crop, or with --naflex-loader uncropped.

    It yields images and their indices, `~index` where the image cannot be read and another image replaces it.

    Args:
        dataset: Images.
        indices: Indices of the images to load, in order.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        device: Device that receives and normalises the images.
    """
    if options.naflex_loader:
        return create_naflex_evaluation_loader(dataset, indices, options, data_config, device)
    transform = evaluation_transform(data_config)
    return _create_loader(
        dataset,
        [ImageKey(0, index, index) for index in indices],
        transform,
        options.validation_batch_size or options.batch_size,
        options,
        data_config,
        device,
        persistent_workers=False,
    )


def _create_loader(
        dataset: Dataset,
        sampler: Sequence[ImageKey],
        transform: Callable,
        batch_size: int,
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
        persistent_workers: bool = True,
) -> PrefetchLoader:
    """Create timm's loader with a custom sampler, which `timm.data.create_loader` does not accept."""
    loader = DataLoader(
        KeyedImages(dataset, image_reader(transform, options, data_config), options.seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=options.workers,
        collate_fn=collate,
        pin_memory=options.pin_mem,
        persistent_workers=persistent_workers and options.workers > 0,
    )
    leave_signals_alone(loader)
    return normalising(loader, data_config, device)


def normalising(loader: DataLoader, data_config: Dict[str, Any], device: torch.device) -> PrefetchLoader:
    """Return a loader that moves batches to a device and normalises them there.

    Args:
        loader: Loader of uint8 images, or of bands in their own units.
        data_config: Input size, mean, standard deviation and mode of the images.
        device: Device.
    """
    # timm multiplies both by 255, because its images are uint8
    units = 255 if data_config['mode'] == BANDS else 1
    mean, std = ([value / units for value in data_config[name]] for name in ('mean', 'std'))
    kind = NormalisingLoader if device.type == 'cpu' else PrefetchLoader
    return kind(loader, mean=mean, std=std, channels=data_config['input_size'][0], device=device)


class NormalisingLoader(PrefetchLoader):
    """timm's loader for a run on the CPU: it normalises image by image, which stay in the cache, in two thirds of the
    time. Values differ from timm's by rounding alone, because it multiplies by 1 / std.
    """

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        mean, factor = self.mean[0], 1 / self.std[0]
        for images, numbers in self.loader:
            batch = torch.empty(images.shape, dtype=self.img_dtype)
            for image, normalised in zip(images, batch):
                normalised.copy_(image).sub_(mean).mul_(factor)
            yield batch, numbers


def collate(batch: List[Tuple[torch.Tensor, int]]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Collate images of any type, and their indices or class numbers."""
    images, numbers = default_collate(batch)
    return images, numbers.long()


def evaluation_transform(data_config: Dict[str, Any]) -> Callable:
    """Return a fixed resize and crop: timm's, or the same for tensors if the images are bands.

    Args:
        data_config: Input size, interpolation, crop, normalisation and mode of the images.

    Raises:
        UserError: The interpolation needs PIL images.
    """
    if data_config['mode'] != BANDS:
        return create_transform(use_prefetcher=True, **{name: data_config[name] for name in EVALUATION})
    interpolation = data_config['interpolation']
    if interpolation not in ('bilinear', 'bicubic'):
        raise UserError(f'--interpolation {interpolation} needs PIL images: use bilinear or bicubic with bands.')
    return ResizeAndCenterCrop(tuple(data_config['input_size'][1:]), data_config['crop_pct'], interpolation)


# Flags of augmentations that are defined for colours of 8 bits, and the values that turn them off.
_COLOUR = dict(color_jitter=(None, 0., 0), aa=(None, ''), grayscale_prob=(0., None), gaussian_blur_prob=(0., None))


def check_band_augmentation(values: Dict[str, Any], defaults: Dict[str, Any]) -> List[str]:
    """Check that no augmentation is asked for that bands cannot have.

    Args:
        values: Values of the flags by name.
        defaults: Defaults of the program: where a value is the default, nobody asked for it.

    Returns:
        Names of the flags whose default must be turned off.

    Raises:
        UserError: A flag needs colours of 8 bits, or PIL images.
    """
    ours = []
    for name, off in _COLOUR.items():
        if values[name] in off:
            continue
        if values[name] != defaults[name]:
            raise UserError(
                f'{flag_name(name)} changes colours of 8 bits, which images of the mode bands do not have: leave it '
                'out. Crops and flips work.')
        ours.append(name)
    if values['no_aug']:
        raise UserError('--no-aug needs PIL images: for images of the mode bands give --scale 1 1 --hflip 0.')
    if values['train_crop_mode'] not in (None, 'rrc'):
        raise UserError(f'--train-crop-mode {values["train_crop_mode"]} needs PIL images: use rrc with bands.')
    if values['train_interpolation'] not in ('bilinear', 'bicubic', 'random'):
        raise UserError(
            f'--train-interpolation {values["train_interpolation"]} needs PIL images: use bilinear or bicubic with '
            'bands.')
    return ours


def batches_of_epoch(
        loader: PrefetchLoader,
        epoch: int,
        first: int = 0,
) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """Return an iterator over the batches of an epoch: images (B, C, H, W) and their indices (B,).

    Args:
        loader: Loader of the training images.
        epoch: Number of the epoch.
        first: Number of the first batch, from 0.
    """
    if hasattr(loader.sampler, 'set_epoch'):
        loader.sampler.set_epoch(epoch, first)
        return iter(loader)
    if hasattr(loader.dataset, 'set_epoch'):
        if isinstance(loader.dataset, StreamBatches):
            loader.dataset.set_epoch(epoch, first)
            return iter(loader)
        loader.dataset.set_epoch(epoch)
    return islice(loader, first, None)  # a stream of another kind must be read from the start
