"""Write files that are complete or not there, and JSON that every reader takes."""
import errno
import json
import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from safetensors import SafetensorError

from .errors import one_line

_PARTIAL = '.*.partial'  # what a file is called until it is complete
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_complete(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its place, to the disk, and move it there.

    Args:
        path: File to write; what is there stays until the new one is complete.
        write: Function that writes to the path that it is given.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(_PARTIAL.replace('*', path.name))
    try:
        write(partial)
        os.chmod(partial, 0o666 & ~_file_mode_mask())  # safetensors lets nobody else read
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException as e:
        partial.unlink(missing_ok=True)
        if isinstance(e, (OSError, SafetensorError)):  # safetensors has an error of its own for a full disk
            raise _cannot_be_written(path, e) from e
        raise


def remove_partial_files(folder: Path) -> None:
    """Remove what a program that was killed left of the files that it was writing, in a folder and those in it."""
    for pattern in (_PARTIAL, f'*/{_PARTIAL}'):
        for path in folder.glob(pattern):
            path.unlink()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that is written, which the system does not where a disk is full.

    Raises:
        OSError: It cannot be written.
    """
    try:
        yield
    except OSError as e:
        raise _cannot_be_written(path, e) from e


def is_full(error: OSError) -> bool:
    """Whether a file cannot be written for want of space."""
    return error.errno in _FULL


def to_json(values: Any, **options: Any) -> str:
    """Return values as JSON. Numbers that are not finite, for which JSON has no word, are null.

    Args:
        values: What `json.dumps` takes.
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
    mask = os.umask(0)  # which can only be read by setting it
    os.umask(mask)
    return mask
