"""Proof 2 of Hiera's own dropping of mask units in training, which indexes with bools: no meta device, so no case."""
import pytest

import probe
from cases_hierarchical import FAMILIES
from compare import differing


@pytest.mark.parametrize('composed', [[], ['train']])
def test_patch_drop(stock, composed):
    model, small = FAMILIES['hiera']
    arguments = dict(
        name=model, model_kwargs={**small, 'patch_drop_rate': 0.5, 'num_classes': 5}, img_size=[64, 64])
    ours = probe.values(composed=composed, **arguments)
    stock.ask('values', **arguments)
    assert differing(ours, stock.answer()) == []
