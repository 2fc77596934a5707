"""Shards of a stream: tar files of WebDataset, or files of a Hugging Face dataset. Each is read from start to end."""

import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Union

from ..errors import UserError, one_line
from .formats import readable_suffixes
from .image_folder import check_archive

INFO_FILES = ('_info.json', 'info.json')
_SPLITS = dict(
    train=('train', 'training'), validation=('validation', 'val', 'valid', 'eval', 'evaluation'), test=('test',))
_IMAGE_KEYS = ('image', 'img', 'images')


class Sample(NamedTuple):
    """An encoded image of a stream: its bytes or its path, and its key, which is the same in every epoch."""
    key: str
    image: Union[bytes, str]


class TarShards:
    """Tar files in the format of WebDataset: files of a sample follow each other, and share a name up to its suffix.

    Attributes:
        urls: Path or address of each shard.
        num_samples: Number of images, None if no info file gives it.

    Args:
        urls: Path or address of each shard.
        suffixes: Suffixes of images with their dot, in the order of preference.
        num_samples: Number of images, if known.
    """

    def __init__(self, urls: Sequence[str], suffixes: Sequence[str], num_samples: Optional[int] = None):
        self.urls = list(urls)
        self.suffixes = [suffix.lstrip('.') for suffix in suffixes]
        self.num_samples = num_samples

    def __len__(self) -> int:
        return len(self.urls)

    def read(self, shard: int) -> Iterator[Sample]:
        """Yield the images of a shard.

        Raises:
            OSError: The shard cannot be read, or a sample has no image.
        """
        from webdataset.tariterators import tarfile_samples
        url = self.urls[shard]
        try:
            for sample in tarfile_samples([dict(url=url)]):
                suffix = next((suffix for suffix in self.suffixes if suffix in sample), None)
                if suffix is None:
                    entries = ', '.join(sorted(name for name in sample if not name.startswith('__')))
                    raise OSError(f"sample '{sample['__key__']}' has no image, only: {entries}")
                yield Sample(sample['__key__'], sample[suffix])
        except (OSError, ValueError, EOFError, tarfile.TarError) as e:
            raise OSError(f"shard '{url}' cannot be read: {one_line(e)}") from e

    def count(self) -> int:
        """Count the images of all shards. Of local shards only the headers are read."""
        return sum(
            self._count_headers(url) if os.path.isfile(url) else sum(1 for _ in self.read(i))
            for i, url in enumerate(self.urls))

    def _count_headers(self, url: str) -> int:
        with tarfile.open(url) as archive:
            names = (Path(member.name) for member in archive if member.isfile())
            return len({str(name.parent / name.name.split('.')[0]) for name in names
                        if name.suffix.lower().lstrip('.') in self.suffixes})


class HubShards:
    """The shards of a Hugging Face dataset, read without a download of the whole.

    Args:
        dataset: `datasets.IterableDataset`.
        image_key: Name of the column of images.
        num_samples: Number of images, if known.
    """

    def __init__(self, dataset: Any, image_key: str, num_samples: Optional[int] = None):
        self.dataset = dataset
        self.image_key = image_key
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.dataset.num_shards

    def read(self, shard: int) -> Iterator[Sample]:
        """Yield the images of a shard.

        Raises:
            OSError: The shard cannot be read.
        """
        # `iter` leaves the shards alone, where `__iter__` would distribute them over the workers of a loader once more
        for batch in self.dataset.shard(len(self), shard).iter(batch_size=16):
            for image in batch[self.image_key]:
                encoded = _encoded(image)
                content = encoded if isinstance(encoded, bytes) else encoded.encode()
                yield Sample(hashlib.blake2b(content, digest_size=16).hexdigest(), encoded)

    def count(self) -> int:
        """Count the images.

        Raises:
            UserError: Always: the whole dataset would have to be read.
        """
        raise UserError(
            '--train-num-samples: the dataset does not say how many images it has, and a stream must be told: give the '
            'number.')


def _encoded(image: Any) -> Union[bytes, str]:
    if isinstance(image, bytes):
        return image
    if isinstance(image, dict):
        return image['path'] if image.get('bytes') is None else image['bytes']
    buffer = io.BytesIO()  # a PIL image, of a column that cannot be left encoded
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def open_tar_shards(
        root: Optional[str],
        name: str,
        split: str,
        input_key: Optional[str],
        mode: str,
) -> Optional[TarShards]:
    """Open the tar files of a split.

    Args:
        root: Folder of the shards, or a single shard.
        name: What follows `wds/` in --dataset: addresses of shards, with braces as in `{000..009}.tar`; else empty.
        split: Addresses of shards like `name`, or the name of a split. An info file lists the shards of a split.
            Without one, the shards whose names contain the split belong to it. If no name contains any split, all
            belong to the training split.
        input_key: Suffixes of images, separated by semicolons; None for all that can be read.
        mode: Mode in which images will be read.

    Returns:
        The shards, None if there is no such split.

    Raises:
        UserError: webdataset is not installed, there are no shards, or a local shard is damaged.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise UserError('--dataset wds/ needs WebDataset: pip install webdataset.') from None
    suffixes = input_key.split(';') if input_key else sorted(readable_suffixes(mode), key=_preference)
    num_samples = None
    if '.tar' in split or '.tar' in name:
        text, _, count = (split if '.tar' in split else name).partition('|')
        if '.tar' not in split and split not in _SPLITS['train']:
            return None
        urls = [_under(root, url) for url in expand_urls(text)]
        num_samples = int(count) if count else None
    else:
        info = _info(root).get('splits', {})
        if split in info:
            urls, num_samples = [_under(root, url) for url in info[split]['filenames']], info[split].get('num_samples')
        elif info:
            return None
        else:
            urls = _shards_of_split(root, split)
    if not urls:
        return None
    for url in urls:
        if '://' not in url and not url.startswith('pipe:'):
            if not os.path.isfile(url):
                raise UserError(f"--dataset wds/: there is no shard '{url}'.")
            if url.endswith('.tar'):
                check_archive(url)
    return TarShards(urls, suffixes, num_samples)


def _preference(suffix: str) -> int:
    common = ('.jpg', '.jpeg', '.png', '.webp')
    return common.index(suffix) if suffix in common else len(common)


def _under(root: Optional[str], url: str) -> str:
    return url if not root or '://' in url or url.startswith(('pipe:', '/')) else os.path.join(root, url)


def _info(root: Optional[str]) -> Dict[str, Any]:
    for name in INFO_FILES:
        path = Path(root or '') / name
        if path.is_file():
            try:
                return json.loads(path.read_text())
            except ValueError as e:
                raise UserError(f"--dataset wds/: '{path}' is not valid JSON: {one_line(e)}.") from e
    return {}


def _shards_of_split(root: Optional[str], split: str) -> List[str]:
    """Return the local shards of a split by their names; all of them belong to `train` if no name has a split in it."""
    folder = Path(root or '.')
    paths = [folder] if folder.is_file() else sorted(folder.rglob('*.tar'))
    if not paths:
        raise UserError(
            f"--dataset wds/: there is no .tar file in '{folder}'; name shards elsewhere with --dataset "
            "'wds/https://.../{000..009}.tar'.")
    words = [{word for word in re.split(r'[^a-z]+', str(path.relative_to(folder)).lower())} for path in paths]
    wanted = next((names for names in _SPLITS.values() if split in names), (split,))
    chosen = [str(path) for path, found in zip(paths, words) if found.intersection(wanted)]
    known = {name for names in _SPLITS.values() for name in names}
    if split in _SPLITS['train'] and not any(found & known for found in words):
        return [str(path) for path in paths]
    return chosen


def open_hub_shards(
        root: Optional[str],
        name: str,
        split: str,
        input_key: Optional[str],
        trust_remote_code: bool = False,
) -> Optional[HubShards]:
    """Open a split of a Hugging Face dataset as a stream.

    Args:
        root: Folder of the cache.
        name: Name of a dataset on the hub, or path of a folder.
        split: Name of the split.
        input_key: Column of the images; None for the first column of images.
        trust_remote_code: Let the dataset run its own code, where `datasets` still allows it.

    Returns:
        The shards, None if there is no such split.

    Raises:
        UserError: `datasets` is not installed, or there is no such dataset or column.
    """
    try:
        import datasets
        from timm.data.readers._hfds import remote_code_kwargs
    except ImportError:
        raise UserError('--dataset hfids/ needs Hugging Face datasets: pip install datasets.') from None
    try:
        builder = datasets.load_dataset_builder(name, cache_dir=root, **remote_code_kwargs(trust_remote_code))
        streams = builder.as_streaming_dataset()
    except Exception as e:  # every source raises its own types of errors
        raise UserError(f'--dataset hfids/{name} cannot be read: {one_line(e)}') from e
    split = next((name for name in _synonyms(split) if name in streams), None)
    if split is None:
        return None
    stream = streams[split]
    columns = stream.features or {}
    images = [column for column, kind in columns.items() if isinstance(kind, datasets.Image)]
    key = input_key or next(iter([*images, *(name for name in _IMAGE_KEYS if name in columns)]), None)
    if key is None or columns and key not in columns:
        raise UserError(f"--input-key: the columns of hfids/{name} are {', '.join(columns)}; which one has the images?")
    info = (builder.info.splits or {}).get(split)
    if isinstance(columns.get(key), datasets.Image):
        stream = stream.cast_column(key, datasets.Image(decode=False))
    return HubShards(stream.select_columns([key]), key, getattr(info, 'num_examples', None) or None)


def _synonyms(split: str) -> Sequence[str]:
    return next((names for names in _SPLITS.values() if split in names), (split,))
