#!/usr/bin/env python3
"""Show how much pre-training helps with few labels, on the 1,797 handwritten digits that ship with scikit-learn.

    python examples/digits.py        (or: make demo)

Each method pre-trains a small vision transformer on 1,000 digits, without labels. The transformer is then fine-tuned on
a few labelled digits; the same transformer is also trained from scratch. Every start gets the same budget of search:
four settings, one seed each, judged on 297 validation digits. The best setting of each start is then run with several
seeds and reported on the remaining 500 digits. A seed determines the weights, the masks and the labelled digits.

To add a method, add its options to `METHODS`.
"""
import itertools
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import timm
from timm.mim import CAPI, create_mim
from timm.mim.pretrain.flags import OneLineParser
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

# Digits have 8 x 8 pixels: 16 patches of 2 x 2.
MODEL = dict(
    model_name='vit_tiny_patch16_224', img_size=8, patch_size=2, in_chans=1, embed_dim=48, depth=3, num_heads=3,
    class_token=False, global_pool='avg', fc_norm=False, weight_init='moco',
)
# Options of each method, and its name where that is not the name of the row. Decoders are as small as the model, masks
# fit 16 patches, and moving averages follow within the steps of a run.
METHODS = dict(
    simmim=dict(mask_unit=2),
    mae=dict(decoder_dim=32, decoder_depth=2, decoder_heads=4),
    crossmae=dict(method='mae', decoder='cross', decoder_dim=32, decoder_depth=2, decoder_heads=4),
    ijepa=dict(predictor_dim=32, predictor_depth=2, predictor_heads=4, num_targets=2),
    data2vec=dict(
        clone_batch=4, mask_length=1, decoder_dim=32, decoder_layers=2, ema_decay=0.99, ema_end_decay=0.999,
        ema_anneal_end=1.),
    capi=dict(predict_ratio=0.5, num_clusters=32, predictor_depth=2, momentum=(0.99, 0.999)),
)
PRETRAINING = dict(steps=800, batch_size=64)
FINE_TUNING = dict(steps=200, batch_size=32)
SCRATCH = 'from scratch'
LABELS_PER_CLASS = (2, 5, 20)
SEARCHED_LABELS = (5,)  # a search looks at one number of labels
SPLITS = dict(train=slice(0, 1000), validation=slice(1000, 1297), test=slice(1297, None))
SEARCH_SEED = 100

Setting = Dict[str, Any]


def grid(**values: Tuple[Any, ...]) -> List[Setting]:
    """Return all combinations of the values of some options."""
    return [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]


# Four settings for each start. `learning_rate` is that of pre-training, and everything but the two rates an option of
# the method. What suits training from scratch is too fast for an encoder that is pre-trained.
SEARCH = {
    SCRATCH: grid(fine_tuning_rate=(1e-3, 2e-3, 4e-3, 8e-3)),
    **{method: grid(learning_rate=(1e-3, 4e-3), fine_tuning_rate=(2e-3, 8e-3)) for method in METHODS},
}


class Job(NamedTuple):
    """One pre-training, and fine-tuning with each number of labels.

    Attributes:
        start: Key of `METHODS`, or `SCRATCH`.
        setting: An entry of `SEARCH`.
        seed: Seed of weights, masks and labelled digits.
        split: Split to report accuracy on.
    """
    start: str
    setting: Setting
    seed: int
    split: str


def read_digits(split: str) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return images, normalised to mean 0 and standard deviation 1, and labels of a split."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    images, labels = (images - images.mean()) / images.std(), torch.tensor(digits.target)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[SPLITS[split]]
    return images[chosen], labels[chosen]


def batches(num_images: int, batch_size: int, steps: int) -> Iterator[torch.Tensor]:
    """Yield the indices of the images of `steps` batches; each epoch contains every image once."""
    remaining = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(remaining) < batch_size:
            remaining = torch.cat([remaining, torch.randperm(num_images)])
        yield remaining[:batch_size]
        remaining = remaining[batch_size:]


def optimise(module: nn.Module, steps: int, learning_rate: float) -> Tuple[torch.optim.Optimizer, CosineLRScheduler]:
    """Return AdamW and its schedule. The clustering of CAPI has a learning rate and a weight decay of its own."""
    if isinstance(module, CAPI):
        module.clustering.requires_grad_(False)  # not in the groups of the other parameters
    optimizer = create_optimizer_v2(module, 'adamw', lr=learning_rate, weight_decay=0.05)
    if isinstance(module, CAPI):
        optimizer.add_param_group(dict(
            params=list(module.clustering.requires_grad_().parameters()),
            lr=learning_rate * module.clustering_lr_scale, weight_decay=module.clustering_weight_decay))
    schedule = CosineLRScheduler(
        optimizer, t_initial=steps, warmup_t=steps // 10, warmup_prefix=True, t_in_epochs=False)
    return optimizer, schedule


def pretrain(
        name: str,
        images: torch.Tensor,
        steps: int,
        batch_size: int,
        learning_rate: float,
        model: Dict[str, Any] = MODEL,
        **options: Any,
) -> nn.Module:
    """Pre-train a model with a method, without labels, and return its encoder.

    Args:
        name: Name of the method.
        images: Images of shape (N, C, H, W).
        steps: Number of updates.
        batch_size: Number of images of an update.
        learning_rate: Peak of the learning rate.
        model: Arguments of `timm.create_model`.
        options: Options of the method.
    """
    method = create_mim(name, timm.create_model(**model, num_classes=0), **options).train()
    optimizer, schedule = optimise(method, steps, learning_rate)
    for step, batch in enumerate(batches(len(images), batch_size, steps)):
        schedule.step_update(step)
        optimizer.zero_grad()
        method(images[batch]).loss.backward()
        optimizer.step()
        if hasattr(method, 'update_target'):
            method.update_target(step / steps)
    return method.encoder


def fine_tune(
        encoder: Optional[nn.Module],
        images: torch.Tensor,
        labels: torch.Tensor,
        steps: int,
        batch_size: int,
        learning_rate: float,
        model: Dict[str, Any] = MODEL,
) -> nn.Module:
    """Train a model with labels, from the weights of an encoder or from scratch. See `pretrain` for the arguments."""
    network = timm.create_model(**model, num_classes=10)
    if encoder is not None:
        missing, unexpected = network.load_state_dict(encoder.state_dict(), strict=False)
        classifier = network.pretrained_cfg['classifier']
        assert missing == [f'{classifier}.weight', f'{classifier}.bias'] and not unexpected
    optimizer, schedule = optimise(network, steps, learning_rate)
    for step, batch in enumerate(batches(len(images), min(batch_size, len(images)), steps)):
        schedule.step_update(step)
        optimizer.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch], label_smoothing=0.1).backward()
        optimizer.step()
    return network.eval()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images that a model classifies correctly, in percent."""
    with torch.inference_mode():
        return 100 * (model(images).argmax(1) == labels).float().mean().item()


def some_of_each_class(labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Return the indices of `count` images of each class, drawn by a seed; more images include the fewer ones."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == digit][:count] for digit in range(10)])


def run(job: Job) -> List[float]:
    """Pre-train, fine-tune and test. Returns the accuracy in percent for each number of labels of the split."""
    began = time.time()
    torch.set_num_threads(1)  # jobs run in parallel
    images, labels = read_digits('train')
    torch.manual_seed(job.seed)
    setting = dict(job.setting)
    fine_tuning_rate = setting.pop('fine_tuning_rate')
    encoder = None
    if job.start != SCRATCH:
        options = {'method': job.start, **METHODS[job.start], **setting}
        encoder = pretrain(options.pop('method'), images, **PRETRAINING, **options)
    result = []
    for count in SEARCHED_LABELS if job.split == 'validation' else LABELS_PER_CLASS:
        few = some_of_each_class(labels, count, job.seed)
        torch.manual_seed(job.seed)
        model = fine_tune(encoder, images[few], labels[few], **FINE_TUNING, learning_rate=fine_tuning_rate)
        result.append(accuracy(model, *read_digits(job.split)))
    figures = ' '.join(f'{value:.1f}' for value in result)
    what = f'{job.split}, {job.start}, {job.setting}, seed {job.seed}'
    print(f'{what}: {figures}  ({time.time() - began:.0f} s)', flush=True)
    return result


def search(pool: ProcessPoolExecutor) -> List[Dict[str, Any]]:
    """Return every setting of every start with its accuracy on the validation split."""
    jobs = [Job(start, setting, SEARCH_SEED, 'validation') for start in SEARCH for setting in SEARCH[start]]
    return [
        dict(start=job.start, setting=job.setting, accuracy=statistics.mean(found))
        for job, found in zip(jobs, pool.map(run, jobs))]


def best(tried: List[Dict[str, Any]]) -> Dict[str, Setting]:
    """Return the setting of each start with the highest accuracy."""
    rising = sorted(tried, key=lambda row: row['accuracy'])
    chosen = {row['start']: row['setting'] for row in rising}
    return {start: chosen[start] for start in dict.fromkeys(row['start'] for row in tried)}


def table(results: Dict[str, List[List[float]]]) -> str:
    """Return a table of the mean and standard deviation over seeds, by start and number of labels.

    Args:
        results: Accuracy for each seed and number of labels, by start.
    """
    rows = ['| labels per class | ' + ' | '.join(map(str, LABELS_PER_CLASS)) + ' |', '|---' * 4 + '|']
    for start, values in results.items():
        cells = [f'{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}' for column in zip(*values)]
        rows.append(f'| {start} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(rows)


def plot(results: Dict[str, List[List[float]]], path: Path) -> None:
    """Plot accuracy over the number of labels: the mean of each start as a line, and each seed as a dot."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.add_subplot()
    for i, (start, values) in enumerate(results.items()):
        beside = [count * 1.04 ** (i - len(results) / 2) for count in LABELS_PER_CLASS]  # shift the dots of each start
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
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='number of seeds, two or more (default: 3)')
    parser.add_argument('--processes', type=int, default=2, metavar='N', help='number of parallel jobs (default: 2)')
    parser.add_argument(
        '--output', type=Path, default=Path('output/demo'), metavar='DIR', help='folder of the results and the plot')
    args = parser.parse_args()
    began = time.time()
    with ProcessPoolExecutor(args.processes, mp_context=get_context('spawn')) as pool:
        tried = search(pool)
        settings = best(tried)
        jobs = [Job(start, settings[start], seed, 'test') for start in settings for seed in range(args.seeds)]
        found = list(pool.map(run, jobs))
    results = {start: [value for job, value in zip(jobs, found) if job.start == start] for start in settings}
    print(f'\nTest accuracy in percent, mean and standard deviation over {args.seeds} seeds:\n\n{table(results)}\n')
    args.output.mkdir(parents=True, exist_ok=True)
    written = dict(search=tried, settings=settings, labels_per_class=LABELS_PER_CLASS, accuracy=results)
    (args.output / 'results.json').write_text(json.dumps(written, indent=1) + '\n')
    plot(results, args.output / 'accuracy.png')
    print(f'{args.output}: results.json, accuracy.png, after {time.time() - began:.0f} s')


if __name__ == '__main__':
    main()
