"""Decoding, cropping and flipping on uint8 tensors, twice as fast as with PIL images.

The random choices are timm's own: crop boxes and flips are drawn by its transform, in the same order. Pixels of an
enlarged or reduced crop differ from PIL's by two levels of 256 at most, since both round intermediate results.

JPEG files are decoded at full size. A decoder can skip most of the work where a crop is more than twice as large as
what it is reduced to, but that changes the pixels.
"""
import random
from typing import BinaryIO, Callable, Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, RandomVerticalFlip

from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; without it PIL decodes, and three quarters of the speed remain
    decode_jpeg = None

_MODES = ('L', 'RGB')  # PIL weighs colours by their opacity where there is an alpha channel
_INTERPOLATIONS = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
_ON_TENSORS = (RandomHorizontalFlip, RandomVerticalFlip, MaybePILToTensor)


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
