"""The guard: a registered model with attention or another token mixer has the protocol."""
import inspect

import timm
from registry import model_class, registered, served

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
