import gc
import sys
from pathlib import Path

import pytest

from patchset import editable

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


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay: without them a collection takes a tenth of the time


@pytest.fixture(autouse=True)
def norm_layers_as_they_were():
    """`--fast-norm` is a setting of the whole process: a test that chooses it must not choose it for the next one."""
    yield
    layers = sys.modules.get('timm.layers')
    if layers is not None:
        layers.set_fast_norm(False)
