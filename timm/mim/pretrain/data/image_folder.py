"""List the images of a folder, check a tar file, choose held-out images by name, and detect changed images."""

import hashlib
import os
import tarfile
from collections import deque
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from torch.utils.data import Dataset, IterableDataset, Subset

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key
from ..errors import UserError, one_line
from .formats import describe_unread, readable_suffixes

_BLOCK = tarfile.BLOCKSIZE

_Identity = Tuple[int, int, int]


def check_archive(path: str) -> None:
    """Check that a file is a complete tar file.

    A complete tar file ends with two blocks of zeros. `tarfile` reads a truncated file without an error, so that a run
    would train on a part of the images unnoticed.

    Args:
        path: Uncompressed archive.

    Raises:
        UserError: The file is not a tar file, or is truncated.
    """
    try:
        with tarfile.open(path, 'r:'):
            pass
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 2 * _BLOCK))
            ending = file.read()
    except (OSError, tarfile.TarError) as e:
        raise UserError(f"--data-dir: '{path}' cannot be read as a tar file: {one_line(e)}.") from e
    if size % _BLOCK or len(ending) < 2 * _BLOCK or any(ending):
        raise UserError(f"--data-dir: '{path}' is truncated, it lacks the end of a tar file: copy it again.")


def left_out_of_archive(path: str, mode: Optional[str] = None) -> str:
    """Return a phrase that counts the files of a tar file that are not read, by suffix; empty if all are read.

    Files inside tar files that are members themselves are not counted.

    Args:
        path: Uncompressed archive.
        mode: Mode in which images will be read, see `use_readable_suffixes`.

    Raises:
        UserError: The archive has no image.
    """
    with tarfile.open(path, 'r:') as archive:
        names = [os.path.basename(member.name) for member in archive if member.isfile()]
    suffixes = [os.path.splitext(name)[1].lower() for name in names if not name.startswith('.')]
    readable = {*get_img_extensions(), '.tar'}  # what timm's reader lists
    unread = describe_unread((suffix for suffix in suffixes if suffix not in readable), mode)
    if readable.isdisjoint(suffixes):
        raise UserError(f"--data-dir: {'; '.join(filter(None, (f'no image in {path!r}', unread)))}.")
    return unread


def image_names(dataset: Dataset) -> Optional[List[str]]:
    """Return the names of a dataset's images relative to its folder, None if the dataset has no list of names.

    Args:
        dataset: Dataset of a folder, of a tar file or of decoded images, or a subset of one.
    """
    if isinstance(dataset, Subset):
        names = image_names(dataset.dataset)
        return None if names is None else [names[i] for i in dataset.indices]
    if hasattr(dataset, 'names'):
        return list(dataset.names)
    reader = getattr(dataset, 'reader', None)
    samples = getattr(reader, 'samples', None)
    if samples is None or not len(samples):
        return None
    if isinstance(samples[0][0], str):
        root = os.path.join(str(reader.root), '')
        return [path[len(root):].replace(os.sep, '/') if path.startswith(root) else path for path, *_ in samples]
    if hasattr(samples[0][0], 'name'):  # in one or several tar files
        return ['/'.join(str(getattr(part, 'name', part)) for part in _place_in_tar(sample)) for sample in samples]
    return None


def _place_in_tar(sample: Sequence[Any]) -> List[Any]:
    """Return the entry of an image, after the tar files that contain it if there are several."""
    image, *parents = sample
    return [parent for parent in parents if isinstance(parent, str) or hasattr(parent, 'name')] + [image]


def draw_held_out(names: Sequence[str], count: int) -> Tuple[List[int], List[int]]:
    """Choose held-out images by the hashes of their names. After a few images change, nearly the same are chosen.

    Args:
        names: Names of all images.
        count: Number of images to hold out.

    Returns:
        Positions of the images to train on, and of those to hold out, both in the order of the names.
    """
    # Tar files in a folder may hold several images of one name: the position breaks the tie.
    hashes = [hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).digest() for name in names]
    chosen = set(sorted(range(len(names)), key=lambda i: (hashes[i], i))[:count])
    return [i for i in range(len(names)) if i not in chosen], sorted(chosen)


def num_images(dataset: Dataset) -> Optional[int]:
    """Return the number of images of a dataset, None for a stream that does not know it."""
    return getattr(dataset, 'num_samples', None) if isinstance(dataset, IterableDataset) else len(dataset)


def fingerprint(train: Dataset, held_out: Dataset) -> Dict[str, Dict[str, Any]]:
    """Return the number of images of each part and a hash of their names, None for what a dataset does not know."""
    return {part: _fingerprint(dataset) for part, dataset in dict(train=train, held_out=held_out).items()}


def _fingerprint(dataset: Dataset) -> Dict[str, Any]:
    names = image_names(dataset)
    if names is None:
        found = dict(count=num_images(dataset), names=None)
        return {**found, 'readers': dataset.readers} if hasattr(dataset, 'readers') else found
    text = '\n'.join(names).encode('utf-8', 'surrogateescape')
    return dict(count=len(names), names=hashlib.blake2b(text, digest_size=16).hexdigest())


def describe_changes(before: Dict[str, Dict[str, Any]], now: Dict[str, Dict[str, Any]]) -> str:
    """Describe the differences between two fingerprints; '' if there are none."""
    changes = []
    for part, what in dict(train='to train on', held_out='held out').items():
        old, new = before.get(part, {}), now[part]
        if old.get('count') != new['count']:
            changes.append(f'{new["count"]} images {what} instead of {old.get("count")}')
        elif old.get('names') != new['names']:
            changes.append(f'{new["count"]} images {what}, as before, with other names')
    return ' and '.join(changes)


class _File(NamedTuple):
    """An image file, the name of its folder as its class, and its inode number in the directory entry."""
    path: str
    label: str
    inode: int


class ImageFolder(ReaderImageFolder):
    """timm's folder reader, changed to list every image once, of all formats, and to skip what is no regular file.

    timm's reader follows every link. A link to a parent folder would list images repeatedly, some both in training and
    held out, and opening a FIFO named `x.jpg` would block forever. Order and classes are timm's.

    A broken link stays in the list and counts as an unreadable image.

    Attributes:
        samples: Path and class number of each image, sorted by path.
        inodes: Inode number (N,) of each image, 0 for one that does not exist.
        left_out: Phrase that says which files are not in the list and why; empty if none were left out.
        unread: Suffix of each file that is not read, in lower case.

    Args:
        root: The folder.
        class_map: Class numbers by name. Images of other classes are left out.
        input_key: File endings separated by semicolons; None for all that can be read.
        mode: Mode in which images will be read, which decides what can be read.

    Raises:
        RuntimeError: The folder has no image.
    """

    def __init__(
            self,
            root: str,
            class_map: Optional[Dict[str, int]] = None,
            input_key: Optional[str] = None,
            mode: Optional[str] = None,
    ):
        Reader.__init__(self)  # the constructor of the base class walks the folder
        self.root = root
        walk = _Walk(root, set(input_key.split(';')) if input_key else readable_suffixes(mode))
        files = walk.files()
        if class_map is None:
            names = sorted({file.label for file in files}, key=natural_key)
            class_map = {name: number for number, name in enumerate(names)}
        files = sorted((file for file in files if file.label in class_map), key=lambda file: natural_key(file.path))
        self.class_to_idx = class_map
        self.samples = [(file.path, class_map[file.label]) for file in files]
        self.inodes = _inode_array(files)
        self.unread = walk.unread
        self.left_out = '; '.join(filter(None, (walk.left_out(), describe_unread(walk.unread, mode))))
        if not self.samples:
            raise RuntimeError(f'Found 0 images in subfolders of {root}')


def shared_files(images: ImageFolder, others: ImageFolder) -> List[int]:
    """Return the indices of the images whose files are also in `others`, under any name.

    Args:
        images: Images to search.
        others: Images to compare with.
    """
    numbers = images.inodes[np.isin(images.inodes, others.inodes) & (images.inodes != 0)]
    known = {_identity(others.samples[i][0]) for i in np.flatnonzero(np.isin(others.inodes, numbers))}
    places = np.flatnonzero(np.isin(images.inodes, numbers))
    return [int(i) for i in places if _identity(images.samples[i][0]) in known]


class _Walk:
    """Walks a folder. It follows links last, so that a file is listed under its own name rather than a link's.

    Args:
        root: The folder.
        types: Endings of image files.
    """

    def __init__(self, root: str, types: Set[str]):
        self.root = root
        self.types = types
        self.special: List[str] = []
        self.unread: List[str] = []
        self.unreadable: List[str] = []
        self.known_folders: List[str] = []
        self.repeated: List[str] = []

    def files(self) -> List[_File]:
        """Return every image file once."""
        files = list(self._walk())
        numbers = _inode_array(files)
        _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        # Most inode numbers occur once and need no stat call. Equal numbers may come from two file systems.
        suspects = np.flatnonzero((counts[inverse] > 1) & (numbers != 0)).tolist()
        seen, repeated = set(), set()
        for place in suspects:
            identity = _identity(files[place].path)
            if identity in seen:
                repeated.add(place)
            elif identity is not None:
                seen.add(identity)
        self.repeated = [files[place].path for place in sorted(repeated)]
        return [file for place, file in enumerate(files) if place not in repeated]

    def left_out(self) -> str:
        """Return a phrase that says what was left out and why; empty if nothing was left out."""
        reasons = (
            (self.repeated, 'further name of an image', 'further names of images'),
            (self.known_folders, 'link to a folder that is read already', 'links to folders that are read already'),
            (self.special, 'entry that is no regular file', 'entries that are no regular files'),
            (self.unreadable, 'folder that cannot be opened', 'folders that cannot be opened'),
        )
        phrases = [
            f'{len(paths)} {one if len(paths) == 1 else many} '
            f'({os.path.relpath(paths[0], self.root)}{", ..." if len(paths) > 1 else ""})'
            for paths, one, many in reasons if paths
        ]
        return f'left out {", ".join(phrases)}' if phrases else ''

    def _walk(self) -> Iterator[_File]:
        pending, links, seen = deque([self.root]), deque(), set()
        while pending or links:
            if not pending:
                link, label = links.popleft()
                if os.path.isdir(link):
                    pending.append(link)
                elif self._is_image(link):
                    yield from self._read_link(link, label)
                continue
            folder = pending.popleft()
            label = '' if folder == self.root else os.path.basename(folder)
            try:
                identity = _identity(folder)
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError:
                self.unreadable.append(folder)
                continue
            if identity in seen:
                self.known_folders.append(folder)
                continue
            seen.add(identity)
            for entry in entries:
                if entry.is_symlink():
                    links.append((entry.path, label))
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not self._is_image(entry.path):
                    if not entry.name.startswith('.'):
                        self.unread.append(os.path.splitext(entry.name)[1].lower())
                elif entry.is_file(follow_symlinks=False):
                    yield _File(entry.path, label, entry.inode())
                else:
                    self.special.append(entry.path)

    def _is_image(self, path: str) -> bool:
        return os.path.splitext(path)[1].lower() in self.types

    def _read_link(self, link: str, label: str) -> Iterator[_File]:
        """Yield the image that a link points to, or the link itself if it is broken."""
        identity = _identity(link)
        if identity is None:
            yield _File(link, label, 0)
        elif os.path.isfile(link):
            yield _File(link, label, identity[1])
        else:
            self.special.append(link)


def _inode_array(files: List[_File]) -> np.ndarray:
    return np.array([file.inode & 0xFFFF_FFFF_FFFF_FFFF for file in files], dtype=np.uint64)


def _identity(path: str) -> Optional[_Identity]:
    """Return what identifies a file under any name, None if the file does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size  # size, because some file systems repeat inode numbers
