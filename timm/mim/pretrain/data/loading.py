"""In what order and with what augmentation images are loaded.

Both depend on the seed, the epoch and the position in the epoch alone: one process or several, with few workers or
many, fresh or resumed, see the same images.
"""
import argparse
import signal
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from timm.data import create_loader, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from .datasets import HELD_OUT_LIMIT
from ..errors import UserError
from .reading import ImageKey, KeyedImages, sample_seed
from ..stop_signal import SIGNALS


class EpochSampler(Sampler):
    """Shuffles, repeats and distributes the images of an epoch in whole global batches.

    Yields an `ImageKey` per image. Positions run over all processes: a batch of two processes
    holds the images that one process has in a batch of twice the size. An epoch that is too short for one batch is
    repeated until it fills one.

    Args:
        num_images: Number of images in the dataset.
        batch_size: Batch size of one process.
        steps_per_update: Batches that make one update.
        repeats: How often the images are repeated in an epoch, at least once.
        seed: Seed of the order.
        rank: This process.
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
        """Go to an epoch, and into it where a run goes on that was interrupted."""
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


class HeldOutShare(NamedTuple):
    """This process's share of the held-out images: normalised, with their numbers over all processes.

    Attributes:
        unreadable: How many are missing.
    """
    images: torch.Tensor
    numbers: torch.Tensor
    unreadable: int = 0


def create_train_loader(
        dataset: Dataset,
        options: argparse.Namespace,
        data_config: Dict[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
) -> PrefetchLoader:
    """Create the loader of the training images, in whole global batches.

    Args:
        dataset: Training images.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation and mode of the images.
        device: Device that images are brought to and normalised on.
        rank: This process.
        world_size: Number of processes.
    """
    augmentation = dict(
        no_aug=options.no_aug,
        train_crop_mode=options.train_crop_mode,
        scale=options.scale,
        ratio=options.ratio,
        hflip=options.hflip,
        vflip=options.vflip,
        color_jitter=options.color_jitter or None,
        color_jitter_prob=options.color_jitter_prob,
        grayscale_prob=options.grayscale_prob,
        gaussian_blur_prob=options.gaussian_blur_prob,
        auto_augment=options.aa,
        interpolation=options.train_interpolation,
    )
    if isinstance(dataset, IterableDataset):
        loader = create_loader(
            dataset,
            input_size=data_config['input_size'],
            batch_size=options.batch_size,
            is_training=True,
            mean=data_config['mean'],
            std=data_config['std'],
            num_workers=options.workers,
            distributed=world_size > 1,
            pin_memory=options.pin_mem,
            device=device,
            **augmentation,
        )
        _leave_signals_alone(loader.loader)
        return loader
    sampler = EpochSampler(
        len(dataset),
        batch_size=options.batch_size,
        steps_per_update=options.grad_accum_steps,
        repeats=options.epoch_repeats,
        seed=options.seed,
        rank=rank,
        world_size=world_size,
    )
    try:
        transform = create_transform(
            data_config['input_size'],
            is_training=True,
            mean=data_config['mean'],
            std=data_config['std'],
            use_prefetcher=True,
            **augmentation,
        )
    except (AssertionError, ValueError) as e:
        raise UserError(f'--aa, --color-jitter or another augmentation: {e}') from e
    return _create_loader(dataset, sampler, transform, options.batch_size, options, data_config, device)


def load_held_out(
        dataset: Dataset,
        options: argparse.Namespace,
        data_config: Dict[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        limit: int = HELD_OUT_LIMIT,
) -> HeldOutShare:
    """Load this process's share of the held-out images.

    Args:
        dataset: Held-out images.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        device: Device to normalise images on; they are kept in main memory.
        rank: This process.
        world_size: Number of processes.
        limit: Number of images over all processes; of more as many at most are taken, evenly spread.
    """
    if isinstance(dataset, IterableDataset):
        batch_size = options.validation_batch_size or options.batch_size
        loader = create_loader(
            dataset,
            input_size=data_config['input_size'],
            batch_size=batch_size,
            num_workers=min(1, options.workers),
            persistent_workers=False,
            device=device,
            mean=data_config['mean'],
            std=data_config['std'],
            interpolation=data_config['interpolation'],
            crop_pct=data_config['crop_pct'],
        )
        share = -(-limit // world_size)
        images = torch.cat([batch.cpu() for batch, _ in islice(loader, -(-share // batch_size))])[:share]
        return HeldOutShare(images, torch.arange(len(images)) * world_size + rank)

    spacing = -(-len(dataset) // limit)
    indices = range(0, len(dataset), spacing)
    numbers = range(rank, len(indices), world_size)
    loader = create_evaluation_loader(dataset, [indices[n] for n in numbers], options, data_config, device)
    batches = [(images.cpu(), found.cpu() >= 0) for images, found in loader]
    if not batches:
        return HeldOutShare(torch.empty(0, *data_config['input_size']), torch.tensor([], dtype=torch.long))
    readable = torch.cat([found for _, found in batches])
    images = torch.cat([images[found] for images, found in batches])
    return HeldOutShare(images, torch.tensor(list(numbers))[readable], int((~readable).sum()))


def create_evaluation_loader(
        dataset: Dataset,
        indices: Sequence[int],
        options: argparse.Namespace,
        data_config: Dict[str, Any],
        device: torch.device,
) -> PrefetchLoader:
    """Create a loader of some images of a dataset, resized and cropped alike each time; with each comes its index,
    `~index` where it cannot be read and another one is in its place.

    Args:
        dataset: Images.
        indices: Which of them, in the order in which they come.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        device: Device that images are brought to and normalised on.
    """
    transform = create_transform(
        data_config['input_size'],
        use_prefetcher=True,
        mean=data_config['mean'],
        std=data_config['std'],
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
    )
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
        options: argparse.Namespace,
        data_config: Dict[str, Any],
        device: torch.device,
        persistent_workers: bool = True,
) -> PrefetchLoader:
    """Create timm's loader with an order of our own, which `timm.data.create_loader` does not take."""
    loader = DataLoader(
        KeyedImages(dataset, transform, data_config['mode'], options.seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=options.workers,
        collate_fn=fast_collate,
        pin_memory=options.pin_mem,
        persistent_workers=persistent_workers and options.workers > 0,
    )
    _leave_signals_alone(loader)
    return PrefetchLoader(
        loader,
        mean=data_config['mean'],
        std=data_config['std'],
        channels=data_config['input_size'][0],
        device=device,
    )


def _leave_signals_alone(loader: DataLoader) -> None:
    """Let the workers go on when all processes are told to stop, until the run is saved."""
    loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(others: Optional[Callable], worker: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if others is not None:
        others(worker)


@contextmanager
def ending_workers(loader: PrefetchLoader) -> Iterator[None]:
    """End the workers of a loader with the block: they ignore the signal that would end them with the program."""
    try:
        yield
    finally:
        iterator = getattr(loader.loader, '_iterator', None)  # there is no public way
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()
