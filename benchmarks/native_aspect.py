"""Measure pre-training in native aspect ratios: padding, speed, and held-out errors against square crops.

    python -m benchmarks.native_aspect padding
    python -m benchmarks.native_aspect speed
    python -m benchmarks.native_aspect error RUN_OF_OWN_SHAPES RUN_OF_SQUARES
"""
import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import torch

from timm.data.naflex_transforms import get_image_size_for_seq
from timm.mim import create_mim
from timm.mim.pretrain.checkpoints import evaluation_weights, load_checkpoint
from timm.mim.pretrain.data.datasets import image_mode, open_data, resolve_image_config
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.hold_out import hold_out
from timm.mim.pretrain.task import create_method
from timm.task import MaskedImageModelingTask

LENGTHS = (128, 256, 576, 784, 1024)
_IMAGES = 2000
_SHORT_SIDE = 500  # of the images, in pixels


def padding(patch: int = 16) -> Iterator[str]:
    """Yield lines with the share of padding in sequences, by the range of aspect ratios and the sequence length."""
    yield 'aspect ratios  length  mean padding  worst'
    for name, low, high in (('0.4 to 2.5', 1, 2.5), ('4:1 to 16:1', 4, 16)):
        for length in LENGTHS:
            generator = random.Random(0)
            shares = []
            for _ in range(_IMAGES):
                aspect = low * (high / low) ** generator.random()  # uniform in the logarithm
                sides = [_SHORT_SIDE, round(_SHORT_SIDE * aspect)]
                generator.shuffle(sides)
                _, (height, width) = get_image_size_for_seq(tuple(sides), patch, length)
                shares.append(1 - height // patch * (width // patch) / length)
            yield f'{name:13}  {length:6}  {100 * statistics.mean(shares):9.1f} %  {100 * max(shares):4.1f} %'


def speed(model: str, images: int, rounds: int, side: int = 224) -> Iterator[str]:
    """Yield lines with images and tokens per second of processor time, of training steps of MAE."""
    torch.manual_seed(0)
    square, wide = (side // 16, side // 16), (side // 32, side // 8)
    noise = torch.rand(images, square[0] * square[1])
    pixels = torch.randn(images, 3, side, side)
    cases: Dict[str, Callable] = {}
    for name, kwargs in (('square crops, ViT', {}), ('square crops, NaFlexVit', dict(use_naflex=True))):
        method = create_mim('mae', model, img_size=side, model_kwargs=kwargs, decoder_dim=128, decoder_depth=4,
                            decoder_heads=4)
        cases[name] = lambda method=method: method(pixels, noise=noise)
    batch = _batch(images, [wide, square, wide[::-1]])
    cases['own shapes, NaFlexVit'] = lambda: method(batch, noise=noise)

    seconds: Dict[str, List[float]] = {name: [] for name in cases}
    for number in range(rounds + 2):
        for name, run in cases.items():
            start = time.process_time()
            run().loss.backward()
            if number > 1:  # after two rounds to warm up
                seconds[name].append(time.process_time() - start)
    valid = {name: noise.numel() for name in cases}
    valid['own shapes, NaFlexVit'] = int(batch['patch_valid'].sum())
    yield f'{model}, MAE, {images} images of {noise.shape[1]} tokens, forward and backward pass'
    for name, values in seconds.items():
        median = statistics.median(values)
        yield f'{name:24} {images / median:8.1f} images/s  {valid[name] / median:8.0f} tokens/s  {median:.3f} s'


def _batch(count: int, grids: list) -> Dict[str, torch.Tensor]:
    """Return a NaFlex batch of images of some grids in turn, which fill their sequences."""
    length = grids[0][0] * grids[0][1]
    coord = [torch.cartesian_prod(*map(torch.arange, grids[i % len(grids)])) for i in range(count)]
    return dict(
        patches=torch.randn(count, length, 768),
        patch_coord=torch.stack(coord),
        patch_valid=torch.ones(count, length, dtype=torch.bool),
    )


def error(runs: List[Path], length: int = 100) -> Iterator[str]:
    """Yield lines with the held-out errors of runs, on images in their own shape and on square crops of them."""
    for run in runs:
        for shown in ('own shape', 'square crops'):
            yield f'{run.name:10} measured on {shown:12}  ' + '  '.join(
                f'{name} {value:.4f}' for name, value in _measure(run, shown == 'own shape', length).items())


def _measure(run: Path, own_shape: bool, length: int) -> Dict[str, float]:
    checkpoint = load_checkpoint(run / 'last.pth.tar')
    saved = vars(checkpoint.content['args'])
    options = RunOptions(**{
        **{name: value for name, value in saved.items() if name in RunOptions.__dataclass_fields__},
        'naflex_loader': own_shape, 'naflex_max_seq_len': length})
    mode = image_mode(options.in_chans, options.input_img_mode)
    method, _ = create_method(options)
    method.fast_path = False
    MaskedImageModelingTask(method, verbose=False).load_checkpoint_state(*evaluation_weights(checkpoint))
    process = argparse.Namespace(device='cpu', rank=0, world_size=1, distributed=False)
    held_out = hold_out(
        open_data(options, mode).held_out, options, resolve_image_config(options, method, mode), process)
    autocast = torch.no_grad
    return {**held_out.measure(method, autocast), **held_out.baselines(method, autocast)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.native_aspect', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('padding', help='share of padding in the sequences')
    steps = commands.add_parser('speed', help='images and tokens per second of training steps')
    steps.add_argument('--model', default='vit_tiny_patch16_224')
    steps.add_argument('--batch-size', type=int, default=12)
    steps.add_argument('--rounds', type=int, default=10)
    errors = commands.add_parser('error', help='held-out errors of two runs on the same images')
    errors.add_argument('runs', nargs='+', type=Path, help='folders of runs on sample photographs')
    args = parser.parse_args()
    lines = dict(
        padding=padding,
        speed=lambda: speed(args.model, args.batch_size, args.rounds),
        error=lambda: error(args.runs),
    )[args.command]()
    for line in lines:
        print(line, flush=True)


if __name__ == '__main__':
    main()
