"""Whether a tar file is one, and is there to its end."""
import os
import tarfile

from ..errors import UserError, one_line

_BLOCK = tarfile.BLOCKSIZE


def check_archive(path: str) -> None:
    """Check that a file begins like a tar file and ends like a complete one.

    A tar file ends with two blocks of zeros. Without them it was cut short: `tarfile` lists what is left of it, so that
    a run would go on with a part of the images and not say so.

    Args:
        path: Archive that is not compressed.

    Raises:
        UserError: It is no tar file, or was cut short.
    """
    try:
        with tarfile.open(path, 'r:'):
            pass
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 2 * _BLOCK))
            ending = file.read()
    except (OSError, tarfile.TarError) as e:
        raise UserError(f"--data-dir: '{path}' is no tar file that can be read: {one_line(e)}.") from e
    if size % _BLOCK or len(ending) < 2 * _BLOCK or any(ending):
        raise UserError(f"--data-dir: '{path}' was cut short, it does not end as a tar file does: copy it again.")
