"""Read, decode, crop and flip images. An image that cannot be read is counted, and another takes its place.

Crops and flips act on uint8 tensors, which takes about half the time of PIL images. The random choices are timm's own:
its transform draws crop boxes and flips, in the same order. Pixels of a resized crop differ from PIL's by at most two
levels of 256, because both round intermediate results. JPEG files are decoded at full size.
"""

import logging
import random
import re
import warnings
from contextlib import contextmanager
from typing import BinaryIO, Callable, Iterator, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, RandomVerticalFlip

from timm.data import ImageDataset
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
from ..errors import one_line

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; without it PIL decodes, and three quarters of the speed remain
    decode_jpeg = None
_MODES = ('L', 'RGB')  # PIL weighs colours by their opacity where there is an alpha channel
_INTERPOLATIONS = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
_ON_TENSORS = (RandomHorizontalFlip, RandomVerticalFlip, MaybePILToTensor)

_logger = logging.getLogger(__name__)
_ATTEMPTS = 10  # to find another image
_NAMED = 3  # unreadable files that each process names


def on_tensors(transform: Callable, mode: str) -> Optional[Callable]:
    """Turn a transform of PIL images into one of uint8 tensors (C, H, W), with the same random choices.

    Args:
        transform: timm's transform for training.
        mode: PIL mode of the images.

    Returns:
        None if a step of it needs a PIL image.
    """
    crop, *others = getattr(transform, 'transforms', [None])
    if mode not in _MODES or type(crop) is not RandomResizedCropAndInterpolation:
        return None
    if not all(type(step) in _ON_TENSORS for step in others):
        return None
    if not all(interpolation in _INTERPOLATIONS for interpolation in _choices(crop)):
        return None
    return Compose([CropAndResize(crop), *others])


def _choices(crop: RandomResizedCropAndInterpolation) -> tuple:
    return crop.interpolation if isinstance(crop.interpolation, tuple) else (crop.interpolation,)


def read_jpeg(file: BinaryIO, image: Image.Image, mode: str) -> Optional[torch.Tensor]:
    """Decode a JPEG file in colour as a uint8 tensor (3, H, W).

    Args:
        file: The open file.
        image: The image that PIL opened, and did not decode.
        mode: PIL mode that is wanted.

    Returns:
        None if it is another file or mode, for PIL.
    """
    if decode_jpeg is None or image.format != 'JPEG' or not image.mode == mode == 'RGB':
        return None
    file.seek(0)
    try:
        return decode_jpeg(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:  # a damaged file, of which PIL tells more, or a torchvision that was built without it
        file.seek(0)
        return None


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Copy a PIL image to a uint8 tensor (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


class CropAndResize:
    """Does on uint8 tensors (C, H, W) what timm's random crop does on PIL images.

    Args:
        crop: timm's random crop.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation):
        self.crop = crop

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        crop = self.crop
        top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
        choices = _choices(crop)
        interpolation = random.choice(choices) if isinstance(crop.interpolation, tuple) else choices[0]
        region = image[None, :, top:top + height, left:left + width]
        # torchvision's own function goes through float32, which is four times slower
        return F.interpolate(region, crop.size, mode=interpolation.value, antialias=True)[0]


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
