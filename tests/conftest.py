import pytest

from patchset import installed


def pytest_addoption(parser):
    parser.addoption(
        '--all-models', action='store_true',
        help='real numbers for every model: the giants in bfloat16, hours on a CPU')


def pytest_configure(config):
    problem = installed.problem()
    if problem:
        pytest.exit(problem, returncode=2)
