"""Tiny runs of the training script."""
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[2] / 'train.py'
TINY = '--device cpu --model test_vit --img-size 64 --workers 0 --batch-size 4'
SUPERVISED = ('--device cpu --model test_vit --num-classes 2 --img-size 32 --workers 0 --batch-size 4 --opt adamw '
              '--lr 1e-3 --warmup-epochs 0 --epochs 2 --val-interval 2')


def tiny(flags: str) -> str:
    """Flags of a tiny run, of SimMIM if they name no method."""
    return ' '.join([TINY, '' if '--mim ' in flags else '--mim simmim --mask-unit 16', flags])


def environment(**more):
    """Environment of a child process, which is to import the timm of this one."""
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', **more}


def write_images(folder: Path, count: int, mode: str = 'RGB', size=(80, 72), seed: int = 0) -> None:
    """Write smooth random images, which a model can learn something from."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    bands = len(mode)
    for i in range(count):
        coarse = rng.integers(0, 256, (4, 4, bands), dtype=np.uint8)
        image = Image.fromarray(coarse[:, :, 0] if bands == 1 else coarse, mode)
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f'{i:02d}.png')


def write_labelled_images(folder: Path, seed: int = 0) -> None:
    """Write 16 images to train on and 8 to validate on, of two classes that differ in colour."""
    rng = np.random.default_rng(seed)
    for split, count in (('train', 8), ('validation', 4)):
        for name, colour in (('red', (200, 30, 30)), ('blue', (30, 30, 200))):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + rng.integers(-30, 31, (36, 40, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f'{i}.png')
