"""In what order images are loaded: by the seed, the epoch and the position in the epoch alone."""
from typing import Iterator

import torch
from torch.utils.data import Sampler

from .reading import ImageKey, sample_seed


class EpochSampler(Sampler):
    """Shuffles, repeats and distributes the images of an epoch in whole global batches.

    Yields an `ImageKey` per image. Positions run over all processes: a batch of two processes holds the images that
    one process has in a batch of twice the size. An epoch that is too short for one batch is repeated until it fills
    one.

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
