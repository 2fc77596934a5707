"""The guard: a registered model with attention or another token mixer has the protocol."""
import inspect
import re

import torch
from registry import model_class, registered, served

import timm
from timm.models import get_model_class, has_embed_stages

# Models that have a token mixer and no protocol, each with the reason.
EXCEPTIONS = {}


def test_every_registered_model_is_classified():
    assert sorted(entry.name for entry in registered()) == sorted(timm.list_models())


def test_every_token_mixer_has_the_protocol():
    entries = [entry for entry in registered() if entry.kind != 'cnn']
    assert len(entries) == 760
    assert [e.name for e in entries if e not in served() and e.name not in EXCEPTIONS] == []


def test_the_registry_answers_by_name():
    """The class that the list says, found without building the model."""
    assert all(get_model_class(entry.name) is model_class(entry) for entry in registered())
    assert all(has_embed_stages(entry.name) for entry in served())


def test_forward_features_is_the_composition():
    """Not upstream's method left beside ours: the results would be the same."""
    for model_cls in {model_class(entry) for entry in served()}:
        source = inspect.getsource(model_cls.forward_features)
        # a classifier around an encoder goes through the encoder's own call, for its hooks
        assert 'self.forward_stages(' in source or 'self.encoder(' in source, model_cls


# Attention over the branches of a convolution, which mixes no places.
BRANCH_ATTENTION = {'SplitAttn', 'SelectiveKernelAttn'}


def test_models_without_the_protocol_have_no_attention(request):
    """The list of kinds is believed nowhere: the modules are looked at. All 522 models with `--all-models`."""
    by_class = {}
    for entry in sorted(set(registered()) - set(served()), key=lambda entry: entry.parameters):
        by_class.setdefault(entry.class_name, []).append(entry.name)
    assert len(by_class) >= 30
    every = request.config.getoption('--all-models')
    for name in [name for names in by_class.values() for name in (names if every else names[:1])]:
        with torch.device('meta'):
            modules = {type(module).__name__ for module in timm.create_model(name).modules()}
        mixers = {module for module in modules if re.search('attention|attn|mhsa|mixer|transformer', module, re.I)}
        assert mixers <= BRANCH_ATTENTION, name
