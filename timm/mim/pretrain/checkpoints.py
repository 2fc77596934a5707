"""Find, verify and load the checkpoints of a run, which are files or folders."""
import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import torch

from timm.utils import load_checkpoint_metadata
from ..checkpoint_folder import CONTENT, has_folders, is_checkpoint_folder, read_tensors, verify_folder
from ..files import verify_checksums
from .errors import UserError, one_line
from .run_folder import EXTENSIONS, is_last

_logger = logging.getLogger(__name__)

BEFORE_TRAINING = -1  # number of the epoch at whose end a run begins
FOLDER_BYTES = 10_000_000_000  # --checkpoint-format auto writes larger checkpoints as folders

# Files and folders of a checkpoint that a killed run was still writing.
UNFINISHED = ('*.partial', 'tmp.pth.tar', 'recovery_tmp.pth.tar')


class Checkpoint(NamedTuple):
    """A loaded checkpoint, and its file or folder.

    Attributes:
        path: File or folder.
        content: Content. The tensors of a file are memory-mapped, those of a folder have no values: see `part`.
        in_place: The checkpoint is in the folder of the run that resumes from it.
    """
    path: Path
    content: Dict[str, Any]
    in_place: bool = False

    @property
    def run(self) -> Optional[Dict[str, Any]]:
        """Position in the run, None if another program wrote the checkpoint."""
        return self.content.get('run')

    @property
    def update(self) -> int:
        """Number of updates done, -1 if another program wrote the checkpoint."""
        return -1 if self.run is None else self.run['update']

    @property
    def within_epoch(self) -> bool:
        """Whether the checkpoint was written within an epoch."""
        return self.run is not None and self.run['update'] % self.run['updates_per_epoch'] != 0

    def part(self, name: str, like: Optional[Mapping[str, torch.Tensor]] = None) -> Any:
        """Return a part of the content with its tensors.

        Args:
            name: Name of the part, such as `state_dict`.
            like: Tensors by name, see `timm.mim.checkpoint_folder.named_tensors`. Of a tensor that is sharded there, a
                process reads only its own part from a folder. A file has whole tensors.

        Raises:
            ValueError: The folder is damaged.
        """
        if not self.path.is_dir():
            return self.content[name]
        return read_tensors(self.path, self.content[name], name, like)

    @property
    def goes_on(self) -> bool:
        """Whether the run that wrote the checkpoint continues. Otherwise a new run starts from it."""
        return self.in_place and self.run is not None


def load_checkpoint(path: Path, flag: str = '--resume', verify: bool = True) -> Checkpoint:
    """Load a checkpoint. Code that the file may contain is never run.

    Args:
        path: File or folder of the checkpoint.
        flag: Flag that names the checkpoint, for error messages.
        verify: Also verify the checksums of tensors, which reads all of it. Other checksums are always verified.

    Raises:
        UserError: It is not a complete checkpoint of a training run, is damaged, or contains more than data.
    """
    folder = path.is_dir()
    if folder and not is_checkpoint_folder(path):
        raise UserError(f"{flag}: '{path}' is not a complete checkpoint of a training run (it has no {CONTENT}).")
    if folder and not has_folders:
        raise UserError(f"{flag}: '{path}' is a folder, which PyTorch reads from version 2.5 on.")
    file = path / CONTENT if folder else path
    with _naming_flag(flag):
        verify_checksums(file, tensors=folder or verify)
    try:
        content = load_checkpoint_metadata(file)
    except Exception as e:  # other files and truncated checkpoints raise errors of many types
        raise UserError(
            f"{flag}: '{path}' is not a complete checkpoint of a training run ({one_line(e)[:200]}).") from e
    if not isinstance(content, dict) or 'state_dict' not in content:
        raise UserError(f"{flag}: '{path}' is not a complete checkpoint of a training run (it has no state_dict).")
    _check_run(content.get('run'), path, flag)
    if folder:
        with _naming_flag(flag):
            verify_folder(path, content, tensors=verify)
    return Checkpoint(path, content)


@contextmanager
def _naming_flag(flag: str) -> Iterator[None]:
    """Add the flag that names a checkpoint to the error of a wrong checksum.

    Raises:
        UserError: A checksum is wrong, or a file cannot be read.
    """
    try:
        yield
    except (OSError, ValueError) as e:
        raise UserError(f'{flag}: {one_line(e)}.') from e


def _check_run(run: Any, path: Path, flag: str) -> None:
    """Check that the position in the run is complete, if the checkpoint has one."""
    if run is None:
        return
    numbers = ('update', 'updates_per_epoch', 'images_per_update')
    if not (
            isinstance(run, dict)
            and all(type(run.get(name)) is int and run[name] >= 0 for name in numbers)
            and run['updates_per_epoch'] > 0
            and isinstance(run.get('means'), dict)
            and isinstance(run.get('data', {}), dict)
    ):
        raise UserError(f"{flag}: '{path}' is not a complete checkpoint of a training run (its 'run' is incomplete).")


def newest_checkpoint(folder: Path) -> Optional[Checkpoint]:
    """Load the intact checkpoint with the most updates from a run folder, and log the damaged ones.

    Args:
        folder: Folder of a run.

    Returns:
        The checkpoint, None if the folder has no checkpoints.

    Raises:
        UserError: The folder has checkpoints, but all are damaged or unreadable.
    """
    found, unreadable = readable_checkpoints(folder)
    for checkpoint in found:
        try:
            with _naming_flag('--resume auto'):
                _verify_tensors(checkpoint)
            return checkpoint
        except UserError as e:
            _logger.warning(f'Skipped: {e}')
    if found or unreadable:
        raise UserError(
            f"--resume auto: none of the {len(found) + unreadable} checkpoints in '{folder}' can be read; start again "
            'with another --experiment.')
    return None


def _verify_tensors(checkpoint: Checkpoint) -> None:
    """Compare the tensors of a checkpoint with their checksums. PyTorch writes them, but does not verify them."""
    if checkpoint.path.is_dir():
        verify_folder(checkpoint.path, checkpoint.content)
    else:
        verify_checksums(checkpoint.path)


def readable_checkpoints(folder: Path, besides: Optional[Path] = None) -> Tuple[List[Checkpoint], int]:
    """Load all readable checkpoints of a run folder, without verifying the checksums of tensors.

    Args:
        folder: Folder of a run.
        besides: Checkpoint to skip, also if the folder has the same file under another name.

    Returns:
        The checkpoints, sorted by falling number of updates, and the number of unreadable ones, which are logged.
    """
    found: List[Checkpoint] = []
    unreadable = 0
    for path in (path for extension in EXTENSIONS for path in folder.glob(f'*{extension}')):
        if any(path.match(pattern) for pattern in UNFINISHED):
            continue
        try:
            if besides is None or not os.path.samefile(path, besides):
                found.append(load_checkpoint(path, verify=False))
        except (OSError, UserError) as e:
            _logger.warning(f'Skipped: {e}')
            unreadable += 1
    return sorted(found, key=lambda c: (c.update, is_last(c.path), c.path), reverse=True), unreadable


@contextmanager
def mismatch_errors(path: Path, flag: str = '--resume') -> Iterator[None]:
    """Add the path of the checkpoint to errors that loading its parts raises.

    Raises:
        UserError: A part of the checkpoint does not fit the run.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, RuntimeError, ValueError) as e:
        raise UserError(f"{flag}: '{path}' does not fit this run: {one_line(e)[:300]}") from e


def evaluation_weights(
        checkpoint: Checkpoint,
        like: Optional[Mapping[str, torch.Tensor]] = None,
) -> Tuple[Dict[str, Any], Optional[Dict[str, Any]]]:
    """Return the weights and the task state of a checkpoint, or of its moving average if it has one.

    Args:
        checkpoint: The checkpoint.
        like: See `Checkpoint.part`.
    """
    suffix = '_ema' if 'state_dict_ema' in checkpoint.content else ''
    return weights_of(checkpoint, suffix, like)


def weights_of(
        checkpoint: Checkpoint,
        suffix: str = '',
        like: Optional[Mapping[str, torch.Tensor]] = None,
) -> Tuple[Dict[str, Any], Optional[Dict[str, Any]]]:
    """Return the weights and the task state of a checkpoint, those of its moving average if the suffix is `_ema`."""
    task_state = f'task_state{suffix}'
    return (
        checkpoint.part(f'state_dict{suffix}', like),
        checkpoint.part(task_state, like) if checkpoint.content.get(task_state) is not None else None,
    )
