"""Model Class of a Registered Name

Answers which class a model name builds, and whether it has `embed` and `forward_stages`, without building a model: for
lists and checks over the whole registry.
"""
import inspect
from functools import lru_cache
from typing import Type, Union

import torch
import torch.nn as nn

from ._builder import build_model_with_cfg
from ._embed_stages import EmbedStagesMixin
from ._registry import get_arch_name, is_model, model_entrypoint

__all__ = ['get_model_class', 'has_embed_stages']


class _Intercepted(Exception):
    """Raised in the model builder before it instantiates the model class, which is its only argument."""


class _Interceptor:
    """An option that counts as not set, until the model builder looks at it."""

    def __bool__(self) -> bool:
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code is build_model_with_cfg.__code__:
                raise _Intercepted(frame.f_locals['model_cls'])
            frame = frame.f_back
        return False


@lru_cache(maxsize=None)
def get_model_class(model_name: str) -> Type[nn.Module]:
    """Get the class of a registered model without building the model.

    The model's entrypoint runs, with its default arguments, up to the point where the builder has the class. What it
    builds before, a hybrid its stem, and an entrypoint that does not use timm's builder, as a user's own may, are
    built on the meta device.

    Args:
        model_name: Model name, with or without a pretrained tag.

    Raises:
        ValueError: There is no model of that name.
    """
    arch_name = get_arch_name(model_name)
    if not is_model(arch_name):
        raise ValueError(f'Unknown model {model_name}, timm.list_models() names those that exist.')
    entrypoint = model_entrypoint(arch_name)
    # the builder looks at both; of either there are models that look at it themselves, and do not pass it on
    options = dict(pretrained_cfg_overlay=_Interceptor(), features_only=_Interceptor())
    with torch.device('meta'):
        try:
            return type(entrypoint(pretrained=False, **options))
        except _Intercepted as intercepted:
            model_cls, = intercepted.args
            return model_cls
        except TypeError:  # the entrypoint does not take these options
            return type(entrypoint(pretrained=False))


def has_embed_stages(model: Union[str, nn.Module, Type[nn.Module]]) -> bool:
    """Whether a model has `embed` and `forward_stages` that compose to its `forward_features`.

    False for a subclass that overrides `forward_features` alone: its stages would be those of the parent class.

    Args:
        model: Model, model class, or the name of a registered model, which is not built.
    """
    if isinstance(model, str):
        model = get_model_class(model)
    model_cls = model if isinstance(model, type) else type(model)
    if not issubclass(model_cls, EmbedStagesMixin):
        return False
    for cls in model_cls.__mro__:
        if 'forward_stages' in vars(cls):
            return cls is not EmbedStagesMixin
        if 'forward_features' in vars(cls):
            return False
    return False
