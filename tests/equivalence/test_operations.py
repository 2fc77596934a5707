"""Proof 1: operation for operation, on every registered model, giants included.

Every initialisation and every ATen call of a forward pass with its operands by origin, on the meta device, equals stock
timm's. A class whose `forward_features` is `forward_stages(embed(...))` in its code is traced once, any other class
twice: as it is, and with the two halves called one after the other. Files without an overlay are the published bytes
(`tests/patchset`), their models need no proof.
"""
import pytest

import probe
from cases import all_cases
from compare import first_difference
from composition import is_composition
from registry import served

from timm.models import get_model_class


@pytest.mark.parametrize('name', [entry.name for entry in served()])
def test_registered_model(stock, name):
    stock.ask('operations', name=name)
    traces = [probe.operations(name)]
    if not is_composition(get_model_class(name)):
        traces.append(probe.operations(name, composed=True))
    expected = stock.answer()
    assert len(expected) > 10
    assert [first_difference(trace, expected) for trace in traces] == [None] * len(traces)


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name) for case in all_cases()])
def test_branch_in_train_mode(stock, case):
    arguments = dict(
        name=case.model, model_kwargs=case.model_kwargs, img_size=case.probe_kwargs['img_size'], train=True)
    stock.ask('operations', **arguments)
    composed = probe.operations(composed=True, **arguments)
    assert first_difference(composed, stock.answer()) is None
