""" Masked Image Modeling Factory

Methods are registered by name, as timm's models are.
"""
import inspect
from typing import Any, Callable, Dict, List, Optional, Type, Union

import torch.nn as nn

from timm.models import create_model, is_model, list_models, resolve_model_input_args
from timm.models._model_class import get_model_class
from timm.models._registry import get_arch_name

from .backbone import to_pair

__all__ = ['create_mim', 'get_mim', 'list_mim_models', 'list_mims', 'register_mim']

_methods: Dict[str, Type[nn.Module]] = {}  # mapping of method names to classes


def register_mim(name: str) -> Callable[[Type[nn.Module]], Type[nn.Module]]:
    """ Decorator that registers a masked image modeling method.

    The class takes `(backbone, img_size=None, **options)`, its static method `unsupported_reason` takes a model or a
    model class and returns why the method cannot serve it, None if it can.
    """
    def register(method_cls: Type[nn.Module]) -> Type[nn.Module]:
        if name in _methods:
            raise ValueError(f'There is a method {name} already, {_methods[name].__name__}.')
        _methods[name] = method_cls
        return method_cls
    return register


def list_mims() -> List[str]:
    """ Names of the masked image modeling methods.
    """
    return sorted(_methods)


def get_mim(method: str) -> Type[nn.Module]:
    """ Get the class of a masked image modeling method.

    Raises:
        ValueError: There is no method of that name.
    """
    if method not in _methods:
        raise ValueError(f'Unknown method {method}, there is {", ".join(list_mims())}.')
    return _methods[method]


def list_mim_models(method: str, filter: Union[str, List[str]] = '') -> List[str]:
    """ Names of the models that a method can serve, found without building any.

    Args:
        method: Name of a method.
        filter: Wildcard filter or filters for the names, as in `timm.list_models`.
    """
    unsupported_reason = get_mim(method).unsupported_reason
    return [name for name in list_models(filter) if unsupported_reason(get_model_class(name)) is None]


def create_mim(
        method: str,
        backbone: Union[str, nn.Module],
        img_size: Optional[Any] = None,
        model_kwargs: Optional[Dict[str, Any]] = None,
        **options: Any,
) -> nn.Module:
    """ Create a masked image modeling method on a model.

    Args:
        method: Name of a method, see `list_mims`.
        backbone: Model, which loses its classifier, or the name of a model to build without one.
        img_size: Image size, one number or (height, width), that of the model if None.
        model_kwargs: Arguments for `timm.create_model`, for a backbone given by name.
        **options: Options of the method.

    Returns:
        The method, a module with `forward(images, mask=None, noise=None, generator=None)` and the model as `backbone`.

    Raises:
        MIMUnsupportedError: The method cannot serve the model.
        ValueError: Unknown method, model or option, or a value that is not allowed.
    """
    method_cls = get_mim(method)
    _check_options(method, method_cls, options)
    if isinstance(backbone, str):
        backbone = _create_backbone(backbone, img_size, model_kwargs or {})
    elif model_kwargs:
        raise ValueError(f'model_kwargs ({", ".join(model_kwargs)}) are for a backbone given by name.')
    return method_cls(backbone, img_size=img_size, **options)


def _check_options(method: str, method_cls: Type[nn.Module], options: Dict[str, Any]) -> None:
    allowed = [name for name in inspect.signature(method_cls).parameters if name not in ('backbone', 'img_size')]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ValueError(f'{method} has no option {", ".join(unknown)}, its options are {", ".join(allowed)}.')


def _create_backbone(name: str, img_size: Optional[Any], model_kwargs: Dict[str, Any]) -> nn.Module:
    if ':' not in name and not is_model(get_arch_name(name)):
        raise ValueError(f'Unknown model {name}, timm.list_models() names those that exist.')
    if img_size is not None:
        img_size = to_pair(img_size, 'img_size')
    model_args = resolve_model_input_args(name, dict(img_size=img_size), **{**model_kwargs, 'num_classes': 0})
    return create_model(**model_args)
