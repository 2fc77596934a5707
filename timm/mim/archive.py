"""Checksums of Checkpoint Files

`torch.save` writes a zip archive with a checksum of each tensor, and `torch.load` does not look at them: a file with a
flipped bit is loaded as if nothing were wrong.
"""
import os
import zipfile
from typing import Union

__all__ = ['verify_checksums']

_CHUNK = 1 << 20  # bytes that are read at a time


def verify_checksums(path: Union[str, os.PathLike], tensors: bool = True) -> None:
    """Compare what an archive holds with its checksums. Files that are no archive have none, and pass.

    Args:
        path: File that `torch.save` wrote.
        tensors: Compare the tensors too, which reads the whole file.

    Raises:
        ValueError: A checksum differs, or the archive is damaged.
        OSError: The file cannot be read.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if tensors or '/data/' not in entry.filename:
                    with archive.open(entry) as part:  # it compares when it comes to the end
                        while part.read(_CHUNK):
                            pass
    except OSError:
        raise
    except Exception as e:  # where a header is damaged there is no telling how it fails
        reason = ' '.join(str(e).split()) or type(e).__name__
        raise ValueError(f"'{path}' is damaged: {reason[:200]}") from e
