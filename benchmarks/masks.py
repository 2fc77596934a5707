"""Measure the time to make the masks of a batch."""
from typing import List

import torch

from timm.mim import MultiBlockSampler, block_mask, block_noise_size, keyed_noise, official_multi_block_masks, \
    random_mask

from .timing import compare


def run(rounds: int, device: torch.device) -> List[dict]:
    batch, grid = 256, (14, 14)
    positions = torch.arange(batch, device=device)
    sampler = MultiBlockSampler(grid, device=device)
    cases = dict(
        random=(196, lambda noise: random_mask(noise, 147)),
        block=(block_noise_size(grid), lambda noise: block_mask(noise, grid, 118)),
        multi_block=(sampler.noise_size, sampler),
    )
    steps = {name: lambda size=size, make=make: make(keyed_noise(0, 1, positions, size))
             for name, (size, make) in cases.items()}
    steps['multi_block, reference'] = lambda: official_multi_block_masks(grid, batch, 0)
    rows = compare('masks', f'batch {batch}, 14 x 14 patches', steps, rounds, device, memory=False)
    for row in rows:  # ratios between different kinds of masks mean nothing
        row.pop('ratio'), row.pop('ratio_of_minima')
    return rows
