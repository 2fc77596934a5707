"""Load the held-out images of a process."""
import argparse
from itertools import islice
from typing import Any, Dict, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset

from timm.data import create_loader
from timm.utils import reduce_tensor
from .data.datasets import HELD_OUT_LIMIT
from .data.loading import EVALUATION, create_evaluation_loader
from .errors import UnreadableImages, UserError
from .flags.run_options import RunOptions
from .held_out import MASK_SEED, HeldOutImages
from .naflex_held_out import NaFlexHeldOutImages, read_naflex_images


class HeldOutShare(NamedTuple):
    """The held-out images of one process.

    Attributes:
        images: Normalised images (N, C, H, W), or a NaFlex batch.
        numbers: Their positions (N,) among the held-out images of all processes.
        unreadable: Number of images of this process that cannot be read.
    """
    images: torch.Tensor
    numbers: torch.Tensor
    unreadable: int = 0


def load_held_out(
        dataset: Dataset,
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        limit: int = HELD_OUT_LIMIT,
) -> HeldOutShare:
    """Load the held-out images of one process.

    Args:
        dataset: Held-out images.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        device: Device that normalises the images. They are then kept in main memory.
        rank: Rank of this process.
        world_size: Number of processes.
        limit: Maximum number of images over all processes. A larger dataset is subsampled evenly.
    """
    if isinstance(dataset, IterableDataset) and not options.naflex_loader:
        images = _read_stream(dataset, options, data_config, device, count=-(-limit // world_size))
        return HeldOutShare(images, torch.arange(len(images)) * world_size + rank)

    spacing = -(-len(dataset) // limit)
    indices = range(0, len(dataset), spacing)
    numbers = range(rank, len(indices), world_size)
    loader = create_evaluation_loader(dataset, [indices[n] for n in numbers], options, data_config, device)
    if options.naflex_loader:
        images, readable = read_naflex_images(loader)
        return HeldOutShare(images, torch.tensor(list(numbers))[readable], int((~readable).sum()))
    batches = [(images.cpu(), found.cpu() >= 0) for images, found in loader]
    if not batches:
        return HeldOutShare(torch.empty(0, *data_config['input_size']), torch.tensor([], dtype=torch.long))
    readable = torch.cat([found for _, found in batches])
    images = torch.cat([images[found] for images, found in batches])
    return HeldOutShare(images, torch.tensor(list(numbers))[readable], int((~readable).sum()))


def _read_stream(
        dataset: IterableDataset,
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
        count: int,
) -> torch.Tensor:
    """Load the first `count` images of a stream into main memory."""
    batch_size = options.validation_batch_size or options.batch_size
    loader = create_loader(
        dataset,
        batch_size=batch_size,
        num_workers=min(1, options.workers),
        persistent_workers=False,
        device=device,
        **{name: data_config[name] for name in EVALUATION},
    )
    return torch.cat([batch.cpu() for batch, _ in islice(loader, -(-count // batch_size))])[:count]


def hold_out(
        dataset: Dataset,
        options: RunOptions,
        data_config: Dict[str, Any],
        process: argparse.Namespace,
        limit: int = HELD_OUT_LIMIT,
        mask_seed: int = MASK_SEED,
) -> HeldOutImages:
    """Load the held-out images of this process, and give them fixed masks.

    Args:
        dataset: Held-out images.
        options: Options of the run.
        data_config: Input size, mean, standard deviation, interpolation, crop and mode of the images.
        process: Device and rank of this process.
        limit: Maximum number of images over all processes.
        mask_seed: Seed of the masks.

    Raises:
        UnreadableImages: More held-out images are unreadable than --max-unreadable allows.
        UserError: There are no held-out images.
    """
    device = torch.device(process.device)
    share = load_held_out(dataset, options, data_config, device, process.rank, process.world_size, limit)
    counts = torch.tensor([float(len(share.numbers)), float(share.unreadable)], device=device)
    if process.distributed:
        counts = reduce_tensor(counts, 1)
    count, unreadable = map(int, counts.tolist())
    if unreadable > options.max_unreadable * (count + unreadable):
        raise UnreadableImages(
            f'{unreadable} of the {count + unreadable} held-out images cannot be read: remove or replace them, or '
            f'raise --max-unreadable, which is {options.max_unreadable:g}.')
    if not count:
        raise UserError('--val-split: there is no image to hold out.')
    held_out = NaFlexHeldOutImages if options.naflex_loader else HeldOutImages
    return held_out(
        share.images,
        share.numbers,
        count,
        device,
        options.validation_batch_size or options.batch_size,
        in_step=options.fsdp,
        mask_seed=mask_seed,
    )
