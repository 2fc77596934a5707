"""Write files atomically, and write JSON that every parser accepts."""
import errno
import json
import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Union

from safetensors import SafetensorError

from .errors import one_line

__all__ = [
    'is_full', 'naming', 'remove_partial_files', 'to_json', 'verify_archive', 'verify_checksums',
    'write_complete',
]

_PARTIAL = '.*.partial'  # name of a file until it is complete
_CHUNK = 1 << 20  # bytes that are read at a time
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_complete(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically: write a temporary file in the same folder, flush it to the disk, and rename it.

    Args:
        path: File to write. An existing file stays until the new one is complete.
        write: Function that writes the file to the path that it gets.

    Raises:
        OSError: The file cannot be written.
    """
    partial = path.with_name(_PARTIAL.replace('*', path.name))
    try:
        write(partial)
        os.chmod(partial, 0o666 & ~_file_mode_mask())  # safetensors makes files that only their owner can read
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException as e:
        partial.unlink(missing_ok=True)
        if isinstance(e, (OSError, SafetensorError)):  # safetensors raises its own error when the disk is full
            raise _cannot_be_written(path, e) from e
        raise


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and its direct subfolders."""
    for pattern in (_PARTIAL, f'*/{_PARTIAL}'):
        for path in folder.glob(pattern):
            path.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path of the file to an OSError; the system's message for a full disk does not name it.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        yield
    except OSError as e:
        raise _cannot_be_written(path, e) from e


def is_full(error: OSError) -> bool:
    """Whether an error means that the disk, the quota or the maximum file size is exhausted."""
    return error.errno in _FULL


def to_json(values: Any, **options: Any) -> str:
    """Return values as JSON. NaN and infinite numbers, which JSON cannot express, become null.

    Args:
        values: Values that `json.dumps` accepts.
        **options: Options of `json.dumps`.
    """
    return json.dumps(_finite(values), allow_nan=False, **options)


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _cannot_be_written(path: Path, error: Exception) -> OSError:
    return OSError(f"'{path}' cannot be written: {one_line(error)}")


def _file_mode_mask() -> int:
    mask = os.umask(0)  # the only way to read the mask is to set it
    os.umask(mask)
    return mask


def verify_checksums(path: Union[str, os.PathLike], tensors: bool = True) -> None:
    """Compare the content of a file of `torch.save` with its checksums.

    Such a file is a zip archive with a checksum of each tensor, which `torch.load` ignores: it loads a file with a
    flipped bit without an error. Files of other formats have no checksums, and pass.

    Args:
        path: File that `torch.save` wrote.
        tensors: Compare the tensors too, which reads the whole file.

    Raises:
        ValueError: A checksum differs, or the archive is damaged.
        OSError: The file cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            verify_archive(path, tensors)
    except OSError:
        raise
    except Exception as e:  # a damaged header makes zipfile fail in many ways
        raise ValueError(f"'{path}' is damaged: {one_line(e)[:200]}") from e


def verify_archive(file: Union[str, os.PathLike, BinaryIO], tensors: bool = True) -> None:
    """Compare the content of an archive of `torch.save` with its checksums, see `verify_checksums`.

    Raises:
        Exception: A checksum differs, or the archive is damaged. Errors are of many types.
    """
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if tensors or '/data/' not in entry.filename:
                with archive.open(entry) as part:  # zipfile compares at the end
                    while part.read(_CHUNK):
                        pass
