"""Choose the learning rate of the recipe `mae_sample_digits` on one split of the digits, and report on another.

    python -m benchmarks.digits        (about 25 minutes of processor time)

Each learning rate trains for half of the recipe's epochs and is judged by the masked L1 on the validation split. The
best one then trains for all epochs with several seeds, and each run is measured on the test split. The results are
written to `benchmarks/results/digits.json`, from which `docs/figures.py` fills the pages. Runs that are complete in
`--folder` are not repeated.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List

import yaml

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / 'recipes' / 'mae_sample_digits.yaml'
RESULTS = Path(__file__).resolve().parent / 'results' / 'digits.json'
LEARNING_RATES = (7.5e-4, 1.5e-3, 3e-3)


def train(folder: Path, name: str, *flags: Any) -> Dict[str, Any]:
    """Run the recipe with further flags in a process of its own. Returns the content of its `summary.json`."""
    summary = folder / name / 'summary.json'
    if summary.exists():
        return json.loads(summary.read_text())
    command = [
        sys.executable, 'train.py', '-c', str(RECIPE), '--output', str(folder), '--experiment', name, *map(str, flags)]
    subprocess.run([*command, '--resume', 'auto'], cwd=ROOT, check=True, capture_output=True)
    return json.loads(summary.read_text())


def search(folder: Path, epochs: int, pool: ThreadPoolExecutor) -> List[Dict[str, float]]:
    """Return the masked L1 on the validation split for each learning rate."""
    def run(rate: float) -> Dict[str, float]:
        found = train(folder, f'lr-{rate}', '--lr', rate, '--epochs', epochs, '--val-split', 'validation', '--seed', 9)
        print(f'learning rate {rate}: {found["best"]:.4f}', flush=True)
        return dict(learning_rate=rate, epochs=epochs, masked_l1=found['best'])
    return list(pool.map(run, LEARNING_RATES))


def report(folder: Path, rate: float, seeds: int, pool: ThreadPoolExecutor) -> List[Dict[str, float]]:
    """Return what runs of several seeds reach on the test split, in the words of `summary.json`."""
    def run(seed: int) -> Dict[str, float]:
        found = train(folder, f'seed-{seed}', '--lr', rate, '--seed', seed)
        before = found['probe_baselines']
        result = dict(
            seed=seed,
            masked_l1=found['last']['masked_l1'],
            **found['baselines'],
            linear_top1=found['probes']['linear_top1'],
            linear_top1_pixels=before['pixels']['linear_top1'],
            linear_top1_before=before['encoder before training']['linear_top1'],
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
    began = time.time()
    epochs = yaml.safe_load(RECIPE.read_text())['epochs']
    with ThreadPoolExecutor(args.processes) as pool:
        tried = search(args.folder.resolve(), epochs // 2, pool)
        rate = min(tried, key=lambda row: row['masked_l1'])['learning_rate']
        runs = report(args.folder.resolve(), rate, args.seeds, pool)
    RESULTS.write_text(json.dumps(dict(search=tried, learning_rate=rate, runs=runs), indent=1) + '\n')
    mean = statistics.mean(run['masked_l1'] for run in runs)
    print(f'{RESULTS}: learning rate {rate}, masked L1 {mean:.3f}, after {time.time() - began:.0f} s')


if __name__ == '__main__':
    main()
