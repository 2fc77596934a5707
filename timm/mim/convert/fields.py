"""Read and validate the values that a file stores next to its tensors.

The file may come from an untrusted source. Each value is read with an expected type; a value of another type is an
error that names it. Arguments of models and methods from a file reach timm's factory, which can read files and use the
network (`checkpoint_path`, `pretrained`): `model_arguments` and `method_options` therefore accept only arguments that
describe a module.
"""
import argparse
import inspect
import math
from typing import Any, Callable, Collection, Dict, Mapping, Optional, Tuple

from timm.models import is_model
from timm.models._model_class import get_model_class

from ..factory import get_mim, list_mims
from .checkpoint import ConversionError

__all__ = ['Fields', 'has_option', 'method_name', 'method_options', 'model_arguments', 'model_name']

_MAX_INTEGER = 1 << 14  # above any size or number of layers of a model; building more layers would take minutes
_NOT_DESCRIBING = {'backbone', 'device', 'dtype'}  # arguments of a constructor that do not describe the module


class Fields:
    """Values by name, for example those of `config.json`.

    A missing value reads as None. Each method raises a ConversionError if the value has another type.

    Args:
        values: Values by name, None if there are none.
        where: Name of their source for error messages.
    """

    def __init__(self, values: Any, where: str) -> None:
        if isinstance(values, argparse.Namespace):
            values = vars(values)
        if values is not None and not isinstance(values, Mapping):
            raise ConversionError(f'{where} is of type {type(values).__name__}, not a dictionary of values.')
        self.values: Mapping[str, Any] = values or {}
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str) -> Optional[str]:
        """Read a string."""
        return self._read(name, 'a text', lambda value: isinstance(value, str))

    def flag(self, name: str) -> Optional[bool]:
        """Read a boolean."""
        return self._read(name, 'true or false', lambda value: isinstance(value, bool))

    def integer(self, name: str) -> Optional[int]:
        """Read a positive integer."""
        return self._read(name, f'an integer from 1 to {_MAX_INTEGER}', _is_size)

    def fraction(self, name: str) -> Optional[float]:
        """Read a number from 0 to 1."""
        return self._read(name, 'a number from 0 to 1', lambda value: _is_number(value) and 0 <= value <= 1)

    def size(self, name: str) -> Optional[Tuple[int, int]]:
        """Read a size (height, width) in pixels: two numbers, or one number for both. An empty list reads as None."""
        value = self.values.get(name)
        sizes = list(value) if isinstance(value, (list, tuple)) else [value]
        if sizes in ([], [None]):
            return None
        if len(sizes) > 2 or not all(map(_is_size, sizes)):
            raise self.wrong(name, f'one integer or two from 1 to {_MAX_INTEGER}')
        return sizes[0], sizes[-1]

    def mapping(self, name: str) -> 'Fields':
        """Read a dictionary of values, empty if it is missing."""
        return Fields(self.values.get(name), f'{self.where}: {name}')

    def wrong(self, name: str, expected: str) -> ConversionError:
        """Return the error for a value that is not as expected."""
        return ConversionError(f'{self.where}: {name} is {_short(self.values[name])}, not {expected}.')

    def _read(self, name: str, expected: str, is_valid: Callable[[Any], bool]) -> Any:
        value = self.values.get(name)
        if value is not None and not is_valid(value):
            raise self.wrong(name, expected)
        return value


def model_name(fields: Fields, name: str) -> Optional[str]:
    """Read the name of a timm model.

    Raises:
        ConversionError: timm has no such model. Names with `hf-hub:` or `local-dir:` refer to other files, and are
            refused, too.
    """
    model = fields.text(name)
    if model is not None and not is_model(model):
        raise fields.wrong(name, 'a model that timm.list_models() lists')
    return model


def method_name(fields: Fields, name: str) -> Optional[str]:
    """Read the name of a method of `timm.mim`.

    Raises:
        ConversionError: timm.mim has no such method.
    """
    method = fields.text(name)
    if method is not None and method not in list_mims():
        raise fields.wrong(name, f'one of the methods {", ".join(list_mims())}')
    return method


def model_arguments(fields: Fields, model: str, given: Collection[str] = ()) -> Dict[str, Any]:
    """Read arguments of a model. Only arguments of the constructor of its class are accepted, which reads no files.

    Args:
        fields: Arguments from the file.
        model: Name of the model.
        given: Names of arguments that the user gives; those in the file are ignored.

    Raises:
        ConversionError: The constructor has no such argument, or a value is not a number, a string, or a list of these.
    """
    return _arguments(fields, get_model_class(model), model, '--model-kwargs', given)


def method_options(fields: Fields, method: str, given: Collection[str] = ()) -> Dict[str, Any]:
    """Read options of a method, see `model_arguments`."""
    return _arguments(fields, get_mim(method), method, '--mim-kwargs', given)


def has_option(method: str, name: str) -> bool:
    """Whether a method has an option."""
    return name in inspect.signature(get_mim(method)).parameters


def _arguments(fields: Fields, module_class: type, of: str, flag: str, given: Collection[str]) -> Dict[str, Any]:
    parameters = inspect.signature(module_class).parameters.values()
    known = {p.name for p in parameters if p.kind != p.VAR_KEYWORD} - _NOT_DESCRIBING
    arguments = {}
    for name, value in fields.values.items():
        if name in given or value is None:
            continue
        if name not in known:
            raise ConversionError(
                f'{fields.where}: {_short(name)} is not an argument of {of}; if you want it, give it with {flag}.')
        if not _is_plain(value):
            raise fields.wrong(name, f'a number up to {_MAX_INTEGER}, a text, or a list of these')
        arguments[name] = value
    return arguments


def _is_plain(value: Any, depth: int = 2) -> bool:
    """Whether a value is a number, a string, a boolean, None, or a list (of lists) of these."""
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (bool, str)) or (_is_number(value) and abs(value) <= _MAX_INTEGER)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_integer(value) and 1 <= value <= _MAX_INTEGER


def _short(value: Any) -> str:
    """Return a value for an error message: in at most 80 characters if it is plain, otherwise its type."""
    plain = _is_plain(value) or (isinstance(value, float) and not math.isfinite(value))
    return repr(value) if plain and len(repr(value)) <= 80 else f'a value of type {type(value).__name__}'
