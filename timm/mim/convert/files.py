"""Reading and Writing of Checkpoint Files

Anybody may have written a file that is read here. Reading runs no code of it: pickles are read with
`weights_only=True`. Next to tensors, training scripts save their settings in two classes that hold nothing but values,
and these are let through: `argparse.Namespace`, and the `CfgNode` of yacs, which is read as a dictionary. Every tensor
is checked once, in `_checked_tensors`, so that the rest of the conversion can rely on it. A file is written whole, or
not at all.
"""
import argparse
import json
import pickle
import struct
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Mapping, NamedTuple, Optional

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import first_line
from ..files import naming, write_complete
from .checkpoint import ConversionError, Tensors
from .fields import Fields

__all__ = ['Source', 'read_source', 'write_file', 'write_json', 'write_pickle', 'write_safetensors']

_FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')  # weights in a folder of Hugging Face's
# What torch, zipfile and the unpickler raise for bytes that are no checkpoint, or a damaged one.
_DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, struct.error)
_VALUES_ONLY = (argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode'))


class Source(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: Tensors by the names of the file, without those parts of a name that wrappers of modules add.
        layout: Where they stood, 'flat', 'model', 'state_dict', 'task' or 'ijepa'.
        metadata: What stood next to them: 'mim', what this command wrote, 'args' of a training script, and 'config',
            the content of `config.json`.
    """
    tensors: Tensors
    layout: str
    metadata: Mapping[str, Any]

    def recipe(self) -> Fields:
        """Return what this command wrote about the model into an earlier file."""
        return Fields(self.metadata.get('mim'), 'The recipe in the file')

    def config(self) -> Fields:
        """Return the content of `config.json`."""
        return Fields(self.metadata.get('config'), 'config.json')

    def arguments(self) -> Fields:
        """Return the arguments of the training script, none if it saved something else by that name."""
        args = self.metadata.get('args')
        return Fields(args if isinstance(args, (dict, argparse.Namespace)) else None, 'The arguments in the file')


def read_source(path: Path, ema: bool = False) -> Source:
    """Read a checkpoint, a file or a folder of Hugging Face's.

    Args:
        path: File or folder.
        ema: Read the moving average of a training checkpoint.

    Raises:
        ConversionError: There is none, it is broken, or it holds more than tensors and values.
    """
    config = {}
    if path.is_dir():
        folder, path = path, next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
        if path is None:
            raise ConversionError(f"'{folder}' has no {' and no '.join(_FOLDER_FILES)}.")
    if not path.is_file():
        raise ConversionError(f"There is no file '{path}'.")
    if path.name in _FOLDER_FILES:
        config = _read_config(path.with_name('config.json'))
    if path.suffix == '.safetensors':
        if ema:
            raise _no_moving_average(path)
        return _read_safetensors(path, config)
    source = _sort_out(_read_pickle(path), path, ema)
    return source._replace(metadata={**source.metadata, 'config': config})


def write_file(path: Path, force: bool, write: Callable[[Path], None]) -> None:
    """Write a file, complete or not at all.

    Args:
        path: File to write.
        force: Replace a file that exists.
        write: Writes what is given to it.

    Raises:
        ConversionError: The file exists, or cannot be written.
    """
    if path.exists() and not force:
        raise ConversionError(f"'{path}' exists, --force replaces it.")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_complete(path, write)
    except OSError as error:
        raise ConversionError(str(error)) from error
    except RuntimeError as error:  # as torch reports a full disk
        raise ConversionError(f"'{path}' cannot be written, is the disk full? {first_line(error)}") from error


def write_safetensors(tensors: Tensors, metadata: Mapping[str, Any]) -> Callable[[Path], None]:
    """A function that writes tensors as safetensors, their metadata as JSON each."""
    texts = {'format': 'pt', **{name: json.dumps(value) for name, value in metadata.items()}}
    return lambda path: save_file(_own_memory(tensors), str(path), metadata=texts)


def write_pickle(content: Dict[str, Any]) -> Callable[[Path], None]:
    """A function that writes dictionaries of tensors and values with `torch.save`."""
    return lambda path: torch.save(_own_memory(content), path)


def write_json(content: Mapping[str, Any]) -> Callable[[Path], None]:
    """A function that writes values as JSON."""
    return lambda path: path.write_text(json.dumps(content, indent=2) + '\n')


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except OSError as error:
        raise ConversionError(f"'{path}' cannot be read: {first_line(error)}.") from error
    except (RecursionError, ValueError) as error:
        raise ConversionError(f"'{path}' is not valid JSON: {first_line(error)}.") from error


def _read_safetensors(path: Path, config: Any) -> Source:
    try:
        with safe_open(str(path), framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            texts = file.metadata() or {}
    except (*_DAMAGED, SafetensorError) as error:
        raise ConversionError(f"'{path}' is not a complete safetensors file: {first_line(error)}.") from error
    try:
        recipe = json.loads(texts.get('mim', '{}'))
    except (RecursionError, ValueError):
        recipe = {}  # another program's, and not about us
    return Source(_checked_tensors(tensors, path), 'flat', dict(mim=recipe, config=config))


def _read_pickle(path: Path) -> Any:
    try:
        with _values_only():
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f"'{path}' was not loaded: {_unpickling_reason(path, error)}.") from error
    except _DAMAGED as error:
        raise ConversionError(f"'{path}' is not a complete checkpoint: {first_line(error)}") from error


def _values_only() -> ContextManager:
    # older releases of torch have no such list, and read tensors alone
    safe_globals = getattr(torch.serialization, 'safe_globals', None)
    return nullcontext() if safe_globals is None else safe_globals(list(_VALUES_ONLY))


def _unpickling_reason(path: Path, error: Exception) -> str:
    """One line for a pickle that was refused."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # the old format of torch.save, or no checkpoint at all
        names = []
    allowed = {'argparse.Namespace', 'yacs.config.CfgNode'}
    names = [name for name in names if name not in allowed]
    if not names and 'GLOBAL ' in str(error):
        names = [str(error).split('GLOBAL ', 1)[1].split()[0]]
    if names:
        return f'it asks for {", ".join(sorted(names))}, and only tensors and plain values are read'
    return 'it is no checkpoint of tensors and plain values'


def _sort_out(content: Any, path: Path, ema: bool) -> Source:
    """Find the tensors in what `torch.save` was given."""
    if not isinstance(content, dict):
        raise ConversionError(f"'{path}' holds a {type(content).__name__}, no dictionary of tensors.")
    if ema and 'state_dict_ema' not in content:
        raise _no_moving_average(path)
    suffix = '_ema' if ema else ''
    metadata = {name: content[name] for name in ('args', 'mim') if name in content}
    if 'predictor' in content:
        layout, tensors = 'ijepa', {
            f'{part}.{name}': tensor for part in ('encoder', 'target_encoder', 'predictor') if part in content
            for name, tensor in _part(content, part, path).items()}
    elif 'state_dict' in content:
        layout, tensors = 'state_dict', _part(content, 'state_dict' + suffix, path)
        method_tensors = _method_tensors(content, 'task_state' + suffix, path)
        if method_tensors is not None:
            layout, encoder = 'task', {f'backbone.{name}': tensor for name, tensor in tensors.items()}
            tensors = {**encoder, **method_tensors}
            _check_different(encoder, method_tensors, path)
    elif isinstance(content.get('model'), dict):
        layout, tensors = 'model', _part(content, 'model', path)
    else:
        layout, tensors = 'flat', _unwrapped(content, path)
    return Source(_checked_tensors(tensors, path), layout, metadata)


def _part(content: Mapping[str, Any], name: str, path: Path) -> Dict[str, Any]:
    """Return one dictionary of tensors of a file, by the names that the tensors have in the module itself."""
    if not isinstance(content.get(name), dict):
        raise ConversionError(
            f"'{path}': {name} is of type {type(content.get(name)).__name__}, not a dictionary of tensors.")
    return _unwrapped(content[name], path)


def _method_tensors(content: Mapping[str, Any], name: str, path: Path) -> Optional[Dict[str, Any]]:
    """Return the tensors that a task of train.py adds to those of the encoder, None if there is no such task."""
    state = content.get(name)
    if state is None or (isinstance(state, dict) and 'method' not in state):
        return None
    if not isinstance(state, dict) or not isinstance(state['method'], dict):
        raise ConversionError(f"'{path}': {name} is not a dictionary with the tensors of the method.")
    return state['method']


def _check_different(encoder: Mapping[str, Any], method: Mapping[str, Any], path: Path) -> None:
    both = [str(name) for name in method if name in encoder]
    if both:
        raise ConversionError(f"'{path}' holds two tensors of the name {', '.join(both)}.")


def _checked_tensors(tensors: Mapping[str, Any], path: Path) -> Tensors:
    """Check all that does not depend on the model: each value is a plain tensor in memory, with finite numbers.

    Raises:
        ConversionError: The names of those that are not.
    """
    if not tensors:
        raise ConversionError(f"'{path}' holds no tensors.")
    strays = [str(name) for name, value in tensors.items()
              if not isinstance(value, torch.Tensor) or not isinstance(name, str)]
    if strays:
        raise ConversionError(f"'{path}' holds values that are no tensors: {', '.join(strays)}.")
    problems: Dict[str, List[str]] = {}
    for name, tensor in tensors.items():
        problem = _problem(tensor)
        if problem is not None:
            problems.setdefault(problem, []).append(name)
    if problems:
        listed = '; '.join(f'{problem}: {", ".join(names)}' for problem, names in problems.items())
        raise ConversionError(f"'{path}' holds tensors that cannot be converted: {listed}.")
    return dict(tensors)


def _problem(tensor: torch.Tensor) -> Optional[str]:
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        return 'quantized, sparse or nested'
    if tensor.device.type != 'cpu':
        return 'without numbers'  # of the meta device
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return 'larger than their memory'  # expanded: a few bytes could claim to be terabytes
    if tensor.is_floating_point():
        numbers = tensor if tensor.element_size() > 1 else tensor.float()  # isfinite knows no numbers of 8 bits
        if not torch.isfinite(numbers).all():
            return 'with numbers that are not finite'
    return None


def _no_moving_average(path: Path) -> ConversionError:
    return ConversionError(f"'{path}' has no moving average (--ema).")


def _unwrapped(tensors: Mapping[Any, Any], path: Path) -> Dict[str, Any]:
    """Return tensors by the names that they have without DistributedDataParallel and torch.compile."""
    unwrapped: Dict[str, Any] = {}
    for name, tensor in tensors.items():
        module_name = str(name)
        for wrapper in ('module.', '_orig_mod.'):
            module_name = module_name[len(wrapper):] if module_name.startswith(wrapper) else module_name
        if module_name in unwrapped:
            raise ConversionError(f"'{path}' holds two tensors of the name {module_name}, one of them as {name}.")
        unwrapped[module_name] = tensor
    return unwrapped


def _own_memory(content: Any) -> Any:
    """Tensors on the CPU, each with memory of its own: a part of a tensor would be saved with the whole."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {k: _own_memory(v) for k, v in content.items()} if isinstance(content, dict) else content
