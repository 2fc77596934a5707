"""Measure what a training step of SparK and FCMAE costs, compared with a step of the model on whole images.

    python -m benchmarks.masked                       # ResNet-50, EfficientNet-B0, RegNetY-1.6GF, ConvNeXt V2-T
    python -m benchmarks.masked resnet50 --compile
    python -m benchmarks.masked resnet50 --decoder-dims 768 192 128

A step is forward, backward and fused AdamW in float32. `dense` is the model on whole images, and its loss is the mean
square of the features. `masked encoder` has the same loss of the visible features of masked images. The methods follow,
each with its decoder. The steps take turns. On a CPU, time is the processor time of this process, which other programs
disturb less than they disturb the clock, and the minimum over the rounds counts. `FLOPs` are those of the forward pass.
"""
import argparse
import gc
import time
from typing import Callable, Dict, List

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import timm
from timm.mim import create_mim, masked_images

from .timing import peak_memory, synchronize
from .training import TrainingStep

HEADER = (
    '| Model | Step | Time | Memory | FLOPs / dense | Time / dense | Memory / dense |\n'
    '|---|---|---:|---:|---:|---:|---:|')
MODELS = ('resnet50', 'efficientnet_b0', 'regnety_016', 'convnextv2_tiny')


class Dense(nn.Module):
    """The model on whole images."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone.forward_features(images).square().mean()


class MaskedEncoder(Dense):
    """The model on masked images, without a decoder."""

    def __init__(self, backbone: nn.Module, mask: torch.Tensor) -> None:
        super().__init__(backbone)
        self.register_buffer('mask', mask)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone.forward_features(masked_images(images, self.mask)).zeroed().square().mean()


class Method(nn.Module):
    """A method, as `train.py --mim` runs it."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.method(images, noise=noise).loss

    def after_step(self) -> None:
        if hasattr(self.method, 'update_target'):
            self.method.update_target(0.)


def steps_of(name: str, args: argparse.Namespace) -> Dict[str, TrainingStep]:
    """Return the steps to compare by name, the dense one first."""
    torch.manual_seed(0)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)

    def model() -> nn.Module:
        return timm.create_model(name, num_classes=0)

    methods = {'FCMAE': create_mim('fcmae', model(), img_size=args.img_size)}
    methods.update({f'SparK, decoder {width}': create_mim('spark', model(), img_size=args.img_size, decoder_dim=width)
                    for width in args.decoder_dims})
    noise = torch.rand(methods['FCMAE'].noise_shape(args.batch_size), device=args.device)
    mask = methods['FCMAE'].make_mask(noise)
    modules = {'dense': Dense(model()), 'masked encoder': MaskedEncoder(model(), mask)}
    modules.update({label: Method(method) for label, method in methods.items()})
    inputs = {label: (images, noise) if isinstance(module, Method) else (images,) for label, module in modules.items()}
    return {label: TrainingStep(module.train().to(args.device), inputs[label], 'float32', args.compile)
            for label, module in modules.items()}


def seconds(step: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time if device.type == 'cpu' else time.perf_counter
    synchronize(device)
    start = clock()
    step()
    synchronize(device)
    return clock() - start


def flops(step: TrainingStep) -> int:
    """Count the operations of the forward pass. Fused attention on the CPU would not be counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.module(*step.inputs)
    return counter.get_total_flops()


def measure(name: str, steps: Dict[str, TrainingStep], rounds: int, device: torch.device) -> List[str]:
    """Return lines of a table in Markdown.

    Args:
        name: Name of the model.
        steps: Steps to compare by name, the one of the model on whole images as `dense`.
        rounds: Number of rounds.
        device: Device of the steps.
    """
    for step in steps.values():  # warm up
        step()
    times: Dict[str, List[float]] = {label: [] for label in steps}
    for number in range(rounds):
        labels = list(steps)[number % len(steps):] + list(steps)[:number % len(steps)]
        for label in labels:
            times[label].append(seconds(steps[label], device))
    gc.collect()
    costs = {label: (flops(step), min(times[label]), peak_memory(step, device)) for label, step in steps.items()}
    dense = costs['dense']
    lines = []
    for label, cost in costs.items():
        ratios = ' | '.join(f'{value / reference:.2f}' for value, reference in zip(cost, dense))
        lines.append(f'| {name} | {label} | {cost[1]:.2f} s | {cost[2]:.0f} MiB | {ratios} |')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.masked', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', default=MODELS, metavar='MODEL')
    parser.add_argument('--compile', action='store_true', help='compile the steps')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--decoder-dims', type=int, nargs='+', default=[768, 128], help="widths of SparK's decoder")
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', type=torch.device, default=torch.device('cpu'))
    args = parser.parse_args()
    print(HEADER)
    for name in args.models:
        for line in measure(name, steps_of(name, args), args.rounds, args.device):
            print(line, flush=True)
        torch._dynamo.reset()


if __name__ == '__main__':
    main()
