"""The folder of a pre-training run: where it is, whose it is, what lies in it."""
import argparse
import os
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Dict, Optional

import yaml

from timm.models import safe_model_name
from .encoder_files import ENCODER
from .errors import UserError, one_line
from .files import is_full, to_json, write_complete
from .folder_lock import FolderLock

LAST = 'last.pth.tar'
BEST = 'model_best.pth.tar'
PICTURES = 'reconstructions'
_OPTIONS = 'args.yaml'


def claim_run_folder(options: argparse.Namespace, lock: FolderLock) -> Path:
    """Decide on the folder of a run, make it if it is new, and lock it. The first process does so for all.

    Args:
        options: Options of the run.
        lock: Lock that keeps other runs out of the folder.

    Raises:
        UserError: The folder holds another run, another process runs in it, it cannot be written, or there is no such
            checkpoint.
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
            folder = folder.with_name(f'{name}-{number}')  # another run began in the same second
        lock.take(folder)
    except OSError as e:
        raise _not_writable(folder, e) from None
    _check_belongs(folder, options)  # once more: a run may have ended in it since
    return folder


def lies_in(checkpoint: Path, folder: Path) -> bool:
    """Return whether a checkpoint is one of a folder, by whatever path it is named."""
    return any(
        parent.is_dir() and folder.is_dir() and os.path.samefile(parent, folder)
        for parent in (checkpoint.parent, checkpoint.resolve().parent))


def _parent(options: argparse.Namespace) -> Path:
    return Path(options.output or './output/pretrain')


def _named_folder(options: argparse.Namespace) -> Optional[Path]:
    """The folder that the options name, None if the run gets one of its own."""
    if options.experiment:
        return _parent(options) / options.experiment
    if options.resume == 'auto':
        raise UserError('--resume auto looks into the run folder: name it with --experiment.')
    if options.resume and not options.output:
        path = Path(options.resume)
        return next((folder for folder in (path.parent, path.resolve().parent) if _holds_run(folder)), None)
    return None


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (_OPTIONS, LAST, ENCODER))


def _check_belongs(folder: Path, options: argparse.Namespace) -> None:
    """Check that nothing of another run is in a folder.

    Raises:
        UserError: There is.
    """
    if options.resume == 'auto':
        return
    if not options.resume:
        if _holds_run(folder):
            raise UserError(
                f"'{folder}' holds a run already: go on with --resume auto, or choose another --output or "
                '--experiment.')
        return
    path = Path(options.resume)
    if not path.is_file():
        raise UserError(f"--resume: there is no checkpoint '{path}'.")
    # A run that was killed before its first checkpoint may begin from another run's once more.
    has_results = (folder / ENCODER).exists() or next(folder.glob('*.pth.tar'), None) is not None
    if has_results and not lies_in(path, folder):
        raise UserError(
            f"--resume: '{path}' is no checkpoint of '{folder}', which holds a run of its own. Go on with that run by "
            '--resume auto, or begin a new one from this checkpoint: give an --experiment that does not exist yet.')


def _check_writable(folder: Path) -> None:
    parent = folder.absolute()
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output: '{folder}' cannot be written, '{parent}' is not a folder that you may write to.")


def _not_writable(folder: Path, error: OSError) -> Exception:
    """The user's mistake, unless the disk is full."""
    if is_full(error):
        return OSError(f"'{folder}' cannot be written: {one_line(error)}")
    return UserError(f"--output: '{folder}' cannot be written: {error.strerror or one_line(error)}.")


def save_options(folder: Path, options: argparse.Namespace) -> None:
    """Write the options of the run to its folder, as `args.yaml`.

    Args:
        folder: Folder of the run.
        options: Options of the run.

    Raises:
        OSError: The disk is full.
        UserError: The folder cannot be written.
    """
    try:
        (folder / PICTURES).mkdir(exist_ok=True)
        (folder / _OPTIONS).write_text(yaml.safe_dump(plain_options(options), sort_keys=False))
    except OSError as e:
        raise _not_writable(folder, e) from None


def first_checkpoint(folder: Path) -> Optional[str]:
    """Return the checkpoint of another run that the run in a folder began from, None if it began anew."""
    path = folder / _OPTIONS
    try:
        options = yaml.safe_load(path.read_text()) if path.exists() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    resume = options.get('resume') if isinstance(options, dict) else None
    return resume if resume not in (None, '', 'auto') else None


def plain_options(options: argparse.Namespace) -> Dict[str, Any]:
    """Return options as lists, numbers and strings, which YAML and checkpoints hold, tuples as lists."""
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
