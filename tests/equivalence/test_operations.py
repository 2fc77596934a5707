"""Proof 1: operation for operation, on every registered model, giants included.

Every ATen call of a forward pass with its operands by origin, on the meta device, equals stock timm's: once with
`forward_features` as it is, once with `embed` and `forward_stages` called one after the other. Files without an overlay
are the published bytes (`tests/patchset`), their models need no proof.
"""
import pytest

import probe
from cases import all_cases
from compare import first_difference
from registry import served


@pytest.mark.parametrize('name', [entry.name for entry in served()])
def test_registered_model(stock, name):
    stock.ask('operations', name=name)
    composed, plain = probe.operations(name, composed=True), probe.operations(name)
    expected = stock.answer()
    assert len(expected) > 10
    assert first_difference(composed, expected) is None
    assert first_difference(plain, expected) is None


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name) for case in all_cases()])
def test_branch_in_train_mode(stock, case):
    arguments = dict(
        name=case.model, model_kwargs=case.model_kwargs, img_size=case.probe_kwargs['img_size'], train=True)
    stock.ask('operations', **arguments)
    composed = probe.operations(composed=True, **arguments)
    assert first_difference(composed, stock.answer()) is None
