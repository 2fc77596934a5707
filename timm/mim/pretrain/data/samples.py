"""Images that ship inside Python packages, for a first run without data: `--dataset samples/NAME`.

- `samples/digits`: 1,797 handwritten digits of 8 x 8 pixels with their labels, from scikit-learn
- `samples/photographs`: 14 photographs, from scikit-image and scikit-learn
"""

from importlib.util import find_spec
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import torch
from PIL import Image

from ..errors import UserError

# Photographs of things, scenes and textures; the right half of the stereo pair, scans and drawings are left out.
TRAIN = (
    ('skimage', 'data/astronaut.png'),
    ('skimage', 'data/brick.png'),
    ('skimage', 'data/camera.png'),
    ('skimage', 'data/coffee.png'),
    ('skimage', 'data/coins.png'),
    ('skimage', 'data/grass.png'),
    ('skimage', 'data/gravel.png'),
    ('skimage', 'data/hubble_deep_field.jpg'),
    ('skimage', 'data/moon.png'),
    ('skimage', 'data/motorcycle_left.png'),
    ('skimage', 'data/rocket.jpg'),
    ('sklearn', 'datasets/images/flower.jpg'),
)

HELD_OUT = (
    ('skimage', 'data/chelsea.png'),
    ('sklearn', 'datasets/images/china.jpg'),
)

PREFIX = 'samples/'
PHOTOGRAPHS = 'samples/photographs'
_DIGITS = dict(train=1285, validation=256, test=256)  # drawn once, whatever the seed of a run
_SPLIT_SEED = 0


def _locate(photographs: Tuple[Tuple[str, str], ...]) -> List[Path]:
    """Paths of photographs, found without importing the packages that they ship in."""
    paths = []
    for package, name in photographs:
        spec = find_spec(package)
        if spec is None:
            raise FileNotFoundError(f'{package} is not installed')
        path = Path(spec.origin).parent / name
        if not path.is_file():
            raise FileNotFoundError(f'this version of {package} does not ship {name}')
        paths.append(path)
    return paths


def sample_photographs() -> Tuple[List[Path], List[Path]]:
    """Return the paths of the photographs to train on, and of the two that are held out.

    Raises:
        FileNotFoundError: A package, or a photograph in it, is missing.
    """
    return _locate(TRAIN), _locate(HELD_OUT)


class Samples(NamedTuple):
    """Images of a split with their names, and their classes where they have any."""
    images: List[Image.Image]
    names: List[str]
    labels: Optional[List[int]] = None


def is_sample(dataset: str) -> bool:
    """Whether a name of a dataset is one of sample images."""
    return dataset.startswith(PREFIX)


def open_samples(dataset: str, split: str) -> Samples:
    """Open a split of sample images.

    Args:
        dataset: `samples/digits` or `samples/photographs`.
        split: `train`, `validation`, or `test`, which the photographs do not have.

    Raises:
        UserError: There are no such images or no such split, or the package that ships them is not installed.
    """
    sources = dict(digits=_open_digits, photographs=_open_photographs)
    name = dataset.removeprefix(PREFIX)
    if name not in sources:
        choices = ' or '.join(PREFIX + source for source in sources)
        raise UserError(f"--dataset: there is no '{dataset}'; choose {choices}.")
    try:
        samples = sources[name](split)
    except (FileNotFoundError, ImportError) as e:
        raise UserError(
            f'--dataset {dataset}: the images are not here: {e}; '
            "pip install scikit-image scikit-learn, or the extra 'samples'.") from None
    if samples is None:
        raise UserError(f"--dataset {dataset} has no split '{split}'.")
    return samples


def _open_photographs(split: str) -> Optional[Samples]:
    train, held_out = sample_photographs()
    paths = dict(train=train, validation=held_out).get(split)
    return None if paths is None else Samples([Image.open(path) for path in paths], [path.name for path in paths])


def _open_digits(split: str) -> Optional[Samples]:
    if split not in _DIGITS:
        return None
    from sklearn.datasets import load_digits
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    chosen = dict(zip(_DIGITS, order.split(list(_DIGITS.values()))))[split].tolist()
    pixels = (digits.images * (255 / 16)).round().astype('uint8')  # counts from 0 to 16
    return Samples(
        [Image.fromarray(pixels[i]) for i in chosen],
        [f'digit {i}' for i in chosen],
        [int(digits.target[i]) for i in chosen],
    )
