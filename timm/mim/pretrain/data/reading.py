"""Reading images of any dataset and mode. Another one takes the place of one that cannot be read, which is counted."""
import logging
import random
import re
import warnings
from contextlib import contextmanager
from typing import Callable, Iterator, NamedTuple, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from timm.data import ImageDataset
from ..errors import one_line
from .tensor_transforms import on_tensors, read_jpeg, to_tensor

_logger = logging.getLogger(__name__)

_ATTEMPTS = 10  # to find another image
_NAMED = 3  # unreadable files that each process names


class UnreadableImages(Exception):
    """More of the images cannot be read than the user allows."""


class ImageKey(NamedTuple):
    """An image to load: the epoch, its position in the epoch over all processes, and its index in the dataset."""
    epoch: int
    position: int
    index: int


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Return a seed for one image of one epoch."""
    return int(np.random.SeedSequence((seed, epoch, position + 1)).generate_state(1)[0])


class KeyedImages(Dataset):
    """Seeds the random augmentation of every image with its key, and converts images of any dataset to one mode.

    Yields an image and its index, `~index` if it cannot be read and another one, drawn with the same key, is in its
    place.

    Args:
        dataset: Dataset with a `transform`.
        transform: timm's transform of a PIL image. Done on tensors where that gives the same.
        mode: PIL mode to convert images to.
        seed: Seed of the run.
        max_pixels: Images of more pixels count as unreadable, 0 for no limit.
    """

    def __init__(self, dataset: Dataset, transform: Callable, mode: str, seed: int, max_pixels: int):
        self.dataset = dataset
        self.max_pixels = max_pixels
        tensor_transform = on_tensors(transform, mode)
        self.on_tensors = tensor_transform is not None
        self.transform = tensor_transform or transform
        self.seed = seed
        self.to_mode = ToMode(mode)
        self.num_unreadable = 0
        # The dataset only converts, so that what fails in it is the file.
        (dataset.dataset if isinstance(dataset, Subset) else dataset).transform = self.to_mode

    def __getitem__(self, key: ImageKey) -> Tuple[torch.Tensor, int]:
        seed = sample_seed(self.seed, key.epoch, key.position)
        image, index = self._read(key.index, random.Random(seed))
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would queue a call for CUDA each time
        return self.transform(image), index

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, index: int, generator: random.Random) -> Tuple[Union[Image.Image, torch.Tensor], int]:
        """Read an image, or another one.

        Raises:
            OSError: Many others cannot be read either.
        """
        tried = index
        for attempt in range(_ATTEMPTS):
            try:
                with _pixel_limit(self.max_pixels):
                    return self._decode(tried), index if attempt == 0 else ~index
            except Exception as e:  # decoders of broken files fail in every way
                name, reason = self._name(tried), one_line(e)[:200]
            self.num_unreadable += 1
            if self.num_unreadable <= _NAMED:
                _logger.warning(f'{name} cannot be read, another image takes its place: {reason}')
            tried = generator.randrange(len(self.dataset))
        raise OSError(f'{_ATTEMPTS} images, drawn at random, cannot be read, of which the last is {name}: {reason}')

    def _decode(self, index: int) -> Union[Image.Image, torch.Tensor]:
        dataset, index = self._place(index)
        if isinstance(dataset, ImageDataset):
            # Not by its __getitem__, which replaces an image without telling.
            file = dataset.reader[index][0]
            image = Image.open(file)
            pixels = read_jpeg(file, image, self.to_mode.mode) if self.on_tensors else None
            if pixels is not None:
                return pixels
            image = self.to_mode(image)
        else:
            image = dataset[index][0]
        return to_tensor(image) if self.on_tensors else image

    def _name(self, index: int) -> str:
        dataset, place = self._place(index)
        try:
            return f"'{dataset.filename(place)}'"
        except Exception:  # few datasets know
            return f'image {index} of the dataset'

    def _place(self, index: int) -> Tuple[Dataset, int]:
        subset = isinstance(self.dataset, Subset)
        return (self.dataset.dataset, self.dataset.indices[index]) if subset else (self.dataset, index)


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Let PIL refuse images of more pixels by their header, before anything is decoded.

    Raises:
        ValueError: An image has more.
    """
    previous = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels / 2 if max_pixels else None  # PIL refuses twice as many, and warns of as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as e:
        count = re.search(r'\d+', str(e))
        raise ValueError(f'{count.group() if count else "its"} pixels are more than --max-pixels {max_pixels}') from e
    finally:
        Image.MAX_IMAGE_PIXELS = previous


class ToMode:
    """Converts a PIL image to a mode, 16-bit grey levels by scaling, where PIL clips them to white.

    Args:
        mode: PIL mode.
    """

    def __init__(self, mode: str):
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        image.load()
        if image.mode.startswith('I') and self.mode[0] not in 'IF':
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        return image if image.mode == self.mode else image.convert(self.mode)
