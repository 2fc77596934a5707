"""The guard: every registered model has the protocol, without exception."""
import inspect

import probe
import pytest
from cases import all_cases
from recorder import MetaDevice
from registry import LARGE, OWN_LAYERS, model_class, registered, served, with_numbers

import timm
from timm.models import get_model_class, has_embed_stages


def test_every_registered_model_is_listed():
    assert sorted(entry.name for entry in registered()) == sorted(timm.list_models())


def test_every_registered_model_has_the_protocol():
    assert [name for name in timm.list_models() if not has_embed_stages(name)] == []


def test_the_registry_answers_by_name():
    """The class that the list says, found without building the model."""
    assert all(get_model_class(entry.name) is model_class(entry) for entry in registered())
    assert served() == registered()


def test_forward_features_is_the_composition():
    """Not upstream's method left beside ours: the results would be the same."""
    for model_cls in {model_class(entry) for entry in registered()}:
        source = inspect.getsource(model_cls.forward_features)
        # a classifier around an encoder goes through the encoder's own call, for its hooks
        assert 'self.forward_stages(' in source or 'self.encoder(' in source, model_cls


def layers(name, model_kwargs):
    """Class of a model, with each kind of layer that it has."""
    with MetaDevice():
        model = probe.build(name, model_kwargs)
    return {(type(model).__name__, type(module).__name__) for module in model.modules()}


def test_models_with_layers_of_their_own(request):
    """What Proof 2 leaves out has no layer that it does not run, in the same class."""
    if not request.config.getoption('--all-models'):
        pytest.skip('takes minutes, and changes with a release of upstream alone: --all-models')
    seen = set().union(*(layers(case.model, case.model_kwargs) for case in all_cases()))
    own = []
    for entry in sorted(registered(), key=lambda entry: entry.parameters):
        if entry.parameters <= LARGE:
            found = layers(entry.name, {})
            if found - seen:
                own.append(entry.name)
            seen |= found
    assert set(own) <= with_numbers() and set(OWN_LAYERS) <= set(own)
