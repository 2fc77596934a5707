"""Register masked image modeling methods by name, list the models that they support, and create them.

`import_user_module` imports a user's file or module that registers methods or models. Messages about an unknown name
suggest similar names.
"""

import importlib
import importlib.util
import inspect
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Type, Union

import torch.nn as nn

from timm.models import create_model, is_model, list_models, resolve_model_input_args
from timm.models._model_class import get_model_class
from timm.models._registry import get_arch_name
from .backbone import model_input, to_pair
from .errors import ImageSizeError

__all__ = [
    'create_mim', 'get_mim', 'import_user_module', 'is_known_model', 'list_mim_models', 'list_mims',
    'nearest_names', 'register_mim', 'unknown_model', 'unsupported_model',
]

_methods: Dict[str, Type[nn.Module]] = {}  # mapping of method names to classes


def is_known_model(name: str) -> bool:
    """Whether `timm.create_model` knows a model name. True for names with a colon (`hf-hub:...`), without a look-up."""
    return ':' in name or is_model(get_arch_name(name))


def nearest_names(name: str, names: Sequence[str], count: int = 3) -> List[str]:
    """Return the existing names that are most similar to a misspelt one.

    Names that begin with the misspelt name come first, the shortest first, then similar names. If no name begins with
    it, its last parts are removed until one does (`vit_tiny_16` is searched as `vit_tiny`); similar names then come
    first.

    Args:
        name: Name that does not exist.
        names: Names that exist.
        count: Maximum number of names to return.
    """
    similar = get_close_matches(name, names, n=count)
    start = name
    while start:
        longer = sorted((n for n in names if n.startswith(start)), key=lambda n: (len(n), n))
        if longer:
            break
        start = start.rpartition('_')[0]
    begun = longer if start else []
    ordered = [*begun, *similar] if start == name else [*similar, *begun]
    return list(dict.fromkeys(ordered))[:count]


def unknown_model(name: str, names: Optional[Sequence[str]] = None, listed_by: str = 'timm.list_models()') -> str:
    """Return the message for an unknown model name, with suggestions.

    Args:
        name: Name that does not exist.
        names: Names to suggest from first; those of all models if None, or if none of them is similar.
        listed_by: Call that lists these names, for the message.
    """
    # Names that the caller does not list still help: the next message then says why they do not serve
    near = nearest_names(name, names or ()) or nearest_names(name, list_models())
    hint = f'did you mean {", ".join(near)}?' if near else f'{listed_by} lists the available names.'
    return f"timm has no model '{name}'; {hint}"


def register_mim(name: str) -> Callable[[Type[nn.Module]], Type[nn.Module]]:
    """Return a decorator that registers the class of a masked image modeling method.

    The class takes `(backbone, img_size=None, **options)`. Its method `unsupported_reason` takes a model or model class
    and returns why the method does not support it, or None. Where the answer differs between models of one class, its
    method `unsupported_model` takes the name of a registered model, and returns the same.
    """
    def register(method_cls: Type[nn.Module]) -> Type[nn.Module]:
        if name in _methods:
            raise ValueError(f'The name {name} is already registered, for {_methods[name].__name__}.')
        _methods[name] = method_cls
        return method_cls
    return register


def list_mims() -> List[str]:
    """List the names of the masked image modeling methods."""
    return sorted(_methods)


def get_mim(method: str) -> Type[nn.Module]:
    """Return the class of a masked image modeling method.

    Raises:
        ValueError: No method has that name.
    """
    if method not in _methods:
        near = nearest_names(method, list_mims(), 1)
        hint = f'did you mean {near[0]}?' if near else f'choose {", ".join(list_mims())}.'
        raise ValueError(f"timm.mim has no method '{method}'; {hint}")
    return _methods[method]


def list_mim_models(method: str, filter: Union[str, List[str]] = '') -> List[str]:
    """List the models that a method supports, without building them.

    Each of them can be created with the defaults of the method, and cannot see masked pixels: other values there change
    neither the prediction nor any gradient that does not come from the target, because `MIMMethod.forward` sets masked
    pixels to 0 before the model sees the image. `tests/mim/test_every_model.py` measures this to the last bit: by
    default on one small model of each class and branch, and with `pytest --all-models` on each listed model of up to
    100 million parameters. Larger models have the same classes, and are not measured themselves. Your own method has
    the property if it does not override `MIMMethod.forward` and `blank`.

    Args:
        method: Name of a method.
        filter: Wildcard filter or filters for the names, as in `timm.list_models`.

    Raises:
        ValueError: No method has that name.
    """
    return [name for name in list_models(filter) if unsupported_model(method, name) is None]


def unsupported_model(method: str, name: str) -> Optional[str]:
    """Return why a method does not support a registered model, or None if it does, without building the model.

    Args:
        method: Name of a method.
        name: Name of a registered model.

    Raises:
        ValueError: No method has that name.
    """
    method_cls = get_mim(method)
    if hasattr(method_cls, 'unsupported_model'):
        return method_cls.unsupported_model(name)
    return method_cls.unsupported_reason(get_model_class(name))


def create_mim(
        method: str,
        backbone: Union[str, nn.Module],
        img_size: Optional[Any] = None,
        model_kwargs: Optional[Dict[str, Any]] = None,
        **options: Any,
) -> nn.Module:
    """Create a masked image modeling method on a model.

    A backbone given as a module is changed in place: its classifier is removed, and parameters that the method does not
    train no longer require a gradient. Pass `copy.deepcopy(model)` to keep the original unchanged.

    Args:
        method: Name of a method, see `list_mims`.
        backbone: Model, or the name of a model to build without a classifier.
        img_size: Image size, one number or (height, width). If None, the size of the model; if the method does not
            support that size, the nearest one that it supports. The attribute `img_size` of the method holds the
            result.
        model_kwargs: Arguments for `timm.create_model`, for a backbone given by name.
        **options: Options of the method.

    Returns:
        The method, a module with `forward(images, mask=None, noise=None, generator=None)` and the model as `backbone`.

    Raises:
        MIMUnsupportedError: The method does not support the model.
        ImageSizeError: The model does not accept images of that size.
        ValueError: The method, model or an option is unknown, or a value is not allowed.
    """
    method_cls = get_mim(method)
    _check_options(method, method_cls, options)
    if model_kwargs and not isinstance(backbone, str):
        raise ValueError(f'model_kwargs ({", ".join(model_kwargs)}) are for a backbone given by name.')

    def create(size: Optional[Any]) -> nn.Module:
        model = _create_backbone(backbone, size, model_kwargs or {}) if isinstance(backbone, str) else backbone
        models.append(model)
        return method_cls(model, img_size=size, **options)

    models = []
    try:
        return create(img_size)
    except ImageSizeError as error:
        if img_size is not None:
            raise
        for size in _sizes_nearby(model_input(models[0])[1]):
            try:
                return create(size)
            except (AssertionError, RuntimeError, ValueError):  # models raise different errors for a wrong size
                continue
        raise error


def _sizes_nearby(img_size: Tuple[int, int]) -> List[Tuple[int, int]]:
    """Return image sizes that most models accept, the nearest to a given size first."""
    sizes = {
        tuple(max((side + extra) // step, 1) * step for side in img_size)
        for step in (32, 64, 28, 14) for extra in (0, step - 1)}
    return sorted(sizes - {img_size}, key=lambda size: (sum(abs(a - b) for a, b in zip(size, img_size)), size))


def _check_options(method: str, method_cls: Type[nn.Module], options: Dict[str, Any]) -> None:
    allowed = [name for name in inspect.signature(method_cls).parameters if name not in ('backbone', 'img_size')]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ValueError(f'{method} has no option {", ".join(unknown)}; its options are {", ".join(allowed)}.')


def _create_backbone(name: str, img_size: Optional[Any], model_kwargs: Dict[str, Any]) -> nn.Module:
    if not is_known_model(name):
        raise ValueError(unknown_model(name))
    if img_size is not None:
        img_size = to_pair(img_size, 'img_size')
    model_args = resolve_model_input_args(name, dict(img_size=img_size), **{**model_kwargs, 'num_classes': 0})
    return create_model(**model_args)


def import_user_module(name: str) -> ModuleType:
    """Import a user's module by name, or a .py file by path, so that it can register methods and models.

    A file need not be on the Python path. Like a module, it runs only once per process.

    Args:
        name: Name of a module, or path of a file that ends in .py.

    Raises:
        ImportError: The module or file does not exist, or raises an error when it runs.
    """
    try:
        return _import_file(Path(name).resolve()) if name.endswith('.py') else importlib.import_module(name)
    except Exception as error:  # a user's code may raise anything
        raise ImportError(f'{type(error).__name__}: {error}') from error


def _import_file(path: Path) -> ModuleType:
    # a unique module name, since the file may be called timm.py
    module_name = f'{path.stem} ({path})'
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up the module of a class while the class is created
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
