"""Read a stream of images: shuffled, distributed, augmented and resumed without anything saved.

Shards are shuffled with the seed and the epoch, and dealt out to the processes that read: each worker of each process.
A reader shuffles its images in a buffer. Order and augmentation depend only on the seed, the epoch, the position in the
epoch and the number of readers. A run that resumes within an epoch therefore sees the images that the unbroken run
would have seen: every reader reads its shards again up to that place, without decoding the images. No state of a reader
is saved.
"""

import hashlib
import random
from collections import deque
from itertools import count, islice
from typing import Deque, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import UserError
from .reading import ATTEMPTS, CountsUnreadable, ImageReader, sample_seed, seed_everything
from .shards import HubShards, Sample, TarShards

BUFFER = 1000  # encoded images that a reader shuffles


class Stream(IterableDataset):
    """The training images of a stream, without those that are held out.

    Attributes:
        readers: Number of processes that load images together: workers of all processes, or the processes themselves.

    Args:
        shards: Shards of the stream.
        num_samples: Number of images in an epoch.
        held_out: Share of the keys that is held out.
        num_workers: Number of workers of each process.
    """

    def __init__(self, shards: Union[TarShards, HubShards], num_samples: int, held_out: float, num_workers: int):
        self.shards = shards
        self.num_samples = num_samples
        self.held_out = held_out
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.readers = world_size * max(1, num_workers)

    def __len__(self) -> int:
        return self.num_samples

    def first_sources(self, limit: int) -> List[Union[bytes, str]]:
        """Return the first training images, encoded."""
        return [sample.image for sample in islice(self, limit)]

    def __iter__(self) -> Iterator[Sample]:
        """Yield the images of all shards once, in the order of the shards."""
        samples = (sample for shard in range(len(self.shards)) for sample in self.shards.read(shard))
        return (sample for sample in samples if not is_held_out(sample.key, self.held_out))

    def samples(self, seed: int, epoch: int, reader: int, readers: int) -> Iterator[Sample]:
        """Yield the images of one reader without an end: after its last shard, it begins another pass in a new order.

        Args:
            seed: Seed of the run.
            epoch: Number of the epoch.
            reader: Number of the reader.
            readers: Number of readers.

        Raises:
            OSError: A shard cannot be read, or the reader has no images at all.
        """
        for number in count():
            order = torch.Generator().manual_seed(sample_seed(seed, epoch, number))
            shards = torch.randperm(len(self.shards), generator=order).tolist()
            generator = random.Random(sample_seed(seed, epoch, number * readers + reader))
            empty = True
            for sample in shuffled(self._pass(shards, reader, readers), BUFFER, generator):
                empty = False
                yield sample
            if empty:
                raise OSError(f'the stream has no image for reader {reader + 1} of {readers}: lower --workers')

    def _pass(self, shards: Sequence[int], reader: int, readers: int) -> Iterator[Sample]:
        """Yield a reader's share: whole shards, or every so manieth image if there are fewer shards than readers."""
        whole = len(shards) >= readers
        number = 0
        for shard in shards[reader::readers] if whole else shards:
            for sample in self.shards.read(shard):
                if is_held_out(sample.key, self.held_out):
                    continue
                if whole or number % readers == reader:
                    yield sample
                number += 1


def is_held_out(key: str, share: float) -> bool:
    """Return whether the image with this key belongs to the share that is held out, which the hash of the key decides.
    """
    digest = hashlib.blake2b(key.encode('utf-8', 'surrogateescape'), digest_size=8).digest()
    return int.from_bytes(digest, 'big') < share * 2 ** 64


def shuffled(samples: Iterator[Sample], size: int, generator: random.Random) -> Iterator[Sample]:
    """Shuffle in a buffer of `size` images."""
    buffer: List[Sample] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = generator.randrange(size)
        sample, buffer[place] = buffer[place], sample
        yield sample
    generator.shuffle(buffer)
    yield from buffer


class EncodedImages(Dataset):
    """Images of a stream that are kept in memory, encoded.

    Args:
        samples: The images with their keys.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.names = [sample.key for sample in samples]
        self.images = [sample.image for sample in samples]
        self.transform = None

    def __getitem__(self, index: int) -> Tuple[Union[bytes, str], int]:
        return self.images[index], 0

    def __len__(self) -> int:
        return len(self.images)

    def filename(self, index: int) -> str:
        """Return the key of an image."""
        return self.names[index]


def first_held_out(shards: Union[TarShards, HubShards], share: float, limit: int) -> EncodedImages:
    """Read the first images of a share of the keys.

    Args:
        shards: Shards to read, in their order.
        share: Share of the keys; 1 for all images.
        limit: Maximum number of images.
    """
    samples = (sample for shard in range(len(shards)) for sample in shards.read(shard))
    return EncodedImages(list(islice((s for s in samples if is_held_out(s.key, share)), limit)))


class StreamBatches(CountsUnreadable, IterableDataset):
    """The batches of one process, in whole updates, of images (C, H, W) and 0, or -1 where another image stands in.

    A loader takes whole batches from its workers in turns. Positions count over all processes as in `EpochSampler`, so
    masks and augmentation are keyed as for folders.

    Args:
        stream: Images.
        reader: Decodes and augments an image.
        batch_size: Batch size per process.
        num_batches: Number of batches of an epoch.
        seed: Seed of the run.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
            self,
            stream: Stream,
            reader: ImageReader,
            batch_size: int,
            num_batches: int,
            seed: int,
            rank: int = 0,
            world_size: int = 1,
    ):
        self.stream = stream
        self.reader = reader
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch and first batch; workers see changes

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, and the batch to start with when a run resumes within the epoch."""
        self._start[0], self._start[1] = epoch, first_batch

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def __iter__(self) -> Iterator[Tuple[torch.Tensor, int]]:
        epoch, first = self._start.tolist()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # In the unbroken run, batch n came from worker n % workers: this worker goes on with that one's images.
        reader = (first + worker) % workers
        samples = self.stream.samples(
            self.seed, epoch, self.rank * workers + reader, self.world_size * workers)
        done = len(range(reader, first + worker, workers))
        next(islice(samples, done * self.batch_size, done * self.batch_size), None)
        ahead: Deque[Sample] = deque()
        for batch in range(first + worker, self.num_batches, workers):
            start = (batch * self.world_size + self.rank) * self.batch_size
            for position in range(start, start + self.batch_size):
                yield self._read(samples, ahead, sample_seed(self.seed, epoch, position))

    def _read(self, samples: Iterator[Sample], ahead: Deque[Sample], seed: int) -> Tuple[torch.Tensor, int]:
        """Read the next image. If it is unreadable, one of the images after it stands in, which also keeps its turn.

        Raises:
            OSError: The images after it are unreadable too.
        """
        tried = ahead.popleft() if ahead else next(samples)
        for attempt in range(ATTEMPTS):
            try:
                seed_everything(seed)
                image, choices = self.reader.read(tried.image)
                return self.reader.finish(image, choices), 0 if attempt == 0 else -1
            except Exception as e:  # decoders raise errors of many types for broken files
                key = tried.key
                reason = self._count_unreadable(f"'{key}'", e)
            if attempt == len(ahead):
                ahead.append(next(samples))
            tried = ahead[attempt]
        raise OSError(f"{ATTEMPTS} images that follow each other cannot be read; the last is '{key}': {reason}")


def describe_readers(stream: Stream) -> str:
    """Return a phrase about readers that cannot have shards of their own; empty if all have."""
    shards = len(stream.shards)
    if shards >= stream.readers:
        return ''
    return (
        f'{shards} shard{"" if shards == 1 else "s"} for {stream.readers} loading processes, so each of them reads all '
        f'shards and keeps one image in {stream.readers}')


def count_samples(shards: Union[TarShards, HubShards], given: Optional[int]) -> int:
    """Return the number of images of an epoch: what the user gives, else what the stream says, else a count.

    Raises:
        UserError: The number is unknown, or there are no images.
    """
    number = given or shards.num_samples or shards.count()
    if not number:
        raise UserError('--dataset: the stream has no images.')
    return number
