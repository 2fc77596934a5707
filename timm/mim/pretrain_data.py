"""Images for pre-training: which to train on, which to hold out, in what order, with what augmentation.

The order of the images and the random augmentation of each one depend on the seed, the epoch and the position in the
epoch alone: one process or several, with few workers or many, fresh or resumed, see the same images.
"""
import argparse
import copy
import logging
import os
import random
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset

from timm.data import create_dataset, create_loader, create_transform
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.readers.img_extensions import get_img_extensions
from .pretrain_options import DEFAULTS, UserError
from .sample_photographs import sample_photographs

_logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.05  # of a folder without a validation split
HELD_OUT_LIMIT = 256  # images that the masked error is measured on
HELD_OUT_SEED = 0  # whatever the seed of the run, so that runs can be compared

_VALIDATION_FOLDERS = ('validation', 'val', 'valid', 'eval', 'evaluation')
_MODES = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}


class PretrainData(NamedTuple):
    """Datasets of a run, and one line that says where the images come from."""
    train: Dataset
    held_out: Dataset
    description: str


class DecodedImages(Dataset):
    """A few image files, decoded once: cropping a photograph takes a fraction of the time of decoding it.

    Args:
        paths: Image files.
        mode: PIL mode to convert images to.
    """

    def __init__(self, paths: Sequence[Path], mode: str):
        self.names = [path.name for path in paths]
        self.images = [Image.open(path).convert(mode) for path in paths]
        self.transform = None

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), 0

    def __len__(self) -> int:
        return len(self.images)


def image_mode(in_chans: int, mode: Optional[str] = None) -> str:
    """Return the PIL mode that has as many bands as the model has input channels."""
    if mode is None:
        if in_chans not in _MODES:
            raise UserError(
                f'--in-chans {in_chans}: images can be read with 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA) channels.')
        return _MODES[in_chans]
    try:
        bands = len(Image.new(mode, (1, 1)).getbands())
    except ValueError:
        raise UserError(f"--input-img-mode: PIL has no mode '{mode}'; L, RGB or RGBA, for example.") from None
    if bands != in_chans:
        raise UserError(f'--input-img-mode {mode} has {bands} channel(s), the model takes {in_chans}.')
    return mode


def open_data(options: argparse.Namespace, mode: str) -> PretrainData:
    """Find the images to train on and those to hold out.

    Args:
        options: Options of the run.
        mode: PIL mode to convert images to.

    Raises:
        UserError: There are no images, or too few to hold any out.
    """
    if not options.data_dir and not options.dataset:
        return _open_sample_photographs(mode)
    folder = not options.dataset
    if options.data_dir and folder:
        _check_folder(options.data_dir)
        _check_split(options)
    train = _create_dataset(options, options.train_split, mode, is_training=True)
    if folder:
        return _open_folder(options, train, mode)
    held_out = _create_dataset(options, options.val_split or 'validation', mode, is_training=False)
    return PretrainData(
        train, held_out, f'{options.dataset}: {options.train_split} to train on, '
        f'{options.val_split or "validation"} held out')


def _open_sample_photographs(mode: str) -> PretrainData:
    try:
        train, held_out = sample_photographs()
    except FileNotFoundError as e:
        raise UserError(
            f'no data is named (--data-dir), and there are no sample photographs: {e}; '
            "pip install scikit-image scikit-learn, or the extra 'samples'.") from None
    names = ' and '.join(path.stem for path in held_out)
    return PretrainData(
        DecodedImages(train, mode),
        DecodedImages(held_out, mode),
        f'no data named: {len(train)} photographs that ship with scikit-image and scikit-learn, '
        f'and two more held out ({names})')


def _check_folder(path: str) -> None:
    if not os.path.exists(path):
        raise UserError(f"--data-dir: '{path}' does not exist.")
    if not os.path.isdir(path) and not path.endswith('.tar'):
        raise UserError(f"--data-dir: '{path}' is neither a folder nor a .tar file.")


def _check_split(options: argparse.Namespace) -> None:
    # timm reads the whole folder where a split does not exist, which is right for the default name only
    split = options.train_split
    if split != DEFAULTS['train_split'] and not (Path(options.data_dir) / split).is_dir():
        raise UserError(f"--train-split: there is no folder '{split}' in '{options.data_dir}'.")


def _create_dataset(options: argparse.Namespace, split: str, mode: str, is_training: bool) -> Dataset:
    flag = '--train-split' if is_training else '--val-split'
    num_samples = options.train_num_samples if is_training else options.val_num_samples
    try:
        return create_dataset(
            options.dataset,
            root=options.data_dir,
            split=split,
            is_training=is_training,
            download=options.dataset_download,
            batch_size=options.batch_size,
            seed=options.seed,
            repeats=options.epoch_repeats,
            input_img_mode=mode,
            input_key=options.input_key,
            target_key=options.target_key,
            num_samples=num_samples,
            trust_remote_code=options.dataset_trust_remote_code,
        )
    except RuntimeError as e:
        if not options.dataset and 'Found 0 images' in str(e):
            raise UserError(
                f"--data-dir: no image in '{options.data_dir}', which was searched for "
                f'{", ".join(get_img_extensions())}.') from None
        raise _dataset_error(options, flag, split, e) from e
    except (AssertionError, ImportError, KeyError, OSError, TypeError, ValueError) as e:
        raise _dataset_error(options, flag, split, e) from e


def _dataset_error(options: argparse.Namespace, flag: str, split: str, error: Exception) -> UserError:
    reason = ' '.join(str(error).split()) or type(error).__name__
    return UserError(f"--dataset {options.dataset or 'folder'} with {flag} '{split}' cannot be read: {reason}")


def _open_folder(options: argparse.Namespace, train: Dataset, mode: str) -> PretrainData:
    """Hold out the validation split of a folder, or a share of the images if it has none."""
    samples = getattr(train.reader, 'samples', None)
    folder = _validation_folder(options)
    if folder is None:
        train_indices, held_out_indices = _draw_held_out(len(train))
        share = f'{len(held_out_indices)} of its {len(train)} images held out'
        if len(held_out_indices) == 0:
            raise UserError(f"--data-dir: '{options.data_dir}' has one image, and one has to be held out: add more.")
        return PretrainData(
            _select(train, train_indices), _select(train, held_out_indices), f'{options.data_dir}: {share}')

    held_out = _create_dataset(
        argparse.Namespace(**{**vars(options), 'data_dir': str(folder)}), '', mode, is_training=False)
    # Without a folder for training, the whole data folder is read, validation images included.
    inside = os.path.join(os.path.realpath(folder), '')
    kept = [i for i, sample in enumerate(samples) if not os.path.realpath(sample[0]).startswith(inside)]
    if not kept:
        raise UserError(f"--data-dir: '{options.data_dir}' has no images outside '{folder}', which is held out.")
    return PretrainData(
        _select(train, kept), held_out,
        f'{options.data_dir}: {len(kept)} images to train on, {len(held_out)} in {folder.name}/ held out')


def _validation_folder(options: argparse.Namespace) -> Optional[Path]:
    root = Path(options.data_dir)
    if not root.is_dir():
        return None
    if options.val_split:
        folder = root / options.val_split
        if not folder.is_dir():
            raise UserError(f"--val-split: there is no folder '{options.val_split}' in '{root}'.")
        return folder
    return next((root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()), None)


def _draw_held_out(num_images: int) -> Tuple[List[int], List[int]]:
    count = min(max(1, round(num_images * HELD_OUT_SHARE)), HELD_OUT_LIMIT, num_images - 1)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(HELD_OUT_SEED)).tolist()
    return sorted(order[count:]), sorted(order[:count])


def _select(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """Restrict a dataset to some of its images.

    A folder's file list is cut itself: timm replaces an unreadable image by the next one in that list, which must not
    be an image of the other part.
    """
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if samples is None or len(samples) != len(dataset) or not isinstance(samples[0], tuple):
        return Subset(copy.copy(dataset), indices)  # a copy, each part has a transform of its own
    dataset = copy.copy(dataset)
    dataset.reader = copy.copy(dataset.reader)
    dataset.reader.samples = [samples[i] for i in indices]
    return dataset


def file_names(dataset: Dataset, limit: int = HELD_OUT_LIMIT) -> List[str]:
    """Return the names of a dataset's images, as far as it knows them."""
    if isinstance(dataset, DecodedImages):
        return dataset.names
    reader = getattr(dataset, 'reader', None)
    if isinstance(dataset, IterableDataset) or not hasattr(reader, 'filename'):
        return []
    return [reader.filename(i) for i in range(min(len(dataset), limit))]


class ImageKey(NamedTuple):
    """An image to load: the epoch, its position in the epoch over all processes, and its index in the dataset."""
    epoch: int
    position: int
    index: int


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
        self.epoch = 0
        update_size = batch_size * world_size * steps_per_update
        num_updates = max(1, int(num_images * max(1.0, repeats)) // update_size)
        self.num_samples = num_updates * update_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // self.world_size

    def __iter__(self) -> Iterator[ImageKey]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        passes = -(-self.num_samples // self.num_images)
        order = torch.cat([torch.randperm(self.num_images, generator=generator) for _ in range(passes)])
        positions = torch.arange(self.num_samples).view(-1, self.world_size, self.batch_size)[:, self.rank].flatten()
        return iter([ImageKey(self.epoch, p, i) for p, i in zip(positions.tolist(), order[positions].tolist())])


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Return a seed for one image of one epoch."""
    return int(np.random.SeedSequence((seed, epoch, position + 1)).generate_state(1)[0])


class KeyedImages(Dataset):
    """Seeds the random augmentation of every image with its key, and converts images of any dataset to one mode.

    Args:
        dataset: Dataset with a `transform`.
        transform: Transform of a PIL image.
        mode: PIL mode to convert images to.
        seed: Seed of the run.
    """

    def __init__(self, dataset: Dataset, transform, mode: str, seed: int):
        self.dataset = dataset
        self.seed = seed
        (dataset.dataset if isinstance(dataset, Subset) else dataset).transform = ConvertThen(mode, transform)

    def __getitem__(self, key: ImageKey) -> Tuple[torch.Tensor, int]:
        seed = sample_seed(self.seed, key.epoch, key.position)
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would queue a call for CUDA each time
        return self.dataset[key.index][0], key.index

    def __len__(self) -> int:
        return len(self.dataset)


class ConvertThen:
    """Transform that converts a PIL image to a mode before another transform.

    Args:
        mode: PIL mode.
        transform: Transform of a PIL image.
    """

    def __init__(self, mode: str, transform):
        self.mode = mode
        self.transform = transform

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image if image.mode == self.mode else image.convert(self.mode))


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
        return create_loader(
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
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Load this process's share of the held-out images, normalised, and their numbers over all processes.

    Args:
        dataset: Held-out images. Of more than `HELD_OUT_LIMIT` as many are taken, evenly spread.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        device: Device to normalise images on; they are kept in main memory.
        rank: This process.
        world_size: Number of processes.
    """
    batch_size = options.validation_batch_size or options.batch_size
    preprocessing = dict(
        mean=data_config['mean'],
        std=data_config['std'],
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
    )
    if isinstance(dataset, IterableDataset):
        loader = create_loader(
            dataset,
            input_size=data_config['input_size'],
            batch_size=batch_size,
            num_workers=min(1, options.workers),
            persistent_workers=False,
            device=device,
            **preprocessing,
        )
        share = -(-HELD_OUT_LIMIT // world_size)
        images = torch.cat([batch.cpu() for batch, _ in islice(loader, -(-share // batch_size))])[:share]
        return images, torch.arange(len(images)) * world_size + rank

    spacing = -(-len(dataset) // HELD_OUT_LIMIT)
    indices = range(0, len(dataset), spacing)
    numbers = range(rank, len(indices), world_size)
    transform = create_transform(data_config['input_size'], use_prefetcher=True, **preprocessing)
    sampler = [ImageKey(0, indices[n], indices[n]) for n in numbers]
    loader = _create_loader(
        dataset, sampler, transform, batch_size, options, data_config, device, persistent_workers=False)
    images = [batch.cpu() for batch, _ in loader]
    return torch.cat(images) if images else torch.empty(0, *data_config['input_size']), torch.tensor(list(numbers))


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
    return PrefetchLoader(
        loader,
        mean=data_config['mean'],
        std=data_config['std'],
        channels=data_config['input_size'][0],
        device=device,
    )
