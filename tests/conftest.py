import gc
import logging
import os
import sys
from pathlib import Path

import pytest

from patchset import editable

# Tests run side by side, one on each core, and start processes: threads of these would wait for each other. Torch reads
# it when it is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # tests fetch nothing; without network a try would wait

ROOT = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        '--all-models', action='store_true',
        help='real numbers for every model: the giants in bfloat16, hours on a CPU')


def pytest_configure(config):
    problem = editable.problem()
    if problem:
        pytest.exit(problem, returncode=2)


# folders with tests that take long come first, so that the last ones are short and all workers end together
ORDER = ('upstream', 'docs', 'train', 'mim', 'benchmarks', 'models', 'patchset', 'equivalence')


def pytest_collection_modifyitems(items):
    folders = {folder: place for place, folder in enumerate(ORDER)}
    items.sort(key=lambda item: folders.get(item.path.relative_to(ROOT).parts[0], len(ORDER)))
    for item in items:
        # the runs that the tests of a file compare with are made once, not once in each worker
        if item.path.parent.name == 'train' and item.get_closest_marker('xdist_group') is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_finish():
    # Modules and tests stay, and a model is freed without the collector, which with the thresholds of Python took a
    # third of the time of a trace.
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


@pytest.fixture(autouse=True)
def settings_of_the_process():
    """Restore what a script that runs within a test sets for its whole process: log handlers, and `--fast-norm`."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    layers = sys.modules.get('timm.layers')
    if layers is not None:
        layers.set_fast_norm(False)
