"""Choose learning rate and warm-up of the recipe `mae_sample_digits` on one split of the digits, and report on another.

    python -m benchmarks.digits        (about 25 minutes of processor time)

Each setting trains for half of the recipe's epochs and is judged by the masked L1 on the validation split: first the
learning rates, then the lengths of warm-up at the best rate. The best setting then trains for all epochs with several
seeds, and each run is measured on the test split. The results are written to `benchmarks/results/digits.json`, from
which `docs/figures.py` fills the pages. Runs that are complete in `--folder` are not repeated.
"""
import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List

import yaml

from .runs import ROOT, train

RECIPE = ROOT / 'recipes' / 'mae_sample_digits.yaml'
RESULTS = Path(__file__).resolve().parent / 'results' / 'digits.json'
LEARNING_RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)
WARMUP_EPOCHS = (1, 2)

Setting = Dict[str, float]


def search(folder: Path, epochs: int, settings: List[Setting], pool: ThreadPoolExecutor) -> List[Dict[str, float]]:
    """Return the masked L1 on the validation split for each setting."""
    def run(setting: Setting) -> Dict[str, float]:
        rate, warmup = setting['learning_rate'], setting['warmup_epochs']
        found = train(
            folder, f'lr-{rate}-warmup-{warmup}', '-c', RECIPE, '--lr', rate, '--warmup-epochs', warmup,
            '--epochs', epochs, '--val-split', 'validation', '--seed', 9)
        print(f'{setting}: {found["best"]:.4f}', flush=True)
        return dict(setting, epochs=epochs, masked_l1=found['best'])
    return list(pool.map(run, settings))


def best(tried: List[Dict[str, float]]) -> Setting:
    row = min(tried, key=lambda row: row['masked_l1'])
    return dict(learning_rate=row['learning_rate'], warmup_epochs=row['warmup_epochs'])


def report(folder: Path, setting: Setting, seeds: int, pool: ThreadPoolExecutor) -> List[Dict[str, float]]:
    """Return what runs of several seeds reach on the test split, in the words of `summary.json`."""
    def run(seed: int) -> Dict[str, float]:
        rate, warmup = setting['learning_rate'], setting['warmup_epochs']
        found = train(
            folder, f'lr-{rate}-warmup-{warmup}-seed-{seed}', '-c', RECIPE, '--lr', rate, '--warmup-epochs', warmup,
            '--seed', seed)
        before = found['probe_baselines']
        result = dict(
            seed=seed,
            masked_l1=found['last']['masked_l1'],
            **found['baselines'],
            linear_top1=found['probes']['linear_top1'],
            linear_top1_pixels=before['pixels']['linear_top1'],
            linear_top1_before=before['encoder before training']['linear_top1'],
            processor_seconds=found['processor_seconds'],
        )
        print(result, flush=True)
        return result
    return list(pool.map(run, range(seeds)))


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.digits', description=__doc__.splitlines()[0])
    parser.add_argument('--processes', type=int, default=2, metavar='N', help='number of parallel runs (default: 2)')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='number of seeds (default: 3)')
    parser.add_argument(
        '--folder', type=Path, default=Path('output/digits'), metavar='DIR',
        help='folder of the runs (default: %(default)s)')
    args = parser.parse_args()
    epochs = yaml.safe_load(RECIPE.read_text())['epochs'] // 2
    folder = args.folder.resolve()
    with ThreadPoolExecutor(args.processes) as pool:
        rates = [dict(learning_rate=rate, warmup_epochs=WARMUP_EPOCHS[0]) for rate in LEARNING_RATES]
        tried = search(folder, epochs, rates, pool)
        tried += search(folder, epochs, [dict(best(tried), warmup_epochs=count) for count in WARMUP_EPOCHS[1:]], pool)
        setting = best(tried)
        runs = report(folder, setting, args.seeds, pool)
    RESULTS.write_text(json.dumps(dict(search=tried, **setting, runs=runs), indent=1) + '\n')
    mean = statistics.mean(run['masked_l1'] for run in runs)
    print(f'{RESULTS}: {setting}, masked L1 {mean:.3f}')


if __name__ == '__main__':
    main()
