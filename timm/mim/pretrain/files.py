"""Files that are complete, or not there."""
import os
from pathlib import Path
from typing import Callable

from safetensors import SafetensorError

from .errors import one_line


def write_complete(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its place, to the disk, and move it there.

    Args:
        path: File to write; what is there stays until the new one is complete.
        write: Function that writes to the path that it is given.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(f'.{path.name}.partial')
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
            raise OSError(f"'{path}' cannot be written: {one_line(e)}") from e
        raise


def _file_mode_mask() -> int:
    mask = os.umask(0)  # which can only be read by setting it
    os.umask(mask)
    return mask
