"""Proof 3: bit for bit on CUDA, with deterministic algorithms."""
import pytest
import torch

import probe
from cases import all_cases
from compare import differing
from registry import served

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip('no CUDA device', allow_module_level=True)


@pytest.fixture(autouse=True)
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_equal_values(stock, **arguments):
    """Gradients are compared where stock timm gives the same ones twice."""
    expected, again = [(stock.ask('values', **arguments), stock.answer())[1] for _ in range(2)]
    ours = probe.values(composed=['eval'], **arguments)
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
