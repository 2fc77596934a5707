"""A lock on a folder that ends with its process, so that one run at a time writes to a run folder."""
import errno
import logging
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import IO, List, Optional

from .errors import UserError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_logger = logging.getLogger(__name__)

LOCK = 'run.lock'


class FolderLock:
    """Makes the folder of a run and locks it until the block ends.

    The lock is a POSIX record lock on a file in the folder. The system drops it with the process, also after SIGKILL.
    Processes that load images do not inherit it, as they would inherit one of `flock`: a run that was killed can go on
    at once, although its loaders live a few seconds longer. The file says who has the lock.

    Used as a context manager. At the end the lock file is removed, and so are folders that it made and that are empty,
    as after a user's mistake.
    """

    def __init__(self) -> None:
        self._file: Optional[IO[str]] = None
        self._path: Optional[Path] = None
        self._made: List[Path] = []  # parents first

    def __enter__(self) -> 'FolderLock':
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            if _is_at(self._file, self._path):
                self._path.unlink()
            self._file.close()
            self._file = None
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:  # not empty, as after a run
                break
        self._made = []

    def make(self, folder: Path) -> bool:
        """Make a folder with its parents, and return whether it is new. Of several processes one makes it.

        Args:
            folder: Folder of the run.

        Raises:
            OSError: It cannot be made.
        """
        parent, missing = folder.absolute().parent, []
        while not os.path.lexists(parent):
            missing.append(parent)
            parent = parent.parent
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():
                raise
            return False
        self._made.append(folder)
        return True

    def take(self, folder: Path) -> None:
        """Lock a folder. Where the file system has no locks, a warning says so.

        Args:
            folder: Folder of the run, which exists.

        Raises:
            UserError: Another process has the lock.
            OSError: The folder cannot be written.
        """
        path = folder / LOCK
        file = open(path, 'a+')
        try:
            _lock(file)
        except OSError as e:
            holder = _holder(file)
            file.close()
            if e.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"'{folder}' is in use by another run{holder}: wait for its end, or choose another --experiment."
                ) from None
            path.unlink(missing_ok=True)
            _logger.warning(
                f"'{folder}' cannot be locked ({one_line(e)}): make sure that no other run writes to it.")
            return
        if not _is_at(file, path):  # whoever had the lock removed the file between the two calls
            file.close()
            self.take(folder)
            return
        _warn_of_another_machine(folder, file)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n')
        file.flush()
        self._file, self._path = file, path


def _lock(file: IO[str]) -> None:
    if fcntl is None:
        raise OSError(errno.ENOTSUP, 'this system has no fcntl')
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _warn_of_another_machine(folder: Path, file: IO[str]) -> None:
    """Warn of a run on another machine that has not ended: file systems may keep locks on each machine alone."""
    holder = _holder(file)
    if holder and f' on {socket.gethostname()},' not in holder:
        _logger.warning(
            f"'{folder}' was last used by another run{holder}, which did not end by itself: make sure that it is gone.")


def _holder(file: IO[str]) -> str:
    file.seek(0)
    text = file.read(200).strip()
    return f' ({text})' if text else ''


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
