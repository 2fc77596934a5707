"""Proof 2: bit for bit with real numbers, on the CPU.

The same weights, image and random state in stock timm and in the fork: parameters, features, output, random state, and
in train mode every gradient, compared by the digest of their bytes. No tolerance.

Proof 1 holds the operations of every registered model; what numbers add is the same for all that run the same code:
constants, dropout, gradients, what depends on values. So they are drawn for every branch of every class, shrunken, and
for the registered models that `registry.with_numbers` names; with `--all-models` for all. Models of more than a billion
parameters have two blocks per stage then, at full width: Proof 1 records all of their blocks.
"""
import pytest

import probe
from cases import all_cases
from compare import differing
from registry import GIANT, LARGE, served, with_numbers

from timm.models import get_pretrained_cfg

# Most windows are larger than the grid of a small image, and do not shift. These run at the size they are made for.
OWN_SIZE = {'swin_tiny_patch4_window7_224'}
MEMORY_OF_ONE = 300e6  # parameters


def entries(all_models):
    chosen = with_numbers()
    return [entry for entry in served() if all_models or entry.name in chosen]


def image_sizes(entry):
    """Sizes to try, small ones first. A convolution does the same at every size, a window or a grid does not."""
    own = list(get_pretrained_cfg(entry.name).input_size[1:])
    convolutional = entry.kind == 'cnn' or entry.class_name == 'ConvMixer'
    small = [] if entry.name in OWN_SIZE else [[64, 64], [128, 128]] if convolutional else [[128, 128]]
    return [size for size in small if size <= own] + [own]


def pytest_generate_tests(metafunc):
    if 'entry' in metafunc.fixturenames:
        found = entries(metafunc.config.getoption('--all-models'))
        metafunc.parametrize('entry', [
            pytest.param(entry, id=entry.name, marks=one_at_a_time(entry)) for entry in found])


def one_at_a_time(entry):
    """Two large models at once, each in two processes, do not fit in 24 GB."""
    return [pytest.mark.xdist_group('large models')] if entry.parameters > MEMORY_OF_ONE else []


def shorter(entry):
    """The options that give a giant two blocks per stage."""
    if entry.parameters <= GIANT or entry.class_name == 'RegNet':
        return {}
    return {'depths': (2, 2, 2, 2)} if entry.class_name in ('DaVit', 'SwinTransformerV2Cr') else {'depth': 2}


def assert_equal_values(stock, function='values', **arguments):
    stock.ask(function, **arguments)
    # in eval mode the two halves as a user calls them, in train mode forward_features itself
    ours = getattr(probe, function)(composed=['eval'], **arguments)
    expected = stock.answer()
    assert {'eval features', 'train features'} <= {key.rsplit(' ', 1)[0] for key in expected}
    assert differing(ours, expected) == []


def test_registered_model(stock, entry):
    dtype = 'float32' if entry.parameters <= LARGE else 'bfloat16'
    assert_equal_values(
        stock, 'values_of_first', img_sizes=image_sizes(entry), name=entry.name, model_kwargs=shorter(entry),
        dtype=dtype, fill=True)


@pytest.mark.parametrize('case', [pytest.param(case, id=case.name) for case in all_cases()])
def test_branch(stock, case):
    assert_equal_values(stock, name=case.model, model_kwargs=case.model_kwargs, **case.probe_kwargs)


@pytest.mark.parametrize('class_name', sorted({(e.module, e.class_name) for e in served()}))
def test_signature(stock, class_name):
    """Callers of forward_features notice nothing: the same parameters, the same defaults."""
    arguments = dict(class_path='timm.models.{}.{}'.format(*class_name))
    stock.ask('signature', **arguments)
    assert probe.signature(**arguments) == stock.answer()
