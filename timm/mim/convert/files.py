""" Reading and Writing of Checkpoint Files

Reading runs no code of a file: pickles are read with `weights_only=True`. Next to tensors, training scripts save their
settings in two classes that hold nothing but values, and these are let through: `argparse.Namespace`, and the `CfgNode`
of yacs, which is read as a dictionary. Writing is complete or not at all.
"""
import argparse
import json
import os
import pickle
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Mapping, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .checkpoint import ConversionError, Tensors

__all__ = ['Source', 'read_source', 'write_file', 'write_json', 'write_pickle', 'write_safetensors']

_FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')  # weights in a folder of Hugging Face's
_VALUES_ONLY = (argparse.Namespace, (OrderedDict, 'yacs.config.CfgNode'))


class Source(NamedTuple):
    """ What a file holds.

    Attributes:
        tensors: Tensors by the names of the file, without those parts of a name that wrappers of modules add.
        layout: Where they stood, 'flat', 'model', 'state_dict', 'task' or 'ijepa'.
        metadata: What stood next to them.
    """
    tensors: Tensors
    layout: str
    metadata: Mapping[str, Any]


def read_source(path: Path, ema: bool = False) -> Source:
    """ Read a checkpoint, a file or a folder of Hugging Face's.

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
    """ Write a file, complete or not at all.

    Args:
        path: File to write.
        force: Replace a file that exists.
        write: Writes what is given to it.

    Raises:
        ConversionError: The file exists, or cannot be written.
    """
    if path.exists() and not force:
        raise ConversionError(f"'{path}' exists, --force replaces it.")
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that nobody else may read
        os.replace(temporary, path)
    except OSError as error:
        raise ConversionError(f"'{path}' cannot be written: {_first_line(error)}") from error
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors say so in words of their own
        raise ConversionError(f"'{path}' cannot be written, is the disk full? {_first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(tensors: Tensors, metadata: Mapping[str, Any]) -> Callable[[Path], None]:
    """ A function that writes tensors as safetensors, their metadata as JSON each.
    """
    texts = {'format': 'pt', **{name: json.dumps(value) for name, value in metadata.items()}}
    return lambda path: save_file(_own_memory(tensors), str(path), metadata=texts)


def write_pickle(content: Dict[str, Any]) -> Callable[[Path], None]:
    """ A function that writes dictionaries of tensors and values with `torch.save`.
    """
    return lambda path: torch.save(_own_memory(content), path)


def write_json(content: Mapping[str, Any]) -> Callable[[Path], None]:
    """ A function that writes values as JSON.
    """
    return lambda path: path.write_text(json.dumps(content, indent=2) + '\n')


def _read_config(path: Path) -> Dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConversionError(f"'{path}' is not valid JSON: {error}.") from error


def _read_safetensors(path: Path, config: Mapping[str, Any]) -> Source:
    try:
        with safe_open(str(path), framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            texts = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"'{path}' is not a complete safetensors file: {error}.") from error
    try:
        recipe = json.loads(texts.get('mim', '{}'))
    except ValueError:
        recipe = {}  # another program's, and not about us
    return Source(tensors, 'flat', dict(mim=recipe, config=config))


def _read_pickle(path: Path) -> Any:
    try:
        with _values_only():
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f"'{path}' was not loaded: {_unpickling_reason(path, error)}.") from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConversionError(f"'{path}' is not a complete checkpoint: {_first_line(error)}") from error


def _values_only() -> ContextManager:
    # older releases of torch have no such list, and read tensors alone
    safe_globals = getattr(torch.serialization, 'safe_globals', None)
    return nullcontext() if safe_globals is None else safe_globals(list(_VALUES_ONLY))


def _unpickling_reason(path: Path, error: Exception) -> str:
    """ One line for a pickle that was refused.
    """
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
    """ Find the tensors in what `torch.save` was given.
    """
    if not isinstance(content, dict):
        raise ConversionError(f"'{path}' holds a {type(content).__name__}, no dictionary of tensors.")
    if ema and 'state_dict_ema' not in content:
        raise _no_moving_average(path)
    suffix = '_ema' if ema else ''
    metadata = {name: content[name] for name in ('args', 'mim') if name in content}
    parts = ('encoder', 'target_encoder', 'predictor')
    if isinstance(content.get('predictor'), dict):
        tensors = {f'{part}.{_unwrapped(name)}': tensor
                   for part in parts for name, tensor in content.get(part, {}).items()}
        layout = 'ijepa'
    elif isinstance(content.get('state_dict'), dict):
        tensors, layout = {_unwrapped(k): v for k, v in content['state_dict' + suffix].items()}, 'state_dict'
        method_tensors = (content.get('task_state' + suffix) or {}).get('method')
        if isinstance(method_tensors, dict):
            tensors = {**{f'backbone.{name}': tensor for name, tensor in tensors.items()}, **method_tensors}
            layout = 'task'
    else:
        layout = 'model' if isinstance(content.get('model'), dict) else 'flat'
        tensors = {_unwrapped(k): v for k, v in (content['model'] if layout == 'model' else content).items()}
    strays = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strays or not tensors:
        what = f'values that are no tensors: {", ".join(strays)}' if strays else 'no tensors'
        raise ConversionError(f"'{path}' holds {what}.")
    return Source(tensors, layout, metadata)


def _no_moving_average(path: Path) -> ConversionError:
    return ConversionError(f"'{path}' has no moving average (--ema).")


def _unwrapped(name: Any) -> str:
    """ The name of a tensor in the module itself, without DistributedDataParallel and torch.compile.
    """
    name = str(name)
    for wrapper in ('module.', '_orig_mod.'):
        name = name[len(wrapper):] if name.startswith(wrapper) else name
    return name


def _own_memory(content: Any) -> Any:
    """ Tensors on the CPU, each with memory of its own: a part of a tensor would be saved with the whole.
    """
    if isinstance(content, torch.Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {k: _own_memory(v) for k, v in content.items()} if isinstance(content, dict) else content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
