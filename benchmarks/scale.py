"""Measure time and memory of a training step by depth, width, image size and batch, and its lower bound."""
from typing import List

import torch

from .floor import training_step
from .products import record, seconds_of_products
from .timing import peak_memory, seconds

BASE = dict(depth=12, width=384, size=224, batch=2)
SCALES = dict(depth=(6, 24), width=(192, 768), size=(160, 320), batch=(1, 4))


def run(rounds: int, device: torch.device) -> List[dict]:
    factor = 1 if device.type == 'cpu' else 32
    rows = []
    for method in ('mae', 'simmim'):
        points = [BASE, *({**BASE, name: value} for name, values in SCALES.items() for value in values)]
        for point in points:
            batch = point['batch'] * factor
            step = training_step(
                method, 'vit_small_patch16_224', batch, 'float32' if factor == 1 else 'bfloat16', device,
                depth=point['depth'], embed_dim=point['width'], num_heads=point['width'] // 64, img_size=point['size'])
            recorder = record(step)
            memory = peak_memory(step, device)
            row = dict(
                section='scale', method=method, **{**point, 'batch': batch},
                step_ms=min(seconds(step, device) for _ in range(max(2, rounds // 6))) * 1e3,
                products_ms=seconds_of_products(recorder, device) * 1e3, peak_mib=memory)
            rows.append(row)
            print('  ' + ', '.join(f'{k} {v:.0f}' if isinstance(v, float) else f'{k} {v}' for k, v in row.items()),
                  flush=True)
    return rows
