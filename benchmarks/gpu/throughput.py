"""Measure images per second, memory and utilisation of a training step of ours, peers and reference algorithms."""
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from timm.mim import create_mim
from timm.models import create_model

from ..timing import interleave, peak_memory
from ..training import TOLERANCE_OF_BFLOAT16, TrainingStep
from .slices import Job, Unfit

CEILING = 790e3  # GFLOP/s in bfloat16, measured on one H200
ROUNDS = 20
MEMORY_SHARE = 0.9  # largest share of the device memory that a batch may need


class Case(NamedTuple):
    """A method and model to measure.

    Attributes:
        gigaflop: GFLOP per image of a training step of the reference algorithm. It is the same for all variants, so
            that a variant with less work has a higher utilisation.
    """
    method: str
    model: str
    gigaflop: float
    batches: Sequence[int]


FULL = [
    Case('mae', 'vit_base_patch16_224', 58.5, (256, 1024)),
    Case('mae', 'vit_large_patch16_224', 124.2, (64, 256)),
    Case('simmim', 'swin_base_patch4_window7_224', 93., (64, 256)),  # 68.3 for 192 pixels, scaled by the area
    Case('ijepa', 'vit_base_patch16_224', 106., (64, 256)),
]
TRY = [Case('mae', 'vit_tiny_patch16_224', 1., (2,))]


def modules_of(case: Case, device: torch.device, batch: int) -> tuple:
    """Return the modules by variant, ours first, and their inputs."""
    images = torch.randn(batch, 3, 224, 224, device=device)
    if case.method == 'ijepa':
        from .. import ijepa
        torch.manual_seed(0)
        method = create_mim('ijepa', create_model(case.model, class_token=False, global_pool='avg'))
        masks = method.make_mask(torch.rand(method.noise_shape(batch)))
        return ijepa.create_modules(method, device), (images, *(mask.to(device) for mask in masks))
    if case.method == 'mae':
        from .. import mae
        options = dict(depth=1, decoder_dim=32, decoder_depth=1, decoder_heads=2) if device.type == 'cpu' else {}
        return mae.create_modules(case.model, device, **options), (images, torch.rand(batch, 196, device=device))
    from .. import simmim
    return simmim.create_modules(case.model, device), (images, torch.rand(batch, 49, device=device))


def measure(case: Case, variant: str, batch: int, device: torch.device) -> Dict[str, Any]:
    """Check that the loss of a variant, eager or compiled, equals ours, then measure the variant."""
    name, _, mode = variant.partition(' ')
    torch.manual_seed(0)
    modules, inputs = modules_of(case, device, batch)
    if name not in modules:
        raise Unfit(f'there is no {name} of {case.method}')
    expected = TrainingStep(modules['ours'], inputs, 'bfloat16', compiled=False).loss().item()
    step = TrainingStep(modules[name], inputs, 'bfloat16', compiled=mode == 'compiled')
    loss = step.loss().item()
    assert abs(loss - expected) <= TOLERANCE_OF_BFLOAT16 * abs(expected), f'its loss is {loss}, ours {expected}'
    if name != 'ours':
        del modules['ours']  # free its memory
    seconds = min(interleave({name: step}, ROUNDS if device.type == 'cuda' else 1, device)[name])
    rate = batch / seconds
    measured = dict(batch=batch, variant=variant, images_per_second=rate, milliseconds=seconds * 1e3,
                    utilisation=rate * case.gigaflop / CEILING, peak_mib=peak_memory(step, device), loss=loss)
    if device.type == 'cuda':
        measured.update(kernels=kernels(step), gpu_busy=busy(step))
    return measured


def kernels(step: Callable[[], Any]) -> int:
    """Return the number of kernels of a step."""
    return len(_kernel_times(step))


def busy(step: Callable[[], Any]) -> float:
    """Return the share of the time, from the first kernel of a step to the last, in which the device computes."""
    times = _kernel_times(step)
    return sum(end - start for start, end in times) / max(1, max(end for _, end in times) - times[0][0])


def _kernel_times(step: Callable[[], Any]) -> List[tuple]:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.profiler.kineto_results.events()
              if not event.name().startswith(('Memcpy', 'Memset', 'cuda'))]
    return sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in events)


def variants_of(case: Case) -> List[str]:
    peers = dict(mae=['transformers', 'lightly', 'reference'], simmim=['transformers'], ijepa=['reference'])
    return ['ours eager', 'ours compiled', *(f'{peer} eager' for peer in peers[case.method]),
            f'{peers[case.method][-1]} compiled']


def jobs(device: torch.device) -> List[Job]:
    if device.type == 'cpu':
        case = TRY[0]
        return [Job('throughput', f'{case.method} {case.model} {variant}',
                    lambda v=variant: measure(case, v, case.batches[0], device))
                for variant in ('ours eager', 'reference eager')]
    return [Job('throughput', f'{case.method} {case.model} batch {batch} {variant}',
                lambda c=case, v=variant, b=batch: measure(c, v, b, device))
            for case in FULL for batch in case.batches for variant in variants_of(case)]
