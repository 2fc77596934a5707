"""On a GPU: MAE on ViT-L, compiled in bfloat16, against the eager reference algorithm; kernels, waits, utilisation."""
from typing import List

import torch
from torch.profiler import ProfilerActivity, profile

from timm.mim import create_mim
from timm.models import create_model

from .mae import Ours, Reference
from .timing import compare
from .training import TrainingStep

# FLOP of a training step per image as the reference algorithm has it, and the measured bfloat16 ceiling of one H200
GIGAFLOP = 124.2
CEILING = 790e3  # GFLOP/s


def run(rounds: int, device: torch.device) -> List[dict]:
    rows = []
    for batch in (64, 256):
        torch.manual_seed(0)
        method = create_mim('mae', create_model('vit_large_patch16_224')).to(device)
        inputs = torch.randn(batch, 3, 224, 224, device=device), torch.rand(batch, 196, device=device)
        steps = {
            'ours': TrainingStep(Ours(method), inputs, 'bfloat16', compiled=True),
            'reference': TrainingStep(Reference(method), inputs, 'bfloat16', compiled=False),
        }
        first, second = (step.loss().item() for step in steps.values())
        assert abs(first - second) <= 1e-2 * abs(second), (first, second)
        rows += compare('cuda', f'MAE ViT-L/16, bfloat16, ours compiled, batch {batch}', steps, rounds, device)
        for row, step in zip(rows[-2:], steps.values()):
            rate = batch / row['median_ms'] * 1e3
            row.update(
                images_per_second=rate, utilisation=rate * GIGAFLOP / CEILING, kernels=_kernels(step),
                host_syncs='none' if _never_waits(step) else 'some')
    return rows


def _kernels(step: TrainingStep) -> int:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    names = [event.name() for event in profiler.profiler.kineto_results.events()]
    return sum(not name.startswith(('Memcpy', 'Memset', 'cuda')) for name in names)


def _never_waits(step: TrainingStep) -> bool:
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return True
