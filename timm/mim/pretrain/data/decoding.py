"""Decode images: JPEG files at the scale that a crop needs, any other file with Pillow.

libjpeg can decode a JPEG file at 1/2, 1/4 or 1/8 of its size, for less than the full work. An image is decoded at the
smallest of these sizes at which the crop is still at least as large as the result. Where the whole image would be
needed, it is decoded at full size, bit for bit as Pillow decodes it.
"""

import io
import math
import re
import threading
import warnings
from contextlib import contextmanager
from typing import BinaryIO, Iterator, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from PIL import Image, ImageOps

try:
    import simplejpeg
except ImportError:  # then Pillow decodes, which takes a quarter to a half longer
    simplejpeg = None

_SCALES = (8, 4, 2)
_NOTHING = np.empty(0, dtype=np.uint8)
_memory = threading.local()
_ORIENTATION = 0x0112  # EXIF tag
_UNSCALED = ('F', 'I')  # pixels of 32 bits, whose black and white nobody knows


class Pixels(NamedTuple):
    """A decoded image, and the factor by which it is smaller than the file says."""
    image: torch.Tensor  # uint8 (C, H, W)
    scale: int


def open_image(file: BinaryIO, exif_rotation: bool = False) -> Image.Image:
    """Open an image without decoding it, and turn it if that is asked for, which decodes it.

    Args:
        file: The open file.
        exif_rotation: Turn the image as its EXIF orientation says.
    """
    image = Image.open(file)
    if exif_rotation and image.getexif().get(_ORIENTATION, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


def scale_for(crop: Tuple[int, int], size: Tuple[int, int]) -> int:
    """Return the largest factor (8, 4, 2 or 1) by which a crop may be smaller and still be as large as its result.

    Args:
        crop: Height and width of the crop in the full image.
        size: Height and width to which the crop is resized.
    """
    return next((s for s in _SCALES if crop[0] >= s * size[0] and crop[1] >= s * size[1]), 1)


def decode(image: Image.Image, mode: str, scale: int = 1) -> Pixels:
    """Decode an opened image as a tensor.

    Args:
        image: Image that `open_image` returned.
        mode: PIL mode to convert to.
        scale: Factor of `scale_for`. Other files than JPEG are decoded at full size.
    """
    if image.format != 'JPEG' or image.mode != mode or mode not in ('L', 'RGB'):
        return Pixels(to_tensor(ToMode(mode)(image)), 1)
    width, height = image.size
    decoded = _decode_jpeg(image, mode, (-(-height // scale), -(-width // scale)), scale)
    if decoded is None:
        if scale > 1:
            image.draft(mode, (width // scale, height // scale))
        decoded = to_tensor(ToMode(mode)(image))
    return Pixels(decoded, round(height / decoded.shape[1]))


def _decode_jpeg(image: Image.Image, mode: str, size: Tuple[int, int], scale: int) -> Optional[torch.Tensor]:
    """Decode a JPEG file with simplejpeg. Return None where Pillow must do it, which reports damaged files better."""
    if simplejpeg is None or mode != 'RGB' or image.fp is None:
        return None
    file = image.fp
    file.seek(0)
    smaller = dict(min_height=size[0], min_width=size[1], min_factor=scale) if scale > 1 else {}
    try:
        workspace = _workspace(3 * math.prod(size))
        pixels = simplejpeg.decode_jpeg(file.read(), colorspace='RGB', buffer=workspace, **smaller)
    except ValueError:
        file.seek(0)
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _workspace(size: int) -> np.ndarray:
    """Return memory for a decoded image, the same for all images of a thread: new memory costs as much as the resize.

    The image must be cropped and resized, which copies it, before the thread decodes the next one.
    """
    if getattr(_memory, 'pixels', _NOTHING).size < size:
        _memory.pixels = np.empty(size, dtype=np.uint8)
    return _memory.pixels


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Copy a PIL image to a uint8 tensor (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1)


class ToMode:
    """Converts a PIL image to a mode. Of grey levels of 16 bits it keeps the upper 8 bits, as
    Pillow does with colours of 16 bits; Pillow itself would clip grey levels to white.

    Args:
        mode: PIL mode.
    """

    def __init__(self, mode: str):
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert an image.

        Raises:
            ValueError: The image has pixels of 32 bits, and the mode has pixels of 8 bits.
        """
        image.load()
        if self.mode[0] not in 'IF' and image.mode in _UNSCALED:
            raise ValueError(
                f'its pixels have 32 bits (PIL mode {image.mode}), and no file says which value is white: read images '
                'in their own units with --input-img-mode bands')
        if self.mode[0] not in 'IF' and image.mode.startswith('I;16'):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image if image.mode == self.mode else image.convert(self.mode)


@contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
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


def as_file(source: Union[str, bytes, BinaryIO]) -> BinaryIO:
    """Open the encoded bytes of an image, or return the file that is open already."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open(source, 'rb') if isinstance(source, str) else source
