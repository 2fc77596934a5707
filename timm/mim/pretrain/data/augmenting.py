"""Crop and flip tensors as timm's transform does with PIL images, in about half the time.

timm's own transform draws the crop boxes and flips, in the same order. Pixels of a resized crop differ from PIL's by at
most 2 of 256 levels, because both round intermediate results. Where a JPEG file is decoded at a smaller scale (see
`timm.mim.pretrain.data.decoding`), the mean difference is below 2 levels for photographs.
"""

import random
from typing import Callable, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomHorizontalFlip, RandomVerticalFlip

from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, MaybeToTensor, RandomResizedCropAndInterpolation
from .decoding import scale_for
from .formats import BANDS

_MODES = ('L', 'RGB', BANDS)  # with an alpha channel, PIL's resize weights colours by opacity, which tensors do not
_INTERPOLATIONS = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
_FLIPS = {RandomHorizontalFlip: -1, RandomVerticalFlip: -2}  # the axis that each turns around
_ON_TENSORS = (*_FLIPS, MaybePILToTensor)
_ON_BANDS = (*_ON_TENSORS, MaybeToTensor, Normalize, RandomErasing)  # the first of these leaves tensors as they are


class CropChoices(NamedTuple):
    """A crop box in pixels, and the interpolation with which it is resized."""
    top: int
    left: int
    height: int
    width: int
    interpolation: str


class TensorAugmentation:
    """Applies timm's random resized crop and flips to tensors (C, H, W).

    Args:
        crop: timm's random crop.
        others: The steps after it.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation, others: Sequence[Callable]):
        self.crop = crop
        self.others = [step for step in others if type(step) is not MaybePILToTensor]

    def draw(self, image: Union[Image.Image, torch.Tensor]) -> CropChoices:
        """Choose a crop of an image, whose size is all that is looked at."""
        crop = self.crop
        box = crop.get_params(image, crop.scale, crop.ratio)
        interpolations = _interpolations(crop)
        several = isinstance(crop.interpolation, tuple)
        return CropChoices(*box, (random.choice(interpolations) if several else interpolations[0]).value)

    def scale_of(self, choices: CropChoices) -> int:
        """Return by how much smaller the file may be decoded without losing detail that the result would show."""
        return scale_for((choices.height, choices.width), self.crop.size)

    @staticmethod
    def scaled(choices: CropChoices, scale: int) -> CropChoices:
        """Return the same crop of an image that is smaller by a factor, to the nearest pixel."""
        if scale == 1:
            return choices
        top, left, height, width, interpolation = choices
        first, last = (round(top / scale), round(left / scale)), ((top + height) / scale, (left + width) / scale)
        return CropChoices(*first, round(last[0]) - first[0], round(last[1]) - first[1], interpolation)

    def apply(self, image: torch.Tensor, choices: CropChoices) -> torch.Tensor:
        """Crop, resize and flip an image."""
        top, left, height, width, interpolation = choices
        region = image[None, :, top:top + height, left:left + width]
        # torchvision's resize converts to float32, which is four times slower
        image = F.interpolate(region, self.crop.size, mode=interpolation, antialias=True)[0]
        for step in self.others:
            if type(step) not in _FLIPS:
                image = step(image)
            elif torch.rand(1) < step.p:  # torchvision's flips draw so too, and take several times as long
                image = image.flip(_FLIPS[type(step)])
        return image

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self.apply(image, self.draw(image))


def on_tensors(transform: Callable, mode: str) -> Optional[Callable]:
    """Turn a transform of PIL images into one of tensors (C, H, W) that makes the same random choices.

    Args:
        transform: timm's training transform, or a transform that runs on tensors already.
        mode: PIL mode of the images, or `bands`.

    Returns:
        The transform, None if a step of it needs PIL images.
    """
    if hasattr(transform, 'draw'):
        return transform
    crop, *others = getattr(transform, 'transforms', [None])
    if mode not in _MODES or type(crop) is not RandomResizedCropAndInterpolation:
        return None
    if not all(type(step) in (_ON_BANDS if mode == BANDS else _ON_TENSORS) for step in others):
        return None
    if not all(interpolation in _INTERPOLATIONS for interpolation in _interpolations(crop)):
        return None
    return TensorAugmentation(crop, others)


def _interpolations(crop: RandomResizedCropAndInterpolation) -> tuple:
    return crop.interpolation if isinstance(crop.interpolation, tuple) else (crop.interpolation,)


def on_bands(transform: Compose, size: Tuple[int, int], crop_pct: float, interpolation: str) -> Callable:
    """Turn timm's training or evaluation transform, with its normalisation, into one of bands (C, H, W).

    Args:
        transform: timm's transform of a PIL image, without changes of colour.
        size: Height and width of the result of evaluation.
        crop_pct: Fraction of the shorter side that the crop of evaluation keeps.
        interpolation: Interpolation of evaluation, 'bilinear' or 'bicubic'.
    """
    augmentation = on_tensors(transform, BANDS)
    if augmentation is not None:
        return augmentation
    kept = [step for step in transform.transforms if isinstance(step, Normalize)]
    return Compose([ResizeAndCenterCrop(size, crop_pct, interpolation), *kept])


class ResizeAndCenterCrop:
    """Resizes an image until it covers a size, and crops the centre: timm's evaluation transform, for tensors.

    Args:
        size: Height and width of the result.
        crop_pct: Fraction of the shorter side that the crop keeps.
        interpolation: 'bilinear' or 'bicubic'.
    """

    def __init__(self, size: Tuple[int, int], crop_pct: float, interpolation: str):
        self.size = size
        self.crop_pct = crop_pct
        self.interpolation = interpolation

    def draw(self, image: torch.Tensor) -> Tuple:
        """Return no choices: nothing is random here."""
        return ()

    def apply(self, image: torch.Tensor, choices: Tuple = ()) -> torch.Tensor:
        """Resize and crop an image (C, H, W)."""
        height, width = self.size
        factor = max(height / image.shape[1], width / image.shape[2]) / self.crop_pct
        full = [max(least, round(side * factor)) for side, least in zip(image.shape[1:], self.size)]
        image = F.interpolate(image[None].float(), full, mode=self.interpolation, antialias=True)[0]
        top, left = (full[0] - height) // 2, (full[1] - width) // 2
        return image[:, top:top + height, left:left + width]

    __call__ = apply
