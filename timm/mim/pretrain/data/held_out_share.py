"""The held-out images of one process."""
import argparse
from itertools import islice
from typing import Any, Dict, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset

from timm.data import create_loader
from .datasets import HELD_OUT_LIMIT
from .loading import EVALUATION, create_evaluation_loader


class HeldOutShare(NamedTuple):
    """This process's share of the held-out images: normalised, with their numbers over all processes.

    Attributes:
        unreadable: How many are missing.
    """
    images: torch.Tensor
    numbers: torch.Tensor
    unreadable: int = 0


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
        images = _read_stream(dataset, options, data_config, device, count=-(-limit // world_size))
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


def _read_stream(
        dataset: IterableDataset,
        options: argparse.Namespace,
        data_config: Dict[str, Any],
        device: torch.device,
        count: int,
) -> torch.Tensor:
    """The first images of a stream, in main memory."""
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
