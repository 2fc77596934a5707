"""Load NaFlex batches: images keep their aspect ratio, and a batch has a budget of patches.

Each batch has one sequence length, drawn from --naflex-train-seq-lens, and as many images as fit into the budget:
--batch-size images of the longest sequence. timm's transforms resize an image to the largest size whose patches fit
into the sequence, and keep its aspect ratio; they enlarge small images. Padding fills the rest of the sequence.

As in `loading`, order and augmentation depend only on the seed, the epoch and the position in the epoch, and another
image replaces one that cannot be read. timm's own NaFlex dataset skips unreadable images, so that batches shrink, which
moves the masks of the images behind them, and a process whose batch vanishes makes the others wait forever.
"""
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from timm.data import create_transform
from timm.data.naflex_dataset import NaFlexCollator, calculate_naflex_batch_size
from timm.data.naflex_loader import NaFlexPrefetchLoader
from ..errors import UserError
from ..flags.run_options import RunOptions
from .reading import ImageKey, KeyedImages, image_reader, leave_signals_alone, sample_seed

_DIVISOR = 8  # batch sizes are multiples of it, as in timm's loader, if the budget allows that many images
_MIN_SIDE = 256  # timm's resize refuses images of a few pixels, which it would have to enlarge more than 100 times


class NaFlexKey(NamedTuple):
    """A batch to load: its sequence length and its images."""
    seq_len: int
    images: List[ImageKey]


def images_in_budget(batch_size: int, seq_len: int, longest: int) -> int:
    """Return the number of images of a batch.

    Args:
        batch_size: Number of images of the longest sequence in a batch.
        seq_len: Sequence length of the batch.
        longest: Longest sequence length.
    """
    tokens = batch_size * longest
    divisor = _DIVISOR if tokens >= _DIVISOR * seq_len else 1
    return calculate_naflex_batch_size(tokens, seq_len, divisor=divisor)


class NaFlexSampler(Sampler):
    """Shuffles and distributes the images of an epoch in batches of different sequence lengths.

    Yields a `NaFlexKey` per batch. The sequence lengths are drawn from the seed once, so that all epochs have the same
    batches, in another order. All processes have batches of the same length and size. The last batch that is drawn may
    be smaller; images that do not suffice for one more on each process are left out of the epoch.

    Args:
        num_images: Number of images in the dataset.
        seq_lens: Sequence lengths to draw from.
        batch_size: Number of images of the longest sequence in a batch.
        repeats: Number of passes over the images in an epoch, at least 1.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
            self,
            num_images: int,
            seq_lens: Sequence[int],
            batch_size: int,
            repeats: float = 1.0,
            seed: int = 0,
            rank: int = 0,
            world_size: int = 1,
    ):
        self.num_images = num_images
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = self.first_batch = 0
        self.schedule = self._draw_schedule(sorted(set(seq_lens)), batch_size, repeats)

    def _draw_schedule(self, seq_lens: List[int], batch_size: int, repeats: float) -> List[Tuple[int, int]]:
        """Return the sequence length and the number of images per process of each batch of an epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        left = max(1, int(self.num_images * max(1.0, repeats)) // self.world_size)
        schedule = []
        while left:
            seq_len = seq_lens[int(torch.randint(len(seq_lens), (1,), generator=generator))]
            size = min(left, images_in_budget(batch_size, seq_len, seq_lens[-1]))
            schedule.append((seq_len, size))
            left -= size
        return schedule

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, and the batch to start with when a run resumes within the epoch."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        return len(self.schedule)

    @property
    def images_per_epoch(self) -> int:
        """Number of images of an epoch over all processes."""
        return self.world_size * sum(size for _, size in self.schedule)

    def __iter__(self):
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, -1))
        passes = -(-self.images_per_epoch // self.num_images)
        order = torch.cat([torch.randperm(self.num_images, generator=generator) for _ in range(passes)]).tolist()
        shuffled = torch.randperm(len(self.schedule), generator=generator).tolist()
        keys, start = [], 0  # start: position in the epoch of the first image of a batch, over all processes
        for number in shuffled:
            seq_len, size = self.schedule[number]
            own = range(start + self.rank * size, start + (self.rank + 1) * size)
            keys.append(NaFlexKey(seq_len, [ImageKey(self.epoch, position, order[position]) for position in own]))
            start += size * self.world_size
        return iter(keys[self.first_batch:])


class EnlargeTiny:
    """Enlarges images whose longer side has fewer than 256 pixels, so that timm can resize them to a sequence."""

    def __call__(self, image: Image.Image) -> Image.Image:
        longer = max(image.size)
        if longer >= _MIN_SIDE:
            return image
        return image.resize([max(1, round(side * _MIN_SIDE / longer)) for side in image.size], Image.Resampling.BICUBIC)


class Steps:
    """Applies transforms one after the other. (`torchvision.transforms.Compose` would be converted to tensors.)"""

    def __init__(self, *steps: Callable):
        self.steps = steps

    def __call__(self, image: Image.Image) -> Dict[str, torch.Tensor]:
        for step in self.steps:
            image = step(image)
        return image


class NaFlexBatches(Dataset):
    """Loads whole batches by their `NaFlexKey`.

    An item is a batch as timm's NaFlex loader makes it, and the indices of the images, `~index` where another image
    replaces one that cannot be read.

    Args:
        images: Images by sequence length, as sequences of patches.
    """

    def __init__(self, images: Dict[int, KeyedImages]):
        self.images = images

    @property
    def num_unreadable(self) -> int:
        """Number of unreadable images that this process has met."""
        return sum(images.num_unreadable for images in self.images.values())

    def __getitem__(self, key: NaFlexKey) -> Tuple[Dict[str, torch.Tensor], torch.Tensor]:
        images = self.images[key.seq_len]
        return collate_sequences([images[image] for image in key.images], key.seq_len)

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))


def collate_sequences(
        items: List[Tuple[Dict[str, torch.Tensor], int]],
        seq_len: int,
) -> Tuple[Dict[str, torch.Tensor], torch.Tensor]:
    """Collate sequences of patches with timm's collator, which alone would silently cut long ones.

    Raises:
        ValueError: An image has more patches than `seq_len`.
    """
    longest = max(len(item['patches']) for item, _ in items)
    if longest > seq_len:
        raise ValueError(f'An image has {longest} patches, more than the {seq_len} of its batch, and would be cut.')
    return NaFlexCollator(seq_len)(items)


def create_naflex_train_loader(
        dataset: Dataset,
        options: RunOptions,
        data_config: Dict[str, Any],
        augmentation: Dict[str, Any],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
) -> NaFlexPrefetchLoader:
    """Create the loader of the training images as NaFlex batches.

    Args:
        dataset: Training images.
        options: Options of the run.
        data_config: Patch size, mean, standard deviation, interpolation and mode of the images.
        augmentation: Arguments of timm's training transform.
        device: Device that receives and normalises the patches.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: The dataset is a stream, or an augmentation option is invalid.
    """
    if isinstance(dataset, IterableDataset):
        raise UserError('--naflex-loader needs a dataset with a length and an order, and this one is a stream.')
    seq_lens = options.naflex_train_seq_lens
    sampler = NaFlexSampler(
        len(dataset), seq_lens, options.batch_size, options.epoch_repeats, options.seed, rank, world_size)
    try:
        transforms = {
            seq_len: create_transform(
                data_config['input_size'], is_training=True, **_sequence(data_config, seq_len), **augmentation)
            for seq_len in seq_lens}
    except (AssertionError, ValueError) as e:
        raise UserError(f'--aa, --color-jitter or another augmentation: {e}') from e
    return _create_loader(dataset, transforms, sampler, options, data_config, device, options.workers > 0)


def create_naflex_evaluation_loader(
        dataset: Dataset,
        indices: Sequence[int],
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
) -> NaFlexPrefetchLoader:
    """Create a loader of some images of a dataset as NaFlex batches, without cropping.

    Args:
        dataset: Images.
        indices: Indices of the images to load, in order.
        options: Options of the run.
        data_config: Patch size, mean, standard deviation, interpolation and mode of the images.
        device: Device that receives and normalises the patches.

    Raises:
        UserError: The dataset is a stream.
    """
    if isinstance(dataset, IterableDataset):
        raise UserError('--naflex-loader needs images with a length and an order, and these are a stream.')
    seq_len, size = options.naflex_max_seq_len, options.validation_batch_size or options.batch_size
    transform = create_transform(
        data_config['input_size'],
        interpolation=data_config['interpolation'],
        **_sequence(data_config, seq_len),
    )
    keys = [ImageKey(0, index, index) for index in indices]
    batches = [NaFlexKey(seq_len, keys[start:start + size]) for start in range(0, len(keys), size)]
    return _create_loader(dataset, {seq_len: transform}, batches, options, data_config, device, False)


def _sequence(data_config: Dict[str, Any], seq_len: int) -> Dict[str, Any]:
    return dict(
        naflex=True, patchify=True, max_seq_len=seq_len, patch_size=data_config['patch_size'], use_prefetcher=True)


def _create_loader(
        dataset: Dataset,
        transforms: Dict[int, Callable],
        sampler: Sequence[NaFlexKey],
        options: RunOptions,
        data_config: Dict[str, Any],
        device: torch.device,
        persistent_workers: bool,
) -> NaFlexPrefetchLoader:
    images = {
        seq_len: KeyedImages(dataset, image_reader(Steps(EnlargeTiny(), transform), options, data_config), options.seed)
        for seq_len, transform in transforms.items()}
    loader = DataLoader(
        NaFlexBatches(images),
        batch_size=None,  # an item is a whole batch
        sampler=sampler,
        num_workers=options.workers,
        pin_memory=options.pin_mem,
        persistent_workers=persistent_workers,
    )
    leave_signals_alone(loader)
    return NaFlexPrefetchLoader(
        loader,
        mean=data_config['mean'],
        std=data_config['std'],
        channels=data_config['input_size'][0],
        device=device,
    )
