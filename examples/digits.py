#!/usr/bin/env python3
"""What pre-training is worth when labels are few: 1,797 handwritten digits that ship with scikit-learn.

    python examples/digits.py        (or: make demo)

A small vision transformer is pre-trained on two thirds of the digits without their labels, by each method. Then it is
fine-tuned on a few labelled ones, and so is the same transformer from scratch, by the same recipe. Accuracy is that on
the last third. All is done for several seeds, which draw the split, the weights, the masks and the labelled digits.
"""
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import timm
from timm.mim import create_mim
from timm.mim.pretrain.flags import OneLineParser
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

# Digits are of 8 x 8 pixels: 16 patches of 2 x 2.
MODEL = dict(
    model_name='vit_tiny_patch16_224', img_size=8, patch_size=2, in_chans=1, embed_dim=48, depth=3, num_heads=3,
    class_token=False, global_pool='avg', fc_norm=False, weight_init='moco',
)
METHODS = dict(
    simmim=dict(mask_ratio=0.5, mask_unit=2),
    mae=dict(decoder_dim=32, decoder_depth=2, decoder_heads=4),
    ijepa=dict(predictor_dim=32, predictor_depth=2, predictor_heads=4, num_targets=2),
)
PRETRAINING = dict(steps=1200, batch_size=64, learning_rate=4e-3)
FINE_TUNING = dict(steps=200, batch_size=32, learning_rate=2e-3)
SCRATCH = 'from scratch'
LABELS_PER_CLASS = (2, 5, 20)


def read_digits(seed: int) -> Tuple[Tuple[torch.Tensor, torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]:
    """Read the digits, normalised to mean 0 and deviation 1: images and labels to train on, and to test on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    images, labels = (images - images.mean()) / images.std(), torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1200], order[1200:]
    return (images[train], labels[train]), (images[test], labels[test])


def batches(num_images: int, batch_size: int, steps: int) -> Iterator[torch.Tensor]:
    """Draw the numbers of the images of so many batches, each image once before any comes again."""
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(num_images)])
        yield left[:batch_size]
        left = left[batch_size:]


def optimise(module: nn.Module, steps: int, learning_rate: float) -> Tuple[torch.optim.Optimizer, CosineLRScheduler]:
    optimizer = create_optimizer_v2(module, 'adamw', lr=learning_rate, weight_decay=0.05)
    schedule = CosineLRScheduler(
        optimizer, t_initial=steps, warmup_t=steps // 10, warmup_prefix=True, t_in_epochs=False)
    return optimizer, schedule


def pretrain(name: str, images: torch.Tensor, steps: int, batch_size: int, learning_rate: float) -> nn.Module:
    """Pre-train the transformer by a method, without labels, and return it."""
    method = create_mim(name, timm.create_model(**MODEL, num_classes=0), **METHODS[name]).train()
    optimizer, schedule = optimise(method, steps, learning_rate)
    for step, batch in enumerate(batches(len(images), batch_size, steps)):
        schedule.step_update(step)
        optimizer.zero_grad()
        method(images[batch]).loss.backward()
        optimizer.step()
        if hasattr(method, 'update_target'):
            method.update_target(step / steps)
    return method.backbone


def fine_tune(
        encoder: Optional[nn.Module],
        images: torch.Tensor,
        labels: torch.Tensor,
        steps: int,
        batch_size: int,
        learning_rate: float,
) -> nn.Module:
    """Train the transformer with labels, from the weights of an encoder or from scratch."""
    model = timm.create_model(**MODEL, num_classes=10)
    if encoder is not None:
        missing, unexpected = model.load_state_dict(encoder.state_dict(), strict=False)
        assert missing == ['head.weight', 'head.bias'] and not unexpected
    optimizer, schedule = optimise(model, steps, learning_rate)
    for step, batch in enumerate(batches(len(images), min(batch_size, len(images)), steps)):
        schedule.step_update(step)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch], label_smoothing=0.1).backward()
        optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images that a model names correctly, in percent."""
    with torch.inference_mode():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def first_of_each_class(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the first so many images of each class."""
    return torch.cat([torch.where(labels == digit)[0][:count] for digit in range(10)])


def run(job: Tuple[int, str]) -> List[float]:
    """Pre-train, fine-tune and test.

    Args:
        job: Seed, and the method or `SCRATCH`.

    Returns:
        Accuracy for each number of labels.
    """
    seed, start = job
    began = time.time()
    torch.set_num_threads(1)  # jobs run side by side
    (images, labels), test = read_digits(seed)
    torch.manual_seed(seed)
    encoder = None if start == SCRATCH else pretrain(start, images, **PRETRAINING)
    result = []
    for count in LABELS_PER_CLASS:
        few = first_of_each_class(labels, count)
        torch.manual_seed(seed)
        result.append(accuracy(fine_tune(encoder, images[few], labels[few], **FINE_TUNING), *test))
    figures = ' '.join(f'{value:.1f}' for value in result)
    print(f'seed {seed}, {start}: {figures}  ({time.time() - began:.0f} s)', flush=True)
    return result


def table(results: Dict[str, List[List[float]]]) -> str:
    """Write mean and standard deviation over seeds of each start (seed, number of labels) as a table."""
    rows = ['| labels per class | ' + ' | '.join(map(str, LABELS_PER_CLASS)) + ' |', '|---' * 4 + '|']
    for start, values in results.items():
        cells = [f'{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}' for column in zip(*values)]
        rows.append(f'| {start} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(rows)


def plot(results: Dict[str, List[List[float]]], path: Path) -> None:
    """Draw the mean of each start as a line over the number of labels, and each seed as a dot."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.add_subplot()
    for i, (start, values) in enumerate(results.items()):
        beside = [count * 1.04 ** (i - 1.5) for count in LABELS_PER_CLASS]  # dots of two starts do not cover each other
        line, = axes.plot(
            beside, [statistics.mean(column) for column in zip(*values)], label=start,
            color='black' if start == SCRATCH else None, linestyle='--' if start == SCRATCH else '-')
        for row in values:
            axes.scatter(beside, row, color=line.get_color(), s=14)
    axes.set_xscale('log')
    axes.set_xticks(LABELS_PER_CLASS, map(str, LABELS_PER_CLASS))
    axes.minorticks_off()
    axes.set(xlabel='labelled digits per class', ylabel='test accuracy (%)',
             title=f'Digits: {len(next(iter(results.values())))} seeds (dots) and their mean')
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='number of seeds, two or more (default: 3)')
    parser.add_argument('--processes', type=int, default=2, metavar='N', help='jobs side by side (default: 2)')
    parser.add_argument('--output', type=Path, default=Path('output/demo'), metavar='DIR', help='folder of the plot')
    args = parser.parse_args()
    began = time.time()
    starts = (SCRATCH, *METHODS)
    jobs = [(seed, start) for start in reversed(starts) for seed in range(args.seeds)]  # the longest ones first
    with ProcessPoolExecutor(args.processes, mp_context=get_context('spawn')) as pool:
        found = dict(zip(jobs, pool.map(run, jobs)))
    results = {start: [found[seed, start] for seed in range(args.seeds)] for start in starts}
    print(f'\nTest accuracy in percent, mean and standard deviation over {args.seeds} seeds:\n\n{table(results)}\n')
    args.output.mkdir(parents=True, exist_ok=True)
    plot(results, args.output / 'accuracy.png')
    print(f'{args.output / "accuracy.png"}, after {time.time() - began:.0f} s')


if __name__ == '__main__':
    main()
