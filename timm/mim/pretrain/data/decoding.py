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
_HEADER = 1 << 17  # bytes of a file that are searched for EXIF data, which stand at the start
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


class Jpeg(NamedTuple):
    """A JPEG file in colour, of which only the header has been read: much less work than `Image.open`.

    Attributes:
        content: The whole file.
        height: Height in pixels.
        width: Width in pixels.
    """
    content: bytes
    height: int
    width: int

    def decode(self, scale: int = 1) -> Optional[torch.Tensor]:
        """Decode with simplejpeg. Return None where Pillow must do it, which reports damaged files better."""
        size = -(-self.height // scale), -(-self.width // scale)
        smaller = dict(min_height=size[0], min_width=size[1], min_factor=scale) if scale > 1 else {}
        try:
            pixels = simplejpeg.decode_jpeg(
                self.content, colorspace='RGB', buffer=_workspace(3 * math.prod(size)), **smaller)
        except ValueError:
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1)


def open_jpeg(content: bytes, exif_rotation: bool = False) -> Optional[Jpeg]:
    """Read the header of a JPEG file in colour. Return None for all that Pillow must open.

    Args:
        content: The whole file.
        exif_rotation: Leave files with EXIF data to `open_image`, which turns them.
    """
    if simplejpeg is None or not content.startswith(b'\xff\xd8') or exif_rotation and b'Exif' in content[:_HEADER]:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return Jpeg(content, height, width) if colours in ('YCbCr', 'RGB') else None


def decode(image: Union[Image.Image, Jpeg], mode: str, scale: int = 1) -> Pixels:
    """Decode an opened image as a tensor.

    Args:
        image: What `open_image` or `open_jpeg` returned.
        mode: PIL mode to convert to.
        scale: Factor of `scale_for`. Other files than JPEG are decoded at full size.
    """
    jpeg = image if isinstance(image, Jpeg) else _read_content(image)
    decoded = jpeg.decode(scale) if jpeg is not None and mode == 'RGB' else None
    if decoded is not None:
        return Pixels(decoded, round(jpeg.height / decoded.shape[1]))
    if isinstance(image, Jpeg):
        with pixel_limit(0):
            image = Image.open(io.BytesIO(image.content))
    height = image.height
    if scale > 1 and image.format == 'JPEG' and image.mode == mode and mode in ('L', 'RGB'):
        image.draft(mode, (image.width // scale, height // scale))
    decoded = to_tensor(ToMode(mode)(image))
    return Pixels(decoded, round(height / decoded.shape[1]))


def _read_content(image: Image.Image) -> Optional[Jpeg]:
    """Return the file of a JPEG image in colour that Pillow has opened."""
    if simplejpeg is None or image.format != 'JPEG' or image.mode != 'RGB' or image.fp is None:
        return None
    image.fp.seek(0)
    jpeg = Jpeg(image.fp.read(), image.height, image.width)
    image.fp.seek(0)
    return jpeg


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


def check_pixels(count: int, max_pixels: int) -> None:
    """Check that an image has at most `max_pixels` pixels; 0 for no limit.

    Raises:
        ValueError: It has more.
    """
    if max_pixels and count > max_pixels:
        raise ValueError(f'{count} pixels exceed --max-pixels {max_pixels}')


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


def read_whole(source: Union[str, bytes, BinaryIO]) -> bytes:
    """Read the encoded bytes of an image."""
    if isinstance(source, bytes):
        return source
    with as_file(source) as file:
        return file.read()


def as_file(source: Union[str, bytes, BinaryIO]) -> BinaryIO:
    """Open the encoded bytes of an image, or return the file that is open already."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open(source, 'rb') if isinstance(source, str) else source
