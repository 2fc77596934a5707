"""Cost of the decoder of CrossMAE beside the plain one: floating point operations, time of a step, and memory.

    python -m benchmarks.cross

Operations are those of decoder and prediction head, forward and backward, for one image. Time is the processor time of
all threads for a step of the whole method on the CPU, the least of interleaved repeats, since other processes may run;
on CUDA it is the time of the device. Memory is what the forward pass of the method keeps for the backward pass.
"""
import argparse
import time
from typing import Callable, Dict

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from timm.mim import MAE, create_mim

SETTINGS: Dict[str, dict] = {
    'plain': {},
    **{f'cross {ratio}': dict(decoder='cross', predict_ratio=ratio) for ratio in (1.0, 0.75, 1 / 3, 0.25)},
}


def decoder_operations(method: MAE) -> float:
    """Billions of floating point operations of the decoder for one image, forward and backward."""
    device = next(method.parameters()).device
    images, noise = torch.randn(1, 3, *method.img_size, device=device), torch.rand(method.noise_shape(1), device=device)
    mask = method.drawn_mask(noise, method.img_size)

    def operations(compute: Callable[[], torch.Tensor]) -> int:
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:  # fused kernels of the CPU are not counted
            compute().backward()
        return counter.get_total_flops()

    whole = operations(lambda: method(images, noise=noise).loss)
    return (whole - operations(lambda: method.encode_visible(images, mask.visible, method.grid_size).sum())) / 1e9


def kept_bytes(step: Callable[[], torch.Tensor], parameters: set) -> float:
    """Megabytes that a forward pass keeps for the backward pass, without parameters."""
    storages: Dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step()
        total = sum(storages.values())
    loss.backward()
    return total / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cross', description=__doc__)
    parser.add_argument('--model', default='vit_small_patch16_224')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--decoder', type=int, nargs=3, default=(512, 8, 16), metavar=('DIM', 'DEPTH', 'HEADS'))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()
    dim, depth, heads = args.decoder

    methods: Dict[str, nn.Module] = {}
    for name, options in SETTINGS.items():
        torch.manual_seed(0)
        methods[name] = create_mim(
            'mae', args.model, decoder_dim=dim, decoder_depth=depth, decoder_heads=heads, **options).to(args.device)
    images = torch.randn(args.batch_size, 3, *methods['plain'].img_size, device=args.device)

    def forward(method: nn.Module) -> torch.Tensor:
        return method(images, noise=torch.rand(method.noise_shape(len(images)), device=args.device)).loss

    def seconds(method: nn.Module) -> float:
        method.zero_grad()
        if args.device == 'cuda':
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            forward(method).backward()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3
        begin = time.process_time()
        forward(method).backward()
        return time.process_time() - begin

    times = {name: [] for name in methods}
    for _ in range(args.rounds + 1):
        for name, method in methods.items():
            times[name].append(seconds(method))
    plain = min(times['plain'][1:])
    print(f'{args.model}, decoder {dim} x {depth}, batch {args.batch_size}, {torch.get_num_threads()} threads')
    for name, method in methods.items():
        parameters = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
        least = min(times[name][1:])
        kept = kept_bytes(lambda method=method: forward(method), parameters)
        print(
            f'{name:12.10} predicted {method.num_predicted:4d}  decoder {decoder_operations(method):7.2f} GFLOP  step '
            f'{least:6.3f} s, {plain / least:5.2f} x as fast  kept {kept:6.0f} MB')


if __name__ == '__main__':
    main()
