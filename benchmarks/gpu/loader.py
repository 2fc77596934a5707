"""Measure the loader: images per second from JPEG files to normalised batches on the device."""
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import torch

from timm.data import create_dataset
from timm.mim.pretrain.data.loading import create_train_loader
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.recipes import RECIPES

from ..loading import NUM_FILES, SIZES, STATISTICS, _write_files
from .slices import Job

BATCH = 128
EPOCHS = 3  # the first one starts the workers, and is not measured


def measure(device: torch.device, workers: int, copies: int, batch: int) -> Dict[str, Any]:
    """Measure images per second of the loader.

    Args:
        device: Device of the batches.
        workers: Number of worker processes.
        copies: Number of copies of each file in the dataset.
        batch: Number of images in a batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), SIZES[0])
        for file in list(Path(folder).rglob('*.jpg')):
            for copy in range(1, copies):
                os.link(file, file.with_name(f'{file.stem}_{copy}.jpg'))
        options = RunOptions(**{**RECIPES['mae'], 'mim': 'mae', 'batch_size': batch, 'workers': workers})
        config = dict(input_size=(3, 224, 224), mode='RGB', interpolation='bicubic', crop_pct=1., **STATISTICS)
        loader = create_train_loader(create_dataset('', folder), options, config, device)
        rates = []
        for _ in range(EPOCHS if device.type == 'cuda' else 1):
            start, number = time.perf_counter(), 0
            for images, _ in loader:
                number += len(images)
            assert images.device.type == device.type and images.isfinite().all()
            rates.append(number / (time.perf_counter() - start))
    return dict(workers=workers, batch=batch, images_per_second=max(rates[1:] or rates))


def jobs(device: torch.device) -> List[Job]:
    if device.type == 'cpu':
        return [Job('loader', 'no worker', lambda: measure(device, 0, 1, NUM_FILES // 2))]
    cores = len(os.sched_getaffinity(0))
    return [Job('loader', f'{workers} workers', lambda w=workers: measure(device, w, 16, BATCH))
            for workers in sorted({1, cores // 2, cores})]
