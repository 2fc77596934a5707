"""The photographs that ship inside scikit-image and scikit-learn, for a first run without any data."""
from importlib.util import find_spec
from pathlib import Path
from typing import List, Tuple

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
