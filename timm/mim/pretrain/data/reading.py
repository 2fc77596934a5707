"""Read, decode, crop and flip images. Unreadable images are counted and replaced by other images.

Crops and flips work on uint8 tensors, in about half the time that PIL images take. timm's own transform draws the crop
boxes and flips, in the same order. Pixels of a resized crop differ from PIL's by at most 2 of 256 levels, because both
round intermediate results. JPEG files are decoded at full size.
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
except ImportError:  # deprecated since torchvision 0.29; then PIL decodes, at three quarters of the speed
    decode_jpeg = None
_MODES = ('L', 'RGB')  # with an alpha channel, PIL's resize weights colours by opacity, which tensors do not
_INTERPOLATIONS = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
_ON_TENSORS = (RandomHorizontalFlip, RandomVerticalFlip, MaybePILToTensor)

_logger = logging.getLogger(__name__)
_ATTEMPTS = 10  # images to try before giving up
_NAMED = 3  # number of unreadable files that each process names in the log


def on_tensors(transform: Callable, mode: str) -> Optional[Callable]:
    """Turn a transform of PIL images into one of uint8 tensors (C, H, W) that makes the same random choices.

    Args:
        transform: timm's training transform.
        mode: PIL mode of the images.

    Returns:
        The transform, None if a step of it needs PIL images.
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
        image: The image that PIL has opened but not decoded.
        mode: PIL mode to decode to.

    Returns:
        The tensor, None if PIL must decode the file: another format or mode, or a damaged file.
    """
    if decode_jpeg is None or image.format != 'JPEG' or not image.mode == mode == 'RGB':
        return None
    file.seek(0)
    try:
        return decode_jpeg(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:  # a damaged file, which PIL reports better, or a torchvision without JPEG support
        file.seek(0)
        return None


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Copy a PIL image to a uint8 tensor (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


class CropAndResize:
    """Applies timm's random resized crop to uint8 tensors (C, H, W).

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
        # torchvision's resize converts to float32, which is four times slower
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
    """Converts the images of a dataset to one mode, and augments each with a seed that its `ImageKey` determines.

    An item is an image and its index. If the image is unreadable, the item is another image, drawn with the same key,
    and `~index`.

    Args:
        dataset: Dataset with a `transform`.
        transform: timm's transform of a PIL image. It runs on tensors if `on_tensors` can convert it.
        mode: PIL mode to convert images to.
        seed: Seed of the run.
        max_pixels: Images with more pixels count as unreadable; 0 for no limit.
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
        # The dataset only converts images, so that an error in it means an unreadable file.
        (dataset.dataset if isinstance(dataset, Subset) else dataset).transform = self.to_mode

    def __getitem__(self, key: ImageKey) -> Tuple[torch.Tensor, int]:
        seed = sample_seed(self.seed, key.epoch, key.position)
        image, index = self._read(key.index, random.Random(seed))
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would also queue a call for CUDA
        return self.transform(image), index

    def __len__(self) -> int:
        return len(self.dataset)

    def _read(self, index: int, generator: random.Random) -> Tuple[Union[Image.Image, torch.Tensor], int]:
        """Read an image, or a random other image if it is unreadable.

        Returns:
            The image, and its index, `~index` for another image.

        Raises:
            OSError: The other images that were tried are unreadable too.
        """
        tried = index
        for attempt in range(_ATTEMPTS):
            try:
                with _pixel_limit(self.max_pixels):
                    return self._decode(tried), index if attempt == 0 else ~index
            except Exception as e:  # decoders raise errors of many types for broken files
                name, reason = self._name(tried), one_line(e)[:200]
            self.num_unreadable += 1
            if self.num_unreadable <= _NAMED:
                _logger.warning(f'{name} cannot be read, another image replaces it: {reason}')
            tried = generator.randrange(len(self.dataset))
        raise OSError(f'{_ATTEMPTS} images, drawn at random, cannot be read; the last is {name}: {reason}')

    def _decode(self, index: int) -> Union[Image.Image, torch.Tensor]:
        dataset, index = self._place(index)
        if isinstance(dataset, ImageDataset):
            # `ImageDataset.__getitem__` would replace an unreadable image silently.
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
        except Exception:  # few datasets know their file names
            return f'image {index} of the dataset'

    def _place(self, index: int) -> Tuple[Dataset, int]:
        subset = isinstance(self.dataset, Subset)
        return (self.dataset.dataset, self.dataset.indices[index]) if subset else (self.dataset, index)


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Make PIL refuse images with more than `max_pixels` pixels when it reads the header, before decoding.

    Raises:
        ValueError: An image has more pixels.
    """
    previous = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels / 2 if max_pixels else None  # PIL raises an error above twice this number
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as e:
        count = re.search(r'\d+', str(e))
        raise ValueError(f'{count.group() if count else "its"} pixels exceed --max-pixels {max_pixels}') from e
    finally:
        Image.MAX_IMAGE_PIXELS = previous


class ToMode:
    """Converts a PIL image to a mode. It scales 16-bit grey levels to 8 bits, which PIL would clip to white.

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
