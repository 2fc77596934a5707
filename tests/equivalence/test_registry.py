"""The guard: every registered model has the protocol, without exception."""
import inspect

from registry import model_class, registered, served

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
