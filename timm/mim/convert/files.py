"""Read and write checkpoint files.

A file may come from an untrusted source. Reading never runs code from it: pickles are read with `weights_only=True`.
Training scripts store their settings next to the tensors in two classes that contain only values, and these are
allowed: `argparse.Namespace`, and the `CfgNode` of yacs, which is read as a dictionary. `_checked_tensors` checks every
tensor once, so that the rest of the conversion need not. Files are written atomically.
"""
import argparse
import json
import pickle
import struct
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..checkpoint_folder import CONTENT, is_checkpoint_folder, read_tensors, verify_folder
from ..errors import first_line
from ..files import naming, verify_checksums, write_complete
from .checkpoint import ConversionError, Tensors
from .fields import Fields

__all__ = ['Source', 'read_source', 'write_file', 'write_json', 'write_pickle', 'write_safetensors']

_FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')  # weights in a Hugging Face folder
# errors of torch, zipfile and the unpickler for a damaged checkpoint, or a file that is not a checkpoint
_DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, struct.error)
_UNUSED_IN_SPARK = ('imn_m', 'imn_s', 'norm_black')
_VALUES_ONLY = (argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode'))


class Source(NamedTuple):
    """Contents of a file.

    Attributes:
        tensors: Tensors by their names in the file, without the prefixes that DistributedDataParallel and torch.compile
            add.
        layout: Structure of the file, 'flat', 'model', 'state_dict', 'task', 'ijepa' or 'spark'.
        metadata: Values next to the tensors: 'mim', written by this command, 'args' of a training script, 'config', the
            content of `config.json`, and 'spark', the values in a file of SparK.
    """
    tensors: Tensors
    layout: str
    metadata: Mapping[str, Any]

    def recipe(self) -> Fields:
        """Return the recipe of the model, if this command wrote the file."""
        return Fields(self.metadata.get('mim'), 'The recipe in the file')

    def config(self) -> Fields:
        """Return the content of `config.json`."""
        return Fields(self.metadata.get('config'), 'config.json')

    def arguments(self) -> Fields:
        """Return the arguments of the training script, empty if `args` is not a dictionary or namespace."""
        args = self.metadata.get('args')
        return Fields(args if isinstance(args, (dict, argparse.Namespace)) else None, 'The arguments in the file')


def read_source(path: Path, ema: bool = False) -> Source:
    """Read a checkpoint from a file, a folder of train.py or a Hugging Face folder.

    Args:
        path: File or folder.
        ema: Read the moving average of a training checkpoint.

    Raises:
        ConversionError: The file is missing or damaged, or contains objects other than tensors and plain values.
    """
    config = {}
    if is_checkpoint_folder(path):
        return _sort_out(_read_checkpoint_folder(path, ema), path, ema)
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
    """Write a file atomically.

    Args:
        path: File to write.
        force: Replace an existing file.
        write: Function that writes the file to the path that it gets.

    Raises:
        ConversionError: The file exists and `force` is not set, or it cannot be written.
    """
    if path.exists() and not force:
        raise ConversionError(f"'{path}' exists, --force replaces it.")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_complete(path, write)
    except OSError as error:
        raise ConversionError(str(error)) from error
    except RuntimeError as error:  # torch raises this when the disk is full
        raise ConversionError(f"'{path}' cannot be written, is the disk full? {first_line(error)}") from error


def write_safetensors(tensors: Tensors, metadata: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes tensors as safetensors, with each metadata value as JSON."""
    texts = {'format': 'pt', **{name: json.dumps(value) for name, value in metadata.items()}}
    return lambda path: save_file(_own_memory(tensors), str(path), metadata=texts)


def write_pickle(content: Dict[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes dictionaries of tensors and values with `torch.save`."""
    return lambda path: torch.save(_own_memory(content), path)


def write_json(content: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes values as JSON."""
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
        recipe = {}  # written by another program under the same name
    return Source(_checked_tensors(tensors, path), 'flat', dict(mim=recipe, config=config))


def _read_pickle(path: Path) -> Any:
    try:
        verify_checksums(path)
    except (OSError, ValueError) as error:
        raise ConversionError(f'{first_line(error)}.') from error
    try:
        with _values_only():
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f"'{path}' was not loaded: {_unpickling_reason(path, error)}.") from error
    except _DAMAGED as error:
        raise ConversionError(f"'{path}' is not a complete checkpoint: {first_line(error)}") from error


def _read_checkpoint_folder(folder: Path, ema: bool) -> Any:
    """Read the weights and the values of a checkpoint of train.py that is a folder, without the optimizer's state."""
    content = _read_pickle(folder / CONTENT)
    try:
        verify_folder(folder, content)
        suffix = '_ema' if ema else ''
        for name in (f'state_dict{suffix}', f'task_state{suffix}'):
            if name in content:
                content[name] = read_tensors(folder, content[name], name)
    except (OSError, ValueError) as error:
        raise ConversionError(f'{first_line(error)}.') from error
    return content


def _values_only() -> ContextManager:
    # older releases of torch have no `safe_globals`, and then read tensors only
    safe_globals = getattr(torch.serialization, 'safe_globals', None)
    return nullcontext() if safe_globals is None else safe_globals(list(_VALUES_ONLY))


def _unpickling_reason(path: Path, error: Exception) -> str:
    """Return why torch refused a pickle, in one line."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # the old format of torch.save, or not a checkpoint
        names = []
    allowed = {'argparse.Namespace', 'yacs.config.CfgNode'}
    names = [name for name in names if name not in allowed]
    if not names and 'GLOBAL ' in str(error):
        names = [str(error).split('GLOBAL ', 1)[1].split()[0]]
    if names:
        return f'it needs {", ".join(sorted(names))}, but only tensors and plain values are read'
    return 'it is not a checkpoint of tensors and plain values'


def _sort_out(content: Any, path: Path, ema: bool) -> Source:
    """Find the tensors in the content of a file that `torch.save` wrote."""
    if not isinstance(content, dict):
        raise ConversionError(f"'{path}' contains a {type(content).__name__}, not a dictionary of tensors.")
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
    elif isinstance(content.get('module'), dict):
        layout, tensors = 'spark', _part(content, 'module', path)
        tensors, metadata['spark'] = _spark_parts(tensors, content)
    elif isinstance(content.get('model'), dict):
        layout, tensors = 'model', _part(content, 'model', path)
    else:
        layout, tensors = 'flat', _unwrapped(content, path)
    return Source(_checked_tensors(tensors, path), layout, metadata)


def _part(content: Mapping[str, Any], name: str, path: Path) -> Dict[str, Any]:
    """Return one dictionary of tensors of a file, with wrapper prefixes removed from the names."""
    if not isinstance(content.get(name), dict):
        raise ConversionError(
            f"'{path}': {name} is of type {type(content.get(name)).__name__}, not a dictionary of tensors.")
    return _unwrapped(content[name], path)


def _spark_parts(module: Mapping[str, Any], content: Mapping[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return the tensors of a file of SparK, without the buffers that it does not use or define, and its settings."""
    tensors = {name: tensor for name, tensor in module.items() if name not in _UNUSED_IN_SPARK}
    config = tensors.pop('config', None)
    values = {name: content[name] for name in ('arch', 'input_size') if name in content}
    return tensors, {**(config if isinstance(config, dict) else {}), **values}


def _method_tensors(content: Mapping[str, Any], name: str, path: Path) -> Optional[Dict[str, Any]]:
    """Return the tensors of the method in the task state of train.py, or None if the file has no such state."""
    state = content.get(name)
    if state is None or (isinstance(state, dict) and 'method' not in state):
        return None
    if not isinstance(state, dict) or not isinstance(state['method'], dict):
        raise ConversionError(f"'{path}': {name} is not a dictionary with the tensors of the method.")
    return state['method']


def _check_different(encoder: Mapping[str, Any], method: Mapping[str, Any], path: Path) -> None:
    both = [str(name) for name in method if name in encoder]
    if both:
        raise ConversionError(f"'{path}' contains two tensors with the name {', '.join(both)}.")


def _checked_tensors(tensors: Mapping[str, Any], path: Path) -> Tensors:
    """Check that each value is a plain CPU tensor with finite numbers.

    Raises:
        ConversionError: Some values are not. The message lists their names.
    """
    if not tensors:
        raise ConversionError(f"'{path}' contains no tensors.")
    strays = [str(name) for name, value in tensors.items()
              if not isinstance(value, torch.Tensor) or not isinstance(name, str)]
    if strays:
        raise ConversionError(f"'{path}' contains values that are not tensors: {', '.join(strays)}.")
    problems: Dict[str, List[str]] = {}
    for name, tensor in tensors.items():
        problem = _problem(tensor)
        if problem is not None:
            problems.setdefault(problem, []).append(name)
    if problems:
        listed = '; '.join(f'{problem}: {", ".join(names)}' for problem, names in problems.items())
        raise ConversionError(f"'{path}' contains tensors that cannot be converted: {listed}.")
    return dict(tensors)


def _problem(tensor: torch.Tensor) -> Optional[str]:
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        return 'quantized, sparse or nested'
    if tensor.device.type != 'cpu':
        return 'without data'  # on the meta device
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return 'larger than their memory'  # an expanded tensor: a few bytes could become terabytes
    if tensor.is_floating_point():
        numbers = tensor if tensor.element_size() > 1 else tensor.float()  # isfinite does not support 8-bit floats
        if not torch.isfinite(numbers).all():
            return 'with infinite numbers or NaN'
    return None


def _no_moving_average(path: Path) -> ConversionError:
    return ConversionError(f"'{path}' contains no moving average; omit --ema.")


def _unwrapped(tensors: Mapping[Any, Any], path: Path) -> Dict[str, Any]:
    """Return tensors by their names without the prefixes of DistributedDataParallel and torch.compile."""
    unwrapped: Dict[str, Any] = {}
    for name, tensor in tensors.items():
        module_name = str(name)
        for wrapper in ('module.', '_orig_mod.'):
            module_name = module_name[len(wrapper):] if module_name.startswith(wrapper) else module_name
        if module_name in unwrapped:
            raise ConversionError(f"'{path}' contains two tensors with the name {module_name}, one of them as {name}.")
        unwrapped[module_name] = tensor
    return unwrapped


def _own_memory(content: Any) -> Any:
    """Copy tensors to the CPU, each into its own memory; torch.save would write the whole storage of a view."""
    if isinstance(content, torch.Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {k: _own_memory(v) for k, v in content.items()} if isinstance(content, dict) else content
