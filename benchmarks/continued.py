"""Go on from the weights of an encoder on other images, with `train.py`: is it worth it, on the digits of scikit-learn?

    python -m benchmarks.continued        (about 15 minutes of processor time)

For each seed, MAE trains a small vision transformer on one half of the digits. `train.py --pretrained-path` goes on
from its encoder on the other half, with several methods and learning rates, and probes it before the first step and
after each epoch: linear classifiers learn the second half, and are measured on the validation digits. The best epoch is
chosen by that. What is reported is the accuracy on the test digits, which no choice has seen. The results are written
to `benchmarks/results/continued.json`. Runs that are complete in `--folder` are not repeated.
"""
import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

from timm.mim.pretrain.data.samples import Samples, open_samples
from timm.mim.pretrain.validate import evaluate

from .runs import ROOT, train

RESULTS = Path(__file__).resolve().parent / 'results' / 'continued.json'
MODEL = (
    '--model', 'vit_tiny_patch16_224', '--model-kwargs', 'patch_size=4', 'depth=4', 'embed_dim=96', '--img-size', 32,
    '--in-chans', 1, '--mean', 0.5, '--std', 0.5, '--crop-pct', 1.0, '--scale', 0.8, 1.0, '--ratio', 0.9, 1.1111,
    '--hflip', 0.0, '--batch-size', 64, '--workers', 0, '--val-split', '')
MAE = (
    '--mim', 'mae', '--mask-ratio', 0.7, '--mim-kwargs', 'norm_pix=False', 'decoder_dim=128', 'decoder_depth=2',
    'decoder_heads=4')
FIRST = (*MAE, '--epochs', 4, '--epoch-repeats', 6, '--warmup-epochs', 1, '--lr', 3e-3)  # 240 updates
# The recipe for given weights, and the same flags with MAE. The moving average follows within the 120 updates.
THEN = (
    '-c', ROOT / 'recipes' / 'continue_data2vec.yaml', '--epochs', 4, '--epoch-repeats', 3, '--warmup-epochs', 1,
    '--mim-probe', 'linear', '--mim-probe-pool', 'avg')
METHODS = dict(
    data2vec=(
        '--mim-kwargs', 'clone_batch=4', 'ema_decay=0.99', 'ema_end_decay=0.999', 'ema_anneal_end=1.0',
        'decoder_dim=64', 'decoder_layers=2'),
    mae=MAE,
)
RATES = ((1e-3, 0.65), (4e-3, 1.0))  # learning rate, layer decay
PROBE = 'linear_top1'


def write_images(folder: Path, samples: Samples, labelled: bool) -> None:
    """Write images as PNG files, in a folder for each class if they are labelled."""
    for image, name, label in zip(samples.images, samples.names, samples.labels):
        path = folder / (str(label) if labelled else '') / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_halves(folder: Path) -> None:
    """Write both halves of the training digits without labels, and labelled digits to choose by and to report on."""
    train_digits = open_samples('samples/digits', 'train')
    middle = len(train_digits.images) // 2
    halves = [Samples(*(part[half] for part in train_digits)) for half in (slice(middle), slice(middle, None))]
    for name, half in zip(('first', 'second'), halves):
        write_images(folder / name, half, labelled=False)
    for split in ('validation', 'test'):
        write_images(folder / split / 'train', halves[1], labelled=True)
        write_images(folder / split / 'val', open_samples('samples/digits', split), labelled=True)


def test_accuracy(data: Path, method: str, checkpoint: Path) -> float:
    """Return the accuracy of linear classifiers on the test digits, for the encoder of a checkpoint."""
    return evaluate(dict(
        mim=method, checkpoint=str(checkpoint), mim_probe_dir=str(data / 'test'), mim_probe=['linear'],
        mim_probe_pool='avg'))[PROBE]


def go_on(folder: Path, data: Path, seed: int, before: float) -> List[Dict[str, Any]]:
    """Go on from the encoder of a seed with all methods and rates. Returns a row for each run.

    Args:
        folder: Folder of the runs.
        data: Folder of the images.
        seed: Seed.
        before: Accuracy of the encoder on the test digits.
    """
    rows = []
    for method, options in METHODS.items():
        for rate, decay in RATES:
            name = f'{method}-{rate}-seed-{seed}'
            found = train(
                folder, name, *THEN, *MODEL, *options, '--data-dir', data / 'second', '--seed', seed, '--lr', rate,
                '--layer-decay', decay, '--mim-probe-dir', data / 'validation',
                '--pretrained-path', folder / f'first-seed-{seed}' / 'encoder.safetensors')
            lines = (folder / name / 'metrics.jsonl').read_text().splitlines()
            probes = [line[f'eval_{PROBE}'] for line in map(json.loads, lines) if f'eval_{PROBE}' in line]
            better = max(probes[1:]) > probes[0]
            row = dict(
                seed=seed, method=method, learning_rate=rate, layer_decay=decay, validation=probes, before=before,
                last=test_accuracy(data, method, folder / name / 'last.pth.tar'),
                best=test_accuracy(data, method, folder / name / 'model_best.pth.tar') if better else before,
                processor_seconds=found['processor_seconds'])
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.continued', description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='number of seeds (default: 3)')
    parser.add_argument(
        '--folder', type=Path, default=Path('output/continued'), metavar='DIR',
        help='folder of the images and runs (default: %(default)s)')
    args = parser.parse_args()
    folder = args.folder.resolve()
    data = folder / 'images'
    write_halves(data)
    rows = []
    for seed in range(args.seeds):
        first = f'first-seed-{seed}'
        train(folder, first, *FIRST, *MODEL, '--data-dir', data / 'first', '--seed', seed)
        before = test_accuracy(data, 'mae', folder / first / 'model_best.pth.tar')
        rows += go_on(folder, data, seed, before)
    RESULTS.write_text(json.dumps(dict(runs=rows), indent=1) + '\n')
    print(RESULTS)


if __name__ == '__main__':
    main()
