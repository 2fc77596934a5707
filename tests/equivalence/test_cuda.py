"""Proof 3: bit for bit on CUDA, with deterministic algorithms: `pytest -m cuda tests/equivalence`, -rs tells what ran.

`make cuda` does the same on registered models, in slices that go on where the last one stopped.
"""
import pytest
import torch

from cases import all_cases
from device_proof import compare_on_device
from registry import served

pytestmark = pytest.mark.cuda
if not torch.cuda.is_available():
    pytest.skip('no CUDA device', allow_module_level=True)


def assert_equal_values(stock, **arguments):
    compared = compare_on_device(stock, 'cuda', **arguments)
    if compared is None:
        pytest.skip('does not fit into the memory of the device')
    assert compared.differing == []


@pytest.mark.parametrize('entry', [pytest.param(entry, id=entry.name) for entry in served()])
def test_registered_model(stock, entry):
    dtype = 'float32' if entry.parameters <= 400e6 else 'bfloat16'
    assert_equal_values(stock, name=entry.name, dtype=dtype, fill=True)


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name) for case in all_cases()])
def test_branch(stock, case):
    assert_equal_values(stock, name=case.model, model_kwargs=case.model_kwargs, **case.probe_kwargs)
