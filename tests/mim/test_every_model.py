"""Every method is blind to masked pixels on every model that it claims, and learns: the two on one model, built once.

By default one small model per class and branch, with `--all-models` all that are registered. Of the giants among them
the meta device tells shapes and gradients, and there are no numbers.
"""
import pytest
import torch

from blindness import assert_blind
from every_model import (
    LARGEST,
    OPTIONS,
    REFUSED_BY_DATA2VEC,
    REFUSED_CASES,
    REFUSED_WHEN_DROPPING,
    assert_learns,
    branches,
    case_class,
    case_sizes,
    create,
    registered_sizes,
    without_gradient,
)
from registry import registered

from timm.mim import list_mim_models, list_mims
from timm.models import get_model_class


def pytest_generate_tests(metafunc):
    everything = metafunc.config.getoption('--all-models', False)
    if 'case' in metafunc.fixturenames:
        metafunc.parametrize('method, case', [
            pytest.param(method, case, id=f'{method}-{case.name}')
            for method in OPTIONS for case in branches(method, everything)])
    if 'name' in metafunc.fixturenames:
        names = [(method, name) for method in OPTIONS for name in list_mim_models(method)] if everything else []
        metafunc.parametrize('method, name', names)


def assert_blind_and_learns(method):
    assert_blind(method)
    method.zero_grad()
    assert_learns(method)


def test_all_methods_are_here():
    assert list_mims() == sorted([*OPTIONS, 'spark', 'fcmae', 'capi'])  # see test_masked_convolution and test_capi


@pytest.mark.parametrize('method', OPTIONS)
def test_every_class_is_measured(method):
    """Listed models that are too large to be measured have a class that is."""
    measured = {
        case_class(case) for case in branches(method, everything=True)
        if case.name not in REFUSED_CASES and (method == 'simmim' or case.name not in REFUSED_WHEN_DROPPING)}
    assert {get_model_class(name) for name in list_mim_models(method)} <= measured


def test_branch(method, case):
    torch.manual_seed(0)
    further = dict(simmim={}, data2vec=REFUSED_BY_DATA2VEC).get(method, REFUSED_WHEN_DROPPING)
    refused = {**REFUSED_CASES, **further}
    if case.name in refused:
        with pytest.raises(ValueError, match=refused[case.name]):
            create(method, case.model, case.model_kwargs, case_sizes(case), registered=False)
    else:
        assert_blind_and_learns(create(method, case.model, case.model_kwargs, case_sizes(case), registered=False))


def test_registered_model(method, name):
    parameters = next(entry.parameters for entry in registered() if entry.name == name)
    with torch.device('meta'):
        trained = create(method, name, {}, registered_sizes(name), registered=True)
    if parameters > LARGEST:
        images = torch.empty(2, trained.in_chans, *trained.img_size, device='meta')
        output = trained.train()(images, noise=torch.empty(trained.noise_shape(2), device='meta'))
        assert output.loss.shape == () and output.prediction.shape == output.target.shape
        output.loss.backward()
        assert without_gradient(trained) == []
    else:
        torch.manual_seed(0)
        assert_blind_and_learns(create(method, name, {}, [trained.img_size], registered=True))
