"""Labelled images for probes."""
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from timm.data import ImageDataset
from ..data.datasets import DecodedImages, select
from ..data.image_folder import ImageFolder, shared_files
from ..data.samples import is_sample, open_samples
from ..errors import UserError

_TRAIN = ('train', 'training')
_TEST = ('val', 'validation', 'valid', 'test', 'eval', 'evaluation')
_TEST_SHARE = 0.2  # of each class, of a folder without a split
_SPLIT_SEED = 0  # whatever the seed of the run, so that runs can be compared


class LabelledImages(NamedTuple):
    """Images and their classes [N]."""
    images: Dataset
    labels: torch.Tensor


class ProbeData(NamedTuple):
    """Images to fit a probe on, others to test it on, the names of the classes, and what was left out, a phrase each.
    """
    train: LabelledImages
    test: LabelledImages
    classes: List[str]
    left_out: List[str]


def open_probe_data(folder: str, mode: str, split: str = 'validation') -> ProbeData:
    """Open a folder of class folders, with `train` and `val` above them or without.

    Without them a fifth of each class, at least one image, is tested on; it is the same fifth in every run.

    Args:
        folder: Folder with labelled images, or the name of sample images that have labels.
        mode: PIL mode to convert images to.
        split: Split of sample images to test on.

    Raises:
        UserError: It is no such folder, or has too few images.
    """
    if is_sample(folder):
        return _open_samples(folder, mode, split)
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"--mim-probe-dir: there is no folder '{folder}'.")
    train, test = (_first_folder(root, names) for names in (_TRAIN, _TEST))
    if (train is None) != (test is None):
        raise UserError(
            f"--mim-probe-dir: '{folder}' has a folder {(train or test).name}/ and no other half; give train/ and "
            'val/, or class folders alone.')
    if train is None:
        return _split(folder, mode)
    classes = _class_numbers(train)
    unknown = _class_numbers(test).keys() - classes.keys()
    if unknown:
        raise UserError(f"--mim-probe-dir: '{test}' has the class {min(unknown)}, '{train}' has none of it.")
    fit, held_out = _open(train, mode, classes), _open(test, mode, classes)
    left_out = [images.images.reader.left_out for images in (fit, held_out)]
    shared = set(shared_files(fit.images.reader, held_out.images.reader))
    if shared:
        if len(shared) == len(fit.labels):
            raise UserError(f"--mim-probe-dir: all images in '{train}' are in '{test}' too, by links.")
        fit = _take(fit, [i for i in range(len(fit.labels)) if i not in shared])
        left_out.append(f'left out {len(shared)} images in {train.name}/ that are in {test.name}/ too')
    return ProbeData(fit, held_out, list(classes), [phrase for phrase in left_out if phrase])


def _open_samples(name: str, mode: str, split: str) -> ProbeData:
    train, test = (open_samples(name, part) for part in ('train', split))
    if train.labels is None:
        raise UserError(f"--mim-probe-dir: '{name}' has no labels.")
    fit, tested = (
        LabelledImages(DecodedImages(samples, mode), torch.tensor(samples.labels)) for samples in (train, test))
    return ProbeData(fit, tested, [str(label) for label in sorted(set(train.labels))], left_out=[])


def _first_folder(root: Path, names: Tuple[str, ...]) -> Optional[Path]:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_numbers(folder: Path) -> Dict[str, int]:
    try:
        classes = ImageFolder(str(folder)).class_to_idx
    except RuntimeError:
        raise UserError(f"--mim-probe-dir: no image in '{folder}'.") from None
    if len(classes) < 2:
        raise UserError(f"--mim-probe-dir: '{folder}' must hold a folder per class, of two classes or more.")
    return classes


def _open(folder: Path, mode: str, classes: Dict[str, int]) -> LabelledImages:
    dataset = ImageDataset(str(folder), reader=ImageFolder(str(folder), class_map=classes), input_img_mode=mode)
    return LabelledImages(dataset, torch.tensor([label for _, label in dataset.reader.samples]))


def _split(folder: str, mode: str) -> ProbeData:
    classes = _class_numbers(Path(folder))
    whole = _open(Path(folder), mode, classes)
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = []
    for name, number in classes.items():
        members = rng.permutation(torch.nonzero(whole.labels == number).flatten().numpy())
        if len(members) < 2:
            raise UserError(f"--mim-probe-dir: class {name} in '{folder}' has one image; two or more are needed.")
        chosen.extend(members[:max(1, round(len(members) * _TEST_SHARE))].tolist())
    tested = set(chosen)
    return ProbeData(
        _take(whole, [i for i in range(len(whole.labels)) if i not in tested]),
        _take(whole, sorted(tested)),
        list(classes),
        [phrase for phrase in [whole.images.reader.left_out] if phrase],
    )


def _take(labelled: LabelledImages, indices: List[int]) -> LabelledImages:
    return LabelledImages(select(labelled.images, indices), labelled.labels[indices])
