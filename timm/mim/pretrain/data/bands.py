"""Images of any number of bands: multi-band TIFF, `.npy` and `.npz` files, and what Pillow reads.

Values of 8 bits are divided by 255, as in photographs. All other values keep their own units, such as reflectance times
10,000 or Hounsfield units; mean and standard deviation are in the same units. Where neither is given, both are measured
on a sample of the images.
"""

from typing import Any, BinaryIO, Iterable, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from ..errors import UserError, one_line
from .decoding import as_file

SAMPLE_SIZE = 256  # number of images on which mean and standard deviation are measured
_NPY, _NPZ = b'\x93NUMPY', b'PK\x03\x04'
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_IN_NPZ = ('image', 'arr_0')  # the array of an .npz file that holds several


def read_bands(source: Union[str, bytes, BinaryIO, Image.Image], channels: int, max_pixels: int = 0) -> torch.Tensor:
    """Read an image as float32 tensor (C, H, W).

    The bands are the first axis of an array if it has as many entries as there are channels, otherwise the last one. Of
    a file with several images, the first is read, except in a TIFF file whose pages are the bands.

    Args:
        source: Path, open file or encoded bytes of an image; its first bytes tell its format.
        channels: Number of bands.
        max_pixels: Maximum number of pixels of a band; 0 for no limit.

    Raises:
        ValueError: The image has another number of bands or too many pixels, or a value is not a finite number.
    """
    array = np.asarray(source) if isinstance(source, Image.Image) else _read_array(as_file(source), channels)
    image = torch.from_numpy(_bands_first(array, channels))
    if max_pixels and image[0].numel() > max_pixels:
        raise ValueError(f'{image[0].numel()} pixels exceed --max-pixels {max_pixels}')
    if not image.isfinite().all():
        raise ValueError(f'{(~image.isfinite()).sum().item()} of its values are infinite or not a number')
    return image


def _read_array(file: BinaryIO, channels: int) -> np.ndarray:
    with file:
        start = file.read(6)
        file.seek(0)
        if start.startswith(_NPY):
            return np.load(file, allow_pickle=False)
        if start.startswith(_NPZ):
            return _of_archive(np.load(file, allow_pickle=False))
        if start[:4] in _TIFF:
            return _read_tiff(file, channels)
        return np.array(Image.open(file))


def _of_archive(arrays: Any) -> np.ndarray:
    names = arrays.files if len(arrays.files) == 1 else [name for name in _IN_NPZ if name in arrays.files]
    if not names:
        raise ValueError(f'it holds the arrays {", ".join(arrays.files)}: call the one that is the image `image`')
    return arrays[names[0]]


def _read_tiff(file: BinaryIO, channels: int) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise ValueError('TIFF files of any number of bands need: pip install tifffile') from None
    with tifffile.TiffFile(file) as pages:
        bands_in_pages = len(pages.pages) == channels > 1 and len(pages.series) > 1
        return pages.asarray(key=slice(None) if bands_in_pages else None)


def _bands_first(array: np.ndarray, channels: int) -> np.ndarray:
    """Return an array as float32 (C, H, W); values of 8 bits are divided by 255."""
    if array.ndim == 2 and channels == 1:
        array = array[None]
    if array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != channels:
        raise ValueError(f'its shape is {tuple(array.shape)}, which has no axis of {channels} bands')
    if array.dtype.kind not in 'buif':
        raise ValueError(f'its values are of type {array.dtype}, not integers or floats')
    scale = 255 if array.dtype == np.uint8 else 1
    return np.ascontiguousarray(array, dtype=np.float32) / np.float32(scale)


class BandStatistics(NamedTuple):
    """Mean and standard deviation of each band, and the number of images that they were measured on."""
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    count: int


def measure_bands(
        dataset: Dataset,
        channels: int,
        max_pixels: int = 0,
        limit: int = SAMPLE_SIZE,
) -> BandStatistics:
    """Measure mean and standard deviation of each band over all pixels of a sample of the images.

    The sample is spread evenly over the list of images, so it is the same in every process. Of a stream it is the first
    images of the first shards.

    Args:
        dataset: Images.
        channels: Number of bands.
        max_pixels: Images with more pixels are left out of the sample; 0 for no limit.
        limit: Maximum number of images in the sample.

    Raises:
        UserError: No image of the sample can be read, or a band has the same value everywhere.
    """
    pixels, total, squares, count, error = 0, 0., 0., 0, None
    shift = None  # about the mean: sums of squares of large values would lose digits
    for source in _sample(dataset, limit):
        try:
            image = read_bands(source, channels, max_pixels).double().flatten(1)
        except Exception as e:  # decoders raise errors of many types for broken files
            error = e
            continue
        shift = image.mean(1) if shift is None else shift
        image = image - shift[:, None]
        pixels, count = pixels + image.shape[1], count + 1
        total, squares = total + image.sum(1), squares + image.square().sum(1)
    if not count:
        raise UserError(
            f'--in-chans {channels}, read as bands: no image of a sample can be read; the last one: '
            f'{one_line(error) if error else "there is none"}')
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    mean = mean + shift
    constant = [str(i + 1) for i, value in enumerate(std.tolist()) if value <= 1e-12 * max(1, abs(mean[i].item()))]
    if constant:
        raise UserError(
            f'--std: band {", ".join(constant)} has the same value in all pixels of {count} images; give --mean and '
            '--std, or leave the band out of the files.')
    return BandStatistics(*(tuple(float(f'{v:.6g}') for v in values.tolist()) for values in (mean, std)), count)


def _sample(dataset: Dataset, limit: int) -> Iterable[Any]:
    if isinstance(dataset, IterableDataset):
        return dataset.first_sources(limit)
    spacing = -(-len(dataset) // limit)
    indices = range(0, len(dataset), spacing)
    if isinstance(dataset, Subset):
        dataset, indices = dataset.dataset, [dataset.indices[i] for i in indices]
    return (dataset.reader[i][0] for i in indices)


def check_shown_bands(shown: Optional[Sequence[int]], channels: int) -> Tuple[int, ...]:
    """Return the bands that pictures show as red, green and blue, or the one that they show in grey; from 0 on.

    Args:
        shown: Numbers of bands from 1 on, as remote sensing counts them; None for the first three, or the first one.
        channels: Number of bands of an image.

    Raises:
        UserError: There are neither one nor three numbers, or there is no such band.
    """
    shown = shown or (range(1, 4) if channels >= 3 else [1])
    if len(shown) not in (1, 3) or not all(1 <= band <= channels for band in shown):
        raise UserError(
            f'--mim-bands {" ".join(map(str, shown))}: give three bands for red, green and blue, or one for grey, '
            f'between 1 and {channels}.')
    return tuple(band - 1 for band in shown)
