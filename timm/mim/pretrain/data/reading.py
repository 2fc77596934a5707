"""Read, crop and flip images. Unreadable images are counted and replaced by other images.

The steps run on tensors where that is possible, see `timm.mim.pretrain.data.augmenting`.
"""

import io
import logging
import random
import signal
from functools import partial
from typing import Any, BinaryIO, Callable, Dict, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from timm.data import ImageDataset
from ..errors import SIGNALS, one_line
from ..flags.run_options import RunOptions
from .augmenting import on_tensors
from .bands import read_bands
from .decoding import Jpeg, ToMode, check_pixels, decode, open_image, open_jpeg, pixel_limit, read_whole
from .formats import BANDS

_logger = logging.getLogger(__name__)
_ATTEMPTS = 10  # images to try before giving up
_NAMED = 3  # number of unreadable files that each process names in the log


class ImageKey(NamedTuple):
    """An image to load: the epoch, its position in the epoch over all processes, and its index in the dataset."""
    epoch: int
    position: int
    index: int


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Return a seed for one image of one epoch."""
    key = (seed, epoch, position + 1)
    if max(key) < 1 << 32:  # the same seed; NumPy takes ten times as long to convert numbers of any size
        key = np.array(key, dtype=np.uint32)
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the generators that transforms use: of Python, NumPy and PyTorch on the CPU."""
    random.seed(seed)
    np.random.seed(seed)
    torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would also queue a call for CUDA


class ImageReader:
    """Decodes and augments one image, given as an open file, as encoded bytes or as a PIL image.

    `read` makes the random choices that decide how much of the file is decoded. `finish` does the rest. An error in
    `read` means an unreadable file.

    Args:
        transform: timm's transform of a PIL image. It runs on tensors if `on_tensors` can convert it.
        mode: PIL mode to convert images to, or `bands`.
        channels: Number of channels, which the mode `bands` needs.
        max_pixels: Images with more pixels count as unreadable; 0 for no limit.
        exif_rotation: Turn images as their EXIF orientation says.
    """

    def __init__(
            self,
            transform: Callable,
            mode: str,
            channels: int = 3,
            max_pixels: int = 0,
            exif_rotation: bool = False,
    ):
        self.on_tensors = on_tensors(transform, mode)
        self.transform = self.on_tensors or transform
        self.mode = mode
        self.to_mode = ToMode(mode)
        self.channels = channels
        self.max_pixels = max_pixels
        self.exif_rotation = exif_rotation

    def read(self, source: Union[str, bytes, BinaryIO, Image.Image]) -> Tuple[Any, Optional[Tuple]]:
        """Decode an image.

        Returns:
            The image, and the random choices of the crop if it runs on tensors.
        """
        if self.mode == BANDS:
            pixels = read_bands(source, self.channels, self.max_pixels)
            return pixels, self.transform.draw(pixels)
        is_file = not isinstance(source, Image.Image)
        content = read_whole(source) if is_file else b''
        jpeg = open_jpeg(content, self.exif_rotation) if self.on_tensors is not None and self.mode == 'RGB' else None
        if jpeg is not None:
            check_pixels(jpeg.height * jpeg.width, self.max_pixels)
            return self._decode(jpeg, torch.empty(1).expand(jpeg.height, jpeg.width))
        with pixel_limit(self.max_pixels):
            image = open_image(io.BytesIO(content), self.exif_rotation) if is_file else source
            return (self.to_mode(image), None) if self.on_tensors is None else self._decode(image, image)

    def _decode(self, image: Union[Image.Image, Jpeg], size: Any) -> Tuple[torch.Tensor, Tuple]:
        """Draw a crop, and decode an image at the scale that the crop needs."""
        choices = self.on_tensors.draw(size)
        pixels, scale = decode(image, self.mode, self.on_tensors.scale_of(choices))
        return pixels, self.on_tensors.scaled(choices, scale)

    def finish(self, image: Any, choices: Optional[Tuple]) -> torch.Tensor:
        """Augment a decoded image."""
        return self.transform(image) if choices is None else self.transform.apply(image, choices)


def image_reader(transform: Callable, options: RunOptions, data_config: Dict[str, Any]) -> ImageReader:
    """Create the reader of images for the options of a run."""
    return ImageReader(
        transform, data_config['mode'], data_config['input_size'][0], options.max_pixels, options.exif_rotation)


class KeyedImages(Dataset):
    """Converts the images of a dataset to one mode, and augments each with a seed that its `ImageKey` determines.

    An item is an image and its index. If the image is unreadable, the item is another image, drawn with the same key,
    and `~index`.

    Args:
        dataset: Dataset with a `transform`.
        reader: Decodes and augments an image.
        seed: Seed of the run.
    """

    def __init__(self, dataset: Dataset, reader: ImageReader, seed: int):
        self.dataset = dataset
        self.reader = reader
        self.seed = seed
        self.num_unreadable = 0
        # The dataset only converts images, so that an error in it means an unreadable file.
        (dataset.dataset if isinstance(dataset, Subset) else dataset).transform = reader.to_mode

    def __getitem__(self, key: ImageKey) -> Tuple[torch.Tensor, int]:
        seed = sample_seed(self.seed, key.epoch, key.position)
        (image, choices), index = self._read(key.index, seed)
        return self.reader.finish(image, choices), index

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, index: int, seed: int) -> Tuple[Tuple[Any, Optional[Tuple]], int]:
        """Read an image, or a random other image if it is unreadable.

        Returns:
            What the reader returns, and the index of the image, `~index` for another image.

        Raises:
            OSError: The other images that were tried are unreadable too.
        """
        tried, generator = index, random.Random(seed)
        for attempt in range(_ATTEMPTS):
            try:
                source = self._source(tried)
                seed_everything(seed)
                return self.reader.read(source), index if attempt == 0 else ~index
            except Exception as e:  # decoders raise errors of many types for broken files
                name, reason = self._name(tried), one_line(e)[:200]
            self.num_unreadable += 1
            if self.num_unreadable <= _NAMED:
                _logger.warning(f'{name} cannot be read, another image replaces it: {reason}')
            tried = generator.randrange(len(self.dataset))
        raise OSError(f'{_ATTEMPTS} images, drawn at random, cannot be read; the last is {name}: {reason}')

    def _source(self, index: int) -> Union[BinaryIO, Image.Image]:
        dataset, index = self._place(index)
        if isinstance(dataset, ImageDataset):
            return dataset.reader[index][0]  # `ImageDataset.__getitem__` would replace an unreadable image silently
        with pixel_limit(self.reader.max_pixels):
            return dataset[index][0]

    def _name(self, index: int) -> str:
        dataset, place = self._place(index)
        try:
            return f"'{dataset.filename(place)}'"
        except Exception:  # few datasets know their file names
            return f'image {index} of the dataset'

    def _place(self, index: int) -> Tuple[Dataset, int]:
        subset = isinstance(self.dataset, Subset)
        return (self.dataset.dataset, self.dataset.indices[index]) if subset else (self.dataset, index)


def leave_signals_alone(loader: DataLoader) -> None:
    """Make the workers of a loader ignore the signals that stop a run."""
    loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(others: Optional[Callable], worker: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if others is not None:
        others(worker)
