import gc
import logging
import sys
from pathlib import Path

import pytest

from patchset import installed

ROOT = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        '--all-models', action='store_true',
        help='real numbers for every model: the giants in bfloat16, hours on a CPU')


def pytest_configure(config):
    problem = installed.problem()
    if problem:
        pytest.exit(problem, returncode=2)


# folders with tests that take long come first, so that the last ones are short and all workers end together
ORDER = ('upstream', 'docs', 'train', 'mim', 'benchmarks', 'models', 'patchset', 'equivalence')


def pytest_collection_modifyitems(items):
    folders = {folder: place for place, folder in enumerate(ORDER)}
    items.sort(key=lambda item: folders.get(item.path.relative_to(ROOT).parts[0], len(ORDER)))


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay: without them a collection takes a tenth of the time


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
