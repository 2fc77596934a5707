"""Choose, create and lock the folder of a run, and write its options and results."""

import errno
import logging
import os
import socket
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO, Any, Dict, List, Optional, Tuple

import yaml

from timm.models import safe_model_name
from ..checkpoint_folder import is_checkpoint_folder
from ..files import is_full, to_json, write_complete
from .errors import UserError, one_line
from .flags.run_options import RunOptions


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
_logger = logging.getLogger(__name__)
LOCK = 'run.lock'

FILE, FOLDER = '.pth.tar', '.dcp'  # extensions of checkpoints
EXTENSIONS = (FILE, FOLDER)
LAST = 'last'
BEST = 'model_best'
PICTURES = 'reconstructions'
_OPTIONS = 'args.yaml'
ENCODER = 'encoder.safetensors'


class FolderLock:
    """Creates the folder of a run, and locks it until the block ends.

    The lock is a POSIX record lock on a file in the folder. The system releases it when the process ends, even after
    SIGKILL. Data loading workers do not inherit it, as they would inherit a lock of `flock`: a killed run can be
    resumed at once, although its workers live a few seconds longer. The lock file names the process that holds it.

    Use it as a context manager. When the block ends, the lock file is removed, and so are created folders that are
    still empty, for example after a user's mistake.
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
        """Create a folder with its parents, and return whether it is new. It is new for one of several processes.

        Args:
            folder: Folder of the run.

        Raises:
            OSError: The folder cannot be created.
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
        """Lock a folder. If the file system does not support locks, log a warning instead.

        Args:
            folder: Folder of the run, which must exist.

        Raises:
            UserError: Another process holds the lock.
            OSError: The lock file cannot be written.
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
        if not _is_at(file, path):  # the previous holder removed the file between the two calls
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
    """Warn of a run on another machine that has not ended: a file system may keep locks on each machine separately."""
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


def claim_run_folder(options: RunOptions, lock: FolderLock) -> Path:
    """Choose the folder of a run, create it if it is new, and lock it. Only the first process calls this.

    Args:
        options: Options of the run.
        lock: Lock that keeps other runs out of the folder.

    Raises:
        UserError: The folder holds another run, another process uses it, it is not writable, or the checkpoint of
            --resume does not exist.
        OSError: The disk is full.
    """
    folder = _named_folder(options)
    generated = folder is None
    if generated:
        folder = _parent(options) / '-'.join([
            datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(options.model), options.mim])
    _check_writable(folder)
    _check_belongs(folder, options)
    try:
        name = folder.name
        for number in count(2):
            if lock.make(folder) or not generated:
                break
            folder = folder.with_name(f'{name}-{number}')  # another run started in the same second
        lock.take(folder)
    except OSError as e:
        raise _not_writable(folder, e) from None
    _check_belongs(folder, options)  # again: another run may have ended in the folder before the lock
    return folder


def lies_in(checkpoint: Path, folder: Path) -> bool:
    """Return whether a checkpoint lies in a folder, also if a path with links names it."""
    return any(
        parent.is_dir() and folder.is_dir() and os.path.samefile(parent, folder)
        for parent in (checkpoint.parent, checkpoint.resolve().parent))


def names_of(name: str) -> Tuple[str, ...]:
    """Return the names that a checkpoint can have, as a file and as a folder."""
    return tuple(name + extension for extension in EXTENSIONS)


def is_last(path: Path) -> bool:
    """Return whether a checkpoint is the one that a run saved last at the end of an epoch."""
    return path.name in names_of(LAST)


def _parent(options: RunOptions) -> Path:
    return Path(options.output or './output/pretrain')


def _named_folder(options: RunOptions) -> Optional[Path]:
    """Return the folder that the options name, None if the run gets a generated name."""
    if options.experiment:
        return _parent(options) / options.experiment
    if options.resume == 'auto':
        raise UserError('--resume auto searches the run folder: name the folder with --experiment.')
    if options.resume and not options.output:
        path = Path(options.resume)
        return next((folder for folder in (path.parent, path.resolve().parent) if _holds_run(folder)), None)
    return None


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (_OPTIONS, *names_of(LAST), ENCODER))


def _check_belongs(folder: Path, options: RunOptions) -> None:
    """Check that a folder holds no other run.

    Raises:
        UserError: The folder holds another run, or the checkpoint of --resume does not exist.
    """
    if options.resume == 'auto':
        return
    if not options.resume:
        if _holds_run(folder):
            raise UserError(
                f"'{folder}' already holds a run: continue it with --resume auto, or choose another --output or "
                '--experiment.')
        return
    path = Path(options.resume)
    if not path.is_file() and not is_checkpoint_folder(path):
        raise UserError(f"--resume: there is no checkpoint '{path}'.")
    # A run that started from another run's checkpoint and was killed before its own first one may start again.
    has_results = (folder / ENCODER).exists() or any(next(folder.glob(f'*{e}'), None) for e in EXTENSIONS)
    if has_results and not lies_in(path, folder):
        raise UserError(
            f"--resume: '{path}' is not a checkpoint of '{folder}', which holds another run. Continue that run with "
            '--resume auto, or start a new one from this checkpoint with an --experiment that does not exist yet.')


def _check_writable(folder: Path) -> None:
    parent = folder.absolute()
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output: '{folder}' cannot be written, '{parent}' is not a folder that you may write to.")


def _not_writable(path: Path, error: OSError) -> Exception:
    """Return the error to raise for an unwritable file or folder: an `OSError` if the disk is full, else a `UserError`.
    """
    if is_full(error):
        return OSError(f"'{path}' cannot be written: {one_line(error)}")
    return UserError(f"--output: '{path}' cannot be written: {error.strerror or one_line(error)}.")


def save_options(folder: Path, options: RunOptions) -> None:
    """Write the options of a run to `args.yaml` in its folder, and create the folder for pictures.

    Args:
        folder: Folder of the run.
        options: Options of the run.

    Raises:
        OSError: The disk is full.
        UserError: The folder is not writable.
    """
    path = folder / _OPTIONS
    try:
        (folder / PICTURES).mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(plain_options(options), sort_keys=False))
    except OSError as e:
        raise _not_writable(path, e) from None


def first_checkpoint(folder: Path) -> Optional[str]:
    """Return the checkpoint that the run in a folder started from, None if it started without one."""
    path = folder / _OPTIONS
    try:
        options = yaml.safe_load(path.read_text()) if path.exists() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    resume = options.get('resume') if isinstance(options, dict) else None
    return resume if resume not in (None, '', 'auto') else None


def plain_options(options: RunOptions) -> Dict[str, Any]:
    """Return options as a dictionary of plain values for YAML and checkpoints. Tuples become lists."""
    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    return {name: plain(value) for name, value in vars(options).items()}


def save_results(path: Path, results: Dict[str, Any]) -> None:
    """Write the results of a run as JSON."""
    write_complete(path, lambda partial: partial.write_text(to_json(results, indent=2) + '\n'))
