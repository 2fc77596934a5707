"""Proof 3: the fork computes the same results as stock timm on the device, bit for bit."""
import atexit
import functools
import sys
from pathlib import Path
from typing import Any, Dict, List

from .slices import Job, Unfit

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tests' / 'equivalence'))

from device_proof import compare_on_device  # noqa: E402
from registry import Entry, served  # noqa: E402
from stock import StockTimm  # noqa: E402

LARGEST_FLOAT32 = 400e6  # parameters; larger models are compared in bfloat16


@functools.lru_cache(maxsize=1)
def stock() -> StockTimm:
    """Start a process with stock timm, which `python -m patchset build` unpacks."""
    tree = ROOT / 'build' / 'stock'
    if not (tree / 'timm').is_dir():
        raise SystemExit(f'{tree} is missing: run python -m patchset build')
    process = StockTimm(tree)
    atexit.register(process.close)
    return process


def compare_model(entry: Entry, device: str) -> Dict[str, Any]:
    dtype = 'float32' if entry.parameters <= LARGEST_FLOAT32 else 'bfloat16'
    arguments = dict(name=entry.name, dtype=dtype, fill=True)
    if device == 'cpu':  # a test run
        arguments['img_size'] = [64, 64]
    compared = compare_on_device(stock(), device, **arguments)
    if compared is None:
        raise Unfit('does not fit into the memory of the device')
    if compared.differing:
        raise AssertionError(f'{len(compared.differing)} values differ, first {compared.differing[0]}')
    return dict(dtype=dtype, values=compared.number, unrepeatable_gradients=compared.unrepeatable)


def jobs(device: str) -> Dict[str, List[Job]]:
    """Return the jobs for the smallest model of each class, and for all other models; on the CPU for two small models.
    """
    entries = sorted(served(), key=lambda entry: entry.parameters)
    if device == 'cpu':
        entries = [entry for entry in entries if entry.name in ('test_vit', 'test_byobnet')]
    first: Dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.class_name, entry)
    smallest = set(first.values())

    def job(entry: Entry) -> Job:
        return Job('proof 3', entry.name, lambda: compare_model(entry, device))
    return {
        'smallest': [job(entry) for entry in entries if entry in smallest],
        'others': [job(entry) for entry in entries if entry not in smallest],
    }
