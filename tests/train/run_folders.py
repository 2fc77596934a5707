"""Comparison of what runs leave behind."""
import csv
import json
from pathlib import Path
from typing import Any, Dict

import torch

from timm.mim.pretrain.checkpoints import load_checkpoint

CHECKPOINTS = dict(file='.pth.tar', folder='.dcp')  # extensions, by the value of --checkpoint-format


LEFT_OUT = ('output', 'resume', 'stop_epoch', 'checkpoint_format')


def equal(a: Any, b: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def load(path: Path) -> Dict[str, Any]:
    """Load a checkpoint, without the options that differ where two runs do."""
    if path.is_dir():
        loaded = load_checkpoint(path)
        checkpoint = {name: loaded.part(name) for name in loaded.content if name != 'checksum_of_metadata'}
    else:
        checkpoint = torch.load(path, weights_only=False)
    options = vars(checkpoint['args'])
    checkpoint['args'] = {k: v for k, v in options.items() if k not in LEFT_OUT}
    return checkpoint


def metrics(folder: Path) -> list:
    """The lines of metrics.jsonl, without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ('images_per_second', 'memory_gb')} for line in lines]


def results(folder: Path) -> Dict[str, Any]:
    """summary.json, without paths."""
    return {k: v for k, v in json.loads((folder / 'summary.json').read_text()).items() if str(folder) not in str(v)}


def assert_equal_runs(expected: Path, folder: Path) -> None:
    """Check that two runs left the same, to the last bit."""
    names = [
        sorted(path.name for extension in CHECKPOINTS.values() for path in run.glob(f'*{extension}*'))
        for run in (expected, folder)]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = load(expected / name), load(folder / name)
        assert a.keys() == b.keys()
        for part in a:
            assert equal(a[part], b[part]), f'{name}: {part}'
    for name in ('encoder.safetensors', 'summary.csv'):
        assert (expected / name).read_bytes() == (folder / name).read_bytes(), name
    pictures = [sorted((run / 'reconstructions').iterdir()) for run in (expected, folder)]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*pictures))
    assert metrics(expected) == metrics(folder)
    assert results(expected) == results(folder)


def epochs(folder: Path) -> list:
    """The epochs in summary.csv."""
    with open(folder / 'summary.csv', newline='') as f:
        return [int(row['epoch']) for row in csv.DictReader(f)]
