"""Write and read checkpoints that are folders, with `torch.distributed.checkpoint`.

A folder holds the tensors in files that several processes write and read at the same time, each process its own part:

    .metadata       where each tensor lies, a pickle of PyTorch
    __0_0.distcp    the tensors, one file for each process that wrote
    content.pt      everything else; each tensor stands in it with its shape, without its values

A tensor has the name of its place in the content, such as `state_dict.blocks.0.attn.qkv.weight`. Any number of
processes can read the folder, whatever number wrote it.
"""
import io
import os
import pickle
import warnings
import zlib
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple

import torch

from .errors import one_line
from .files import verify_archive, write_complete

try:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, metadata as dcp_metadata
    from torch.distributed.tensor import DTensor
    has_folders = hasattr(dcp, 'async_save')
except ImportError:  # before PyTorch 2.5
    has_folders = False

__all__ = [
    'CONTENT', 'complete_folder', 'has_folders', 'is_sharded', 'is_checkpoint_folder', 'named_tensors', 'read_tensors',
    'start_writing', 'verify_folder', 'without_values',
]

CONTENT = 'content.pt'
_METADATA = '.metadata'
_CHECKSUM = 'checksum_of_metadata'

# PyTorch says for each save and load of a single process that it is one
warnings.filterwarnings('ignore', message='torch.distributed is disabled, unavailable or uninitialized')


def is_checkpoint_folder(path: Path) -> bool:
    """Return whether a path is a folder with a checkpoint."""
    return (path / CONTENT).is_file()


def is_sharded(value: Any) -> bool:
    """Return whether a value is a tensor that is divided over processes."""
    return has_folders and isinstance(value, DTensor)


def named_tensors(state: Any, name: str = '') -> Iterator[Tuple[str, torch.Tensor]]:
    """Yield the tensors of a nested state that a folder stores in its shared files, with their names.

    Numbers that are tensors, such as the step counts of an optimizer, are not among them: they are part of the content.

    Args:
        state: Nested dictionaries and lists.
        name: Name of the state itself.
    """
    if _has_values_apart(state):
        yield name, state
        return
    for key, value in _entries(state):
        yield from named_tensors(value, f'{name}.{key}' if name else str(key))


def without_values(state: Any) -> Any:
    """Return a nested state in which each tensor of `named_tensors` has only a shape, a type and strides.

    The result does not change when the state does.
    """
    return _map_tensors(state, lambda name, tensor: torch.empty_like(_as_plain(tensor), device='meta'))


def _as_plain(tensor: torch.Tensor) -> torch.Tensor:
    if is_sharded(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device='meta')
    return tensor.detach()


def _map_tensors(state: Any, function: Callable, name: str = '') -> Any:
    if _has_values_apart(state):
        return function(name, state)
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, (dict, list, tuple)):
        values = [
            _map_tensors(value, function, f'{name}.{key}' if name else str(key)) for key, value in _entries(state)]
        return dict(zip(state, values)) if isinstance(state, dict) else type(state)(values)
    return state


def _has_values_apart(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.dim() > 0 or is_sharded(value))


def _entries(state: Any) -> Iterator[Tuple[Any, Any]]:
    if isinstance(state, dict):
        yield from state.items()
    elif isinstance(state, (list, tuple)):
        yield from enumerate(state)


def start_writing(
        folder: Path,
        tensors: Mapping[str, torch.Tensor],
        group: Optional[Any] = None,
) -> Future:
    """Copy tensors into main memory, and begin to write the copies to a folder in a thread.

    Args:
        folder: Folder to write. Others must not read it before `complete_folder`.
        tensors: Tensors by name. The processes of a group give the same sharded tensors; a tensor that is not sharded
            is given by one of them.
        group: Processes that write together, all of which call this; it needs a backend for the CPU. None if this
            process writes alone.

    Returns:
        The result of the thread: None, or the error of the first process that had one.
    """
    return dcp.async_save(
        dict(tensors),
        storage_writer=FileSystemWriter(folder),
        planner=dcp.DefaultSavePlanner(flatten_state_dict=False),
        process_group=group,
        no_dist=group is None,
    )


def complete_folder(folder: Path, content: Dict[str, Any]) -> None:
    """Write the content to a folder whose tensors are written.

    Args:
        folder: Folder of `start_writing`.
        content: Result of `without_values`.

    Raises:
        OSError: The content cannot be written, or the folder lacks files that other processes wrote.
    """
    checksum = zlib.crc32((folder / _METADATA).read_bytes())
    try:
        _check_sizes(folder, _read_metadata(folder))
    except ValueError as e:
        raise OSError(f'{one_line(e)}. All machines of a run with --fsdp must share the folder of the run.') from e
    write_complete(folder / CONTENT, lambda path: torch.save({**content, _CHECKSUM: checksum}, path))


def verify_folder(folder: Path, content: Mapping[str, Any], tensors: bool = True) -> None:
    """Compare a folder with its checksums.

    Args:
        folder: Folder of a checkpoint.
        content: Its content, whose own checksums `timm.mim.files.verify_checksums` compares.
        tensors: Compare the tensors too, which reads all files. Otherwise only the sizes of the files are compared.

    Raises:
        ValueError: The folder is damaged, or not complete.
        OSError: A file cannot be read.
    """
    if zlib.crc32((folder / _METADATA).read_bytes()) != content.get(_CHECKSUM):
        raise ValueError(f"'{folder / _METADATA}' is damaged: its checksum is another")
    metadata = _read_metadata(folder)
    _check_sizes(folder, metadata)
    if not tensors:
        return
    for place in sorted(metadata.storage_data.values(), key=lambda place: (place.relative_path, place.offset)):
        with open(folder / place.relative_path, 'rb') as file:
            file.seek(place.offset)
            part = io.BytesIO(file.read(place.length))
        try:
            verify_archive(part)
        except Exception as e:  # a damaged archive makes zipfile fail in many ways
            raise ValueError(f"'{folder / place.relative_path}' is damaged: {one_line(e)[:200]}") from e


def _check_sizes(folder: Path, metadata: Any) -> None:
    """Check that a folder has the files that its metadata name.

    Raises:
        ValueError: It lacks a file or a part of one.
    """
    ends: Dict[str, int] = {}
    for place in metadata.storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in ends.items():
        path = folder / name
        if os.path.basename(name) != name:
            raise ValueError(f"'{folder / _METADATA}' names a file outside its folder, {name}")
        if not path.is_file() or path.stat().st_size < end:
            raise ValueError(f"'{folder}' is not complete: {name} is missing or shorter than {end} bytes")


def read_tensors(
        folder: Path,
        content: Any,
        name: str = '',
        like: Optional[Mapping[str, torch.Tensor]] = None,
) -> Any:
    """Return content with the values of its tensors.

    Args:
        folder: Folder of a checkpoint.
        content: Content of the folder, or a part of it.
        name: Name of that part, such as `state_dict`.
        like: Tensors by name. Where one of them is sharded, the result is sharded in the same way, and this process
            reads only its own part.

    Raises:
        ValueError: The folder does not have these tensors.
    """
    like = like or {}
    tensors: Dict[str, torch.Tensor] = {}

    def add(tensor_name: str, tensor: torch.Tensor) -> torch.Tensor:
        model = like.get(tensor_name)
        if is_sharded(model) and model.shape == tensor.shape:
            tensors[tensor_name] = torch.empty_like(model.detach(), dtype=tensor.dtype)
        else:
            tensors[tensor_name] = torch.empty_like(tensor, device='cpu')
        return tensors[tensor_name]

    found = _map_tensors(content, add, name)
    if not tensors:
        return found
    try:
        dcp.load(
            tensors,
            storage_reader=_Reader(folder),
            planner=dcp.DefaultLoadPlanner(flatten_state_dict=False),
            no_dist=True,  # each process reads what it needs
        )
    except dcp.api.CheckpointException as e:
        raise ValueError(f"'{folder}' cannot be read: {reason_of(e)}") from e
    return found


def reason_of(error: BaseException) -> str:
    """Return in one line why a folder cannot be written or read: the error of the first process that had one."""
    failures = getattr(error, 'failures', None) or {0: (error, None)}
    rank, (reason, _) = next(iter(failures.items()))
    # on a full disk PyTorch raises an error of its own, while it handles that of the system
    reason = reason.__context__ if isinstance(reason.__context__, OSError) else reason
    return f'rank {rank}: {one_line(reason)}' if rank else one_line(reason)


if has_folders:
    class _Reader(FileSystemReader):
        """Reads a folder. Code that its metadata may contain is never run."""

        def read_metadata(self, *args, **kwargs):
            metadata = _read_metadata(Path(self.path))
            metadata.storage_meta = metadata.storage_meta or dcp_metadata.StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata


def _read_metadata(folder: Path) -> Any:
    try:
        with open(folder / _METADATA, 'rb') as file:
            metadata = _MetadataUnpickler(file).load()
        if isinstance(metadata, dcp_metadata.Metadata) and metadata.storage_data is not None:
            return metadata
        reason = 'it is something else'
    except OSError:
        raise
    except Exception as e:  # a damaged pickle raises errors of many types
        reason = one_line(e)[:200]
    raise ValueError(f"'{folder / _METADATA}' is not the metadata of a checkpoint: {reason}")


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the values that PyTorch writes into metadata, and refuses everything else."""

    _names = {
        'torch.distributed.checkpoint.metadata': (
            'ChunkStorageMetadata', 'Metadata', 'MetadataIndex', 'StorageMeta', 'TensorProperties',
            'TensorStorageMetadata', '_MEM_FORMAT_ENCODING'),  # no bytes, which PyTorch would unpickle
        'torch.distributed.checkpoint.filesystem': ('_StorageInfo',),
        'torch.serialization': ('_get_layout',),
        'torch': ('Size',),
        'pathlib': ('PosixPath', 'WindowsPath'),
        'pathlib._local': ('PosixPath', 'WindowsPath'),  # Python 3.13
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in ('PosixPath', 'WindowsPath') and module in self._names:
            return Path  # the one of this system
        if name in self._names.get(module, ()):
            return super().find_class(module, name)
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f'it needs {module}.{name}')
