"""Choose the learning rate of the recipe `mae_sample_digits` on one split of the digits, and report on another.

    python -m benchmarks.digits        (half an hour of processor time; more where other programs run)

Each learning rate trains once, for all epochs, and is judged by the masked L1 on the validation split. The best one
then trains with several seeds, and each run is measured on the test split. The results are written to
`benchmarks/results/digits.json`, from which `docs/figures.py` fills the pages. Runs that are complete in `--folder` are
not repeated.

A search with fewer epochs need not choose the rate that is best for a whole run: training stays near the error of the
diffusion fill at first, and leaves it when the learning rate falls.
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
LEARNING_RATES = (1.5e-3, 3e-3, 6e-3)


def search(folder: Path, pool: ThreadPoolExecutor) -> List[Dict[str, float]]:
    """Return the masked L1 on the validation split for each learning rate."""
    def run(rate: float) -> Dict[str, float]:
        found = train(folder, f'search-{rate}', '-c', RECIPE, '--lr', rate, '--val-split', 'validation', '--seed', 9)
        print(f'learning rate {rate}: {found["last"]["masked_l1"]:.4f}', flush=True)
        recipe = yaml.safe_load(RECIPE.read_text())
        return dict(
            learning_rate=rate, epochs=recipe['epochs'], warmup_epochs=recipe['warmup_epochs'],
            masked_l1=found['last']['masked_l1'])
    return list(pool.map(run, LEARNING_RATES))


def best(tried: List[Dict[str, float]]) -> float:
    """Return the learning rate with the smallest error."""
    return min(tried, key=lambda row: row['masked_l1'])['learning_rate']


def report(folder: Path, rate: float, seeds: int, pool: ThreadPoolExecutor) -> List[Dict[str, float]]:
    """Return what runs of several seeds reach on the test split, in the words of `summary.json`."""
    def run(seed: int) -> Dict[str, float]:
        found = train(folder, f'lr-{rate}-seed-{seed}', '-c', RECIPE, '--lr', rate, '--seed', seed)
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
    folder = args.folder.resolve()
    with ThreadPoolExecutor(args.processes) as pool:
        tried = search(folder, pool)
        rate = best(tried)
        runs = report(folder, rate, args.seeds, pool)
    RESULTS.write_text(json.dumps(dict(search=tried, learning_rate=rate, runs=runs), indent=1) + '\n')
    mean = statistics.mean(run['masked_l1'] for run in runs)
    print(f'{RESULTS}: learning rate {rate}, masked L1 {mean:.3f}')


if __name__ == '__main__':
    main()
