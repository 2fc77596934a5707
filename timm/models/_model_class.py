"""Find the class of a registered model, and whether it has `embed` and `forward_stages`, without building the model.

Building all models of the registry takes 20 minutes, even on the meta device. So that lists and checks of all models
take seconds, the entrypoint of a model runs only until the builder knows the class.
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
    """Raised in the model builder before it builds the model; its only argument is the model class."""


class _Interceptor:
    """Option that is false, except inside the model builder, where its truth test raises `_Intercepted`."""

    def __bool__(self) -> bool:
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code is build_model_with_cfg.__code__:
                raise _Intercepted(frame.f_locals['model_cls'])
            frame = frame.f_back
        return False


@lru_cache(maxsize=None)
def get_model_class(model_name: str) -> Type[nn.Module]:
    """Return the class of a registered model without building the model.

    The model's entrypoint runs with its default arguments until timm's builder knows the class. Modules that an
    entrypoint builds before that, such as the stem of a hybrid, and models of entrypoints that do not use timm's
    builder, are built on the meta device.

    Args:
        model_name: Model name, with or without a pretrained tag.

    Raises:
        ValueError: timm has no model of that name.
    """
    arch_name = get_arch_name(model_name)
    if not is_model(arch_name):
        raise ValueError(f'Unknown model {model_name}; timm.list_models() lists the available names.')
    entrypoint = model_entrypoint(arch_name)
    # the builder tests both options; two are needed because some entrypoints consume one of them
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

    False for a subclass that overrides only `forward_features`, since its `forward_stages` is that of the parent class.

    Args:
        model: Model, model class, or name of a registered model. A named model is not built.
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
