"""Pytest plugin for upstream's own tests: leaves out the models that the fork does not touch, and the largest ones."""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'equivalence'))
from registry import registered  # noqa: E402

LARGEST = float(os.environ.get('LARGEST', 100e6))  # parameters
SERVED = {entry.name for entry in registered() if entry.kind != 'cnn' and entry.parameters <= LARGEST}


def pytest_collection_modifyitems(config, items):
    keep, drop = [], []
    for item in items:
        parameters = item.callspec.params if hasattr(item, 'callspec') else {}
        name = str(parameters.get('model_name', '')).split('.')[0]
        (keep if not name or name in SERVED else drop).append(item)
    config.hook.pytest_deselected(items=drop)
    items[:] = keep
