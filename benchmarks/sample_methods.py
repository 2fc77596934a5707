"""Train methods on the sample photographs with `train.py`: CrossMAE beside MAE, and methods that predict features.

    python -m benchmarks.sample_methods        (about 10 minutes of processor time)

- `decoders`: MAE with the plain and with the cross decoder. The cross decoder trains once for the epochs of the plain
  one, and once for as many as take the same time. What counts is the held-out masked L1.
- `features`: data2vec and CAPI. They predict features, so that their held-out loss is compared with that of a
  prediction that knows nothing.

Epochs were chosen by hand such that times are about equal; the times that were measured are written beside the results,
to `benchmarks/results/sample_methods.json`. Learning rates were not searched. Runs that are complete in `--folder` are
not repeated.
"""
import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

from .runs import ROOT, train

RESULTS = Path(__file__).resolve().parent / 'results' / 'sample_methods.json'
PHOTOGRAPHS = (
    '-c', ROOT / 'recipes' / 'mae_sample_photographs.yaml', '--epoch-repeats', 25, '--warmup-epochs', 1, '--workers', 0)
SMALL = ('decoder_dim=128', 'decoder_depth=2', 'decoder_heads=4', 'norm_pix=False')
CROSS = ('--mim-kwargs', *SMALL, 'decoder=cross', 'predict_ratio=0.25')
MOMENTUM = ('ema_decay=0.99', 'ema_end_decay=0.999', 'ema_anneal_end=1.0')
DATA2VEC = ('--mim', 'data2vec', '--mim-kwargs', 'clone_batch=4', 'decoder_dim=64', 'decoder_layers=2', *MOMENTUM)
CAPI = (
    '--mim', 'capi', '--mim-kwargs', 'predictor_depth=2', 'predict_ratio=0.25', 'momentum=(0.99,0.999)')
DECODERS = dict(
    plain=('--epochs', 8, '--mim-kwargs', *SMALL),
    cross_equal_epochs=('--epochs', 8, *CROSS),
    cross_equal_time=('--epochs', 11, *CROSS),
)
FEATURES = {
    'data2vec': ('--epochs', 4, '--lr', 1e-3, *DATA2VEC),
    'CAPI': ('--epochs', 6, '--lr', 1e-3, '--batch-size', 24, *CAPI, 'num_clusters=16'),
}


def last_line(run: Path) -> Dict[str, float]:
    """Return the last line of `metrics.jsonl` that has held-out results."""
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return [line for line in lines if any(name.startswith('eval_') for name in line)][-1]


def decoders(folder: Path, seeds: int) -> List[Dict[str, Any]]:
    rows = []
    for seed in range(seeds):
        for decoder, flags in DECODERS.items():
            name = f'{decoder}-seed-{seed}'
            found = train(folder, name, *PHOTOGRAPHS, *flags, '--seed', seed)
            rows.append(dict(
                decoder=decoder, seed=seed, updates=last_line(folder / name)['update'],
                processor_seconds=found['processor_seconds'], masked_l1=found['last']['masked_l1'],
                **found['baselines']))
            print(rows[-1], flush=True)
    return rows


def features(folder: Path) -> List[Dict[str, Any]]:
    rows = []
    for method, flags in FEATURES.items():
        found = train(folder, f'photographs-{method}', *PHOTOGRAPHS, *flags)
        rows.append(dict(
            method=method, processor_seconds=found['processor_seconds'],
            **last_line(folder / f'photographs-{method}')))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.sample_methods', description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='number of seeds (default: 3)')
    parser.add_argument(
        '--folder', type=Path, default=Path('output/sample_methods'), metavar='DIR',
        help='folder of the runs (default: %(default)s)')
    args = parser.parse_args()
    folder = args.folder.resolve()
    found = dict(decoders=decoders(folder, args.seeds), features=features(folder))
    RESULTS.write_text(json.dumps(found, indent=1) + '\n')
    print(RESULTS)


if __name__ == '__main__':
    main()
