"""The names of the images of a run: which of them are held out, and a fingerprint that tells whether they changed."""
import hashlib
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

from torch.utils.data import Dataset, Subset


def image_names(dataset: Dataset) -> Optional[List[str]]:
    """Return the names of a dataset's images, relative to its folder, None where a list of them is not at hand.

    Args:
        dataset: Dataset of timm: of a folder, of a tar file or of decoded images, or a part of one.
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
    if hasattr(samples[0][0], 'name'):  # of a tar file, or of one of several
        return ['/'.join(str(getattr(part, 'name', part)) for part in _place_in_tar(sample)) for sample in samples]
    return None


def _place_in_tar(sample: Sequence[Any]) -> List[Any]:
    """The image, after the tar files that it lies in, where there are several."""
    image, *parents = sample
    return [parent for parent in parents if isinstance(parent, str) or hasattr(parent, 'name')] + [image]


def draw_held_out(names: Sequence[str], count: int) -> Tuple[List[int], List[int]]:
    """Choose images to hold out by the hashes of their names: of nearly the same images, nearly the same are chosen.

    Args:
        names: Names of all images.
        count: Number of images to hold out.

    Returns:
        Positions of the images to train on, and of those to hold out, both in the order of the names.
    """
    # Folders may hold many images of one name in tar files: position breaks the tie.
    hashes = [hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).digest() for name in names]
    chosen = set(sorted(range(len(names)), key=lambda i: (hashes[i], i))[:count])
    return [i for i in range(len(names)) if i not in chosen], sorted(chosen)


def fingerprint(train: Dataset, held_out: Dataset) -> Dict[str, Dict[str, Any]]:
    """Return how many images there are of each part, and a hash of their names, as far as they are known."""
    return {part: _fingerprint(dataset) for part, dataset in dict(train=train, held_out=held_out).items()}


def _fingerprint(dataset: Dataset) -> Dict[str, Any]:
    names = image_names(dataset)
    if names is None:
        return dict(count=len(dataset) if hasattr(dataset, '__len__') else None, names=None)
    text = '\n'.join(names).encode('utf-8', 'surrogateescape')
    return dict(count=len(names), names=hashlib.blake2b(text, digest_size=16).hexdigest())


def describe_changes(before: Dict[str, Dict[str, Any]], now: Dict[str, Dict[str, Any]]) -> str:
    """Say what is different between two fingerprints, '' if nothing is."""
    told = []
    for part, what in dict(train='to train on', held_out='held out').items():
        old, new = before.get(part, {}), now[part]
        if old.get('count') != new['count']:
            told.append(f'{new["count"]} images {what}, which were {old.get("count")}')
        elif old.get('names') != new['names']:
            told.append(f'{new["count"]} images {what}, as before, with other names')
    return ' and '.join(told)
