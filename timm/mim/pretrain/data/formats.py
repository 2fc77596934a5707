"""Which kinds of files are images, and which of them this installation can read."""

import logging
from collections import Counter
from functools import lru_cache
from importlib.util import find_spec
from typing import Dict, FrozenSet, Iterable, Optional

from PIL import Image

from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions

_logger = logging.getLogger(__name__)

BANDS = 'bands'  # the mode of images that are read as arrays of any number of bands, in their own units

_PHOTOGRAPHS = (
    '.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.avif', '.heic', '.heif',
    '.jp2', '.ppm', '.pgm', '.pbm')
_ARRAYS = ('.npy', '.npz')
_TIFF = ('.tif', '.tiff')
_PACKAGES = {'.heic': 'pillow-heif', '.heif': 'pillow-heif'}
_NAMED = 6  # number of suffixes that a message names


@lru_cache(maxsize=None)
def readable_suffixes(mode: Optional[str] = None) -> FrozenSet[str]:
    """Return the suffixes of the files that can be read in a mode, in lower case with their dot.

    Pillow reads images in its own modes; HEIC and HEIF need the package pillow-heif, which this function registers with
    Pillow. In the mode `bands`, TIFF files need the package tifffile; `.npy` and `.npz` need no package.

    Args:
        mode: PIL mode, or `bands`.
    """
    _register_heif()
    Image.init()
    found = {suffix for suffix in _PHOTOGRAPHS if Image.registered_extensions().get(suffix) in Image.OPEN}
    if mode == BANDS:
        found.update(_ARRAYS)
        if find_spec('tifffile') is None:
            found.difference_update(_TIFF)
    return frozenset(found)


def use_readable_suffixes(mode: Optional[str] = None) -> None:
    """Make timm's readers of folders and tar files list every image that can be read, not only PNG and JPEG files.

    timm's list is global. Suffixes that a program has added to it are kept.

    Args:
        mode: PIL mode, or `bands`, in which arrays are listed too.
    """
    readable = readable_suffixes(mode)
    known = [suffix for suffix in get_img_extensions() if suffix not in _ARRAYS or suffix in readable]
    set_img_extensions((*known, *sorted(readable.difference(known))))


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def describe_unread(suffixes: Iterable[str], mode: Optional[str] = None) -> str:
    """Return a phrase that counts the files that are not read, by suffix; empty if there are none.

    Args:
        suffixes: The suffix of each file, in lower case with its dot, '' for a name without suffix.
        mode: PIL mode of the images, or `bands`.
    """
    counts = Counter(suffixes)
    if not counts:
        return ''
    named = [f'{count} {suffix or "without suffix"}' for suffix, count in counts.most_common(_NAMED)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(_NAMED))
    text = f'files that are not read, by suffix: {", ".join(named)}{f", {rest} others" if rest else ""}'
    return '; '.join([text, *_remedies(counts, mode)])


def _remedies(counts: Dict[str, int], mode: Optional[str]) -> Iterable[str]:
    """Yield what would make files readable that are images."""
    if mode != BANDS and any(suffix in counts for suffix in _ARRAYS):
        yield 'arrays are read with --input-img-mode bands'
    if mode == BANDS and any(suffix in counts for suffix in _TIFF):
        yield 'TIFF files of any number of bands need: pip install tifffile'
    for package in sorted({_PACKAGES[suffix] for suffix in _PACKAGES if suffix in counts}):
        yield f'{" and ".join(s for s in _PACKAGES if s in counts)} need: pip install {package}'
