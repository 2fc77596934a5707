"""Proof 3: bit for bit on CUDA, with deterministic algorithms: `pytest -m cuda tests/equivalence`, -rs tells what ran.

Both processes hold a model on the device, one after the other; one that does not fit is skipped.
"""
import os

import pytest
import torch

import probe
from cases import all_cases
from compare import differing
from registry import served

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip('no CUDA device', allow_module_level=True)


# read when cuBLAS starts, here and in the process of stock timm
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.use_deterministic_algorithms(False)


def assert_equal_values(stock, **arguments):
    """Gradients are compared where stock timm gives the same ones twice."""
    try:
        expected, again = [(stock.ask('values', **arguments), stock.answer())[1] for _ in range(2)]
        ours = probe.values(composed=['eval'], **arguments)
    except RuntimeError as error:
        if 'out of memory' not in str(error):
            raise
        torch.cuda.empty_cache()
        pytest.skip('does not fit into the memory of the device')
    repeatable = set(expected) - set(differing(expected, again))
    assert all(name in repeatable for name in expected if not name.startswith('train gradient'))
    assert [name for name in differing(ours, expected) if name in repeatable] == []


@pytest.mark.parametrize('entry', [pytest.param(entry, id=entry.name) for entry in served()])
def test_registered_model(stock, entry):
    dtype = 'float32' if entry.parameters <= 400e6 else 'bfloat16'
    assert_equal_values(stock, name=entry.name, device='cuda', dtype=dtype)


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name) for case in all_cases()])
def test_branch(stock, case):
    assert_equal_values(stock, name=case.model, model_kwargs=case.model_kwargs, device='cuda', **case.probe_kwargs)
