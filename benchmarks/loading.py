"""Measure images per second and core, from JPEG files to a normalised batch, of timm's stock loader and ours.

Ours reads the files themselves, and the smaller copies that `python -m timm.mim.prepare` writes once. All run in this
process, in turns, and the time is that of the CPU: other programs on the machine take wall-clock time away from all.
The best round counts.
"""
import tempfile
from pathlib import Path
from typing import Callable, List

import torch
from PIL import Image

from timm.data import create_dataset, create_loader
from timm.mim.prepare import Settings, prepare
from timm.mim.pretrain.data.loading import create_train_loader
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.recipes import RECIPES
from timm.mim.pretrain.data.samples import sample_photographs

from .timing import interleave_cpu

STATISTICS = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NUM_FILES = 256  # eight batches: shorter epochs would measure memory that the system hands out and takes back
SETTINGS = Settings(short_side=256, quality=90)
SIZES = ((500, 375), (1000, 750))  # the mean image size of ImageNet, and twice that


def run(rounds: int, device: torch.device) -> List[dict]:
    """Measure on one core, without workers, with one thread. As for MAE: flips, and crops of 0.2 to 1 of the image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            files, copies = Path(folder, 'files'), Path(folder, 'copies')
            kilobytes = _write_files(files, size)
            prepare(files, copies, SETTINGS)
            steps = dict(ours=_ours(files), prepared=_ours(copies), stock=_stock(files))
            times = interleave_cpu(steps, max(5, rounds // 2))
        rates = {name: NUM_FILES / min(values) for name, values in times.items()}
        case = f'{size[0]} x {size[1]}, {kilobytes:.0f} kB'
        for name, shown in (('ours', case), ('prepared', f'{case}; ours reads copies of short side 256')):
            rows.append(dict(
                section='loading', case=shown, ours_images_per_second=rates[name],
                stock_images_per_second=rates['stock'], ratio=rates[name] / rates['stock']))
            print(f'  {rows[-1]}', flush=True)
    torch.set_num_threads(threads)
    return rows


def _write_files(folder: Path, size: tuple) -> float:
    """Write sample photographs as JPEG files of quality 90, and return their mean size in kilobytes."""
    paths = [path for part in sample_photographs() for path in part]
    photographs = [Image.open(path).convert('RGB').resize(size, Image.LANCZOS) for path in paths]
    (folder / 'images').mkdir(parents=True)
    for number in range(NUM_FILES):
        photographs[number % len(photographs)].save(folder / 'images' / f'{number:03d}.jpg', quality=90)
    return sum(path.stat().st_size for path in folder.rglob('*.jpg')) / NUM_FILES / 1e3


def _ours(folder: Path) -> Callable[[], None]:
    options = RunOptions(**{**RECIPES['mae'], 'mim': 'mae', 'batch_size': 32, 'workers': 0})
    config = dict(input_size=(3, 224, 224), mode='RGB', interpolation='bicubic', crop_pct=1., **STATISTICS)
    return _epoch(create_train_loader(create_dataset('', str(folder)), options, config, torch.device('cpu')))


def _stock(folder: Path) -> Callable[[], None]:
    return _epoch(create_loader(
        create_dataset('', str(folder)), (3, 224, 224), 32, is_training=True, scale=(0.2, 1.0), color_jitter=None,
        interpolation='bicubic', num_workers=0, persistent_workers=False, device=torch.device('cpu'), **STATISTICS))


def _epoch(loader) -> Callable[[], None]:
    def load() -> None:
        for images, _ in loader:
            assert images.shape == (32, 3, 224, 224) and images.is_floating_point()
    return load
