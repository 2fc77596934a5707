"""Measure how long a run stands still while it saves a checkpoint, as a file and as a folder.

    python -m benchmarks.saving --model vit_large_patch16_224 --rounds 3

The state is that of a method, MAE by default, with AdamW after an update. The two formats take turns. Each save also
writes the encoder, as at the end of an epoch. The times of "file" and "folder" end when the training goes on; a folder
is complete later.
"""
import argparse
import statistics
import tempfile
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional

import torch

from timm.mim.pretrain.encoder_files import save_encoder
from timm.mim.pretrain.options import resolve_options
from timm.mim.pretrain.run_saver import RunSaver
from timm.mim.pretrain.task import create_method, create_optimizer
from timm.task import MaskedImageModelingTask


def measure(method_name: str, model: str, rounds: int, parent: Optional[str]) -> Dict[str, List[float]]:
    """Return seconds by what they are, for each round."""
    options = resolve_options(Namespace(device='cpu', mim=method_name, model=model, checkpoint_hist=1))[0]
    method, _ = create_method(options)
    task = MaskedImageModelingTask(method, verbose=False)
    optimizer = create_optimizer(method, options, 1e-3, torch.device('cpu'))
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()
    found: Dict[str, List[float]] = {name: [] for name in ('file', 'folder', 'folder, complete')}
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        write_encoder = partial(
            save_encoder, folder, model=method.encoder, data_config=dict(input_size=(3, 224, 224)), tag=method_name)
        for epoch in range(rounds):
            saver = RunSaver(folder, options, task, optimizer)
            start = time.perf_counter()
            write_encoder(method.encoder.state_dict())
            saver.save_epoch(epoch, None, {}, {})
            found['file'].append(time.perf_counter() - start)
            saver = RunSaver(folder, options, task, optimizer)
            start = time.perf_counter()
            saver.save_epoch(epoch, None, {}, {}, as_folder=True, write_encoder=write_encoder)
            found['folder'].append(time.perf_counter() - start)
            saver.writer.wait()
            found['folder, complete'].append(time.perf_counter() - start)
            print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
            for path in folder.glob('checkpoint-*.pth.tar'):
                path.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.saving', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mim', default='mae')
    parser.add_argument('--model', default='vit_large_patch16_224')
    parser.add_argument('--rounds', type=int, default=3, help='saves of each format (default: 3)')
    parser.add_argument('--folder', default=None, help='where to write (default: the folder for temporary files)')
    args = parser.parse_args()
    for name, values in measure(args.mim, args.model, args.rounds, args.folder).items():
        print(f'{name}: median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f} s')


if __name__ == '__main__':
    main()
