"""Write the checkpoints of a run with timm's saver, and find, verify and load them."""
import argparse
import logging
import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch

from timm.task import MaskedImageModelingTask
from timm.utils import CheckpointSaver, NativeScaler, load_checkpoint_metadata
from ..files import verify_checksums
from .errors import UserError, one_line
from .flags.run_options import RunOptions
from .run_folder import LAST, plain_options

_logger = logging.getLogger(__name__)

BEFORE_TRAINING = -1  # number of the epoch at whose end a run begins

# Files of a checkpoint that a killed run was still writing.
_UNFINISHED = ('*.partial', 'tmp.pth.tar', 'recovery_tmp.pth.tar')


class Checkpoint(NamedTuple):
    """A loaded checkpoint and its file.

    Attributes:
        path: File.
        content: Content of the file. The tensors are memory-mapped.
        in_place: The file is in the folder of the run that resumes from it.
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

    @property
    def goes_on(self) -> bool:
        """Whether the run that wrote the checkpoint continues. Otherwise a new run starts from it."""
        return self.in_place and self.run is not None


def load_checkpoint(path: Path, flag: str = '--resume', verify: bool = True) -> Checkpoint:
    """Load a checkpoint. Code that the file may contain is never run.

    Args:
        path: File of the checkpoint.
        flag: Flag that names the file, for error messages.
        verify: Also verify the checksums of tensors, which reads the whole file. Other checksums are always verified.

    Raises:
        UserError: The file is not a complete checkpoint of a training run, is damaged, or contains more than data.
    """
    _verify(path, flag, tensors=verify)
    try:
        content = load_checkpoint_metadata(path)
    except Exception as e:  # other files and truncated checkpoints raise errors of many types
        raise UserError(
            f"{flag}: '{path}' is not a complete checkpoint of a training run ({one_line(e)[:200]}).") from e
    if not isinstance(content, dict) or 'state_dict' not in content:
        raise UserError(f"{flag}: '{path}' is not a complete checkpoint of a training run (it has no state_dict).")
    _check_run(content.get('run'), path, flag)
    return Checkpoint(path, content)


def _verify(path: Path, flag: str, tensors: bool) -> None:
    """Verify the checksums in the archive of a checkpoint. PyTorch writes them, but does not verify them.

    Raises:
        UserError: A checksum is wrong.
    """
    try:
        verify_checksums(path, tensors)
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
            _verify(checkpoint.path, '--resume auto', tensors=True)
            return checkpoint
        except UserError as e:
            _logger.warning(f'Skipped: {e}')
    if found or unreadable:
        raise UserError(
            f"--resume auto: none of the {len(found) + unreadable} checkpoints in '{folder}' can be read; start again "
            'with another --experiment.')
    return None


def readable_checkpoints(folder: Path, besides: Optional[Path] = None) -> Tuple[List[Checkpoint], int]:
    """Load all readable checkpoints of a run folder, without verifying the checksums of tensors.

    Args:
        folder: Folder of a run.
        besides: File to skip, also if the folder has it under another name.

    Returns:
        The checkpoints, sorted by falling number of updates, and the number of unreadable ones, which are logged.
    """
    found: List[Checkpoint] = []
    unreadable = 0
    for path in folder.glob('*.pth.tar'):
        if any(path.match(pattern) for pattern in _UNFINISHED):
            continue
        try:
            if besides is None or not os.path.samefile(path, besides):
                found.append(load_checkpoint(path, verify=False))
        except (OSError, UserError) as e:
            _logger.warning(f'Skipped: {e}')
            unreadable += 1
    return sorted(found, key=lambda c: (c.update, c.path.name == LAST, c.path), reverse=True), unreadable


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


def evaluation_weights(checkpoint: Dict[str, Any]) -> Tuple[Dict[str, Any], Optional[Dict[str, Any]]]:
    """Return the weights and the task state of a checkpoint, or of its moving average if it has one."""
    suffix = '_ema' if 'state_dict_ema' in checkpoint else ''
    return checkpoint[f'state_dict{suffix}'], checkpoint.get(f'task_state{suffix}')


class RunSaver(CheckpointSaver):
    """timm's saver of checkpoints, which also stores the trainer's state and the results of the run.

    Args:
        folder: Folder of the run.
        options: Options of the run.
        task: Task to save.
        optimizer: Optimizer to save.
        scaler: Gradient scaler to save.
    """

    def __init__(
            self,
            folder: Path,
            options: RunOptions,
            task: MaskedImageModelingTask,
            optimizer: torch.optim.Optimizer,
            scaler: Optional[NativeScaler] = None,
    ):
        logging.getLogger('timm.utils.checkpoint_saver').setLevel(logging.WARNING)  # it logs every file at each save
        super().__init__(
            model=task.get_method(),
            optimizer=optimizer,
            args=argparse.Namespace(**plain_options(options)),
            amp_scaler=scaler,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
            decreasing=not options.mim_probe_best,  # of errors the lowest is best, of accuracies the highest
            max_history=options.checkpoint_hist,
            task=task,
        )
        self.options = options
        self.added: Dict[str, Any] = {}
        self.within_epoch = False
        for pattern in _UNFINISHED:
            for path in folder.glob(pattern):
                path.unlink()

    def _checkpoint_state(self, epoch: int, metric: Optional[float] = None) -> Dict[str, Any]:
        state = {**super()._checkpoint_state(epoch, metric), **self.added}
        if self.within_epoch:
            state['saver'] = self.state_dict()  # a checkpoint within an epoch is not part of the history
        return state

    def best_with(self, epoch: int, metric: Optional[float]) -> Tuple[Optional[int], Optional[float]]:
        """Return the best epoch and its metric, including an epoch that is about to be saved; None without metrics."""
        ranked = metric is not None and not math.isnan(metric)
        if ranked and (self.best_metric is None or self.cmp(metric, self.best_metric)):
            return epoch, metric
        return self.best_epoch, self.best_metric

    def begin_with(self, metric: float) -> None:
        """Let the model before training take part in the choice of the best epoch, as epoch -1."""
        self.best_epoch, self.best_metric = BEFORE_TRAINING, metric

    def save_epoch(
            self,
            epoch: int,
            metric: Optional[float],
            added: Dict[str, Any],
            results: Dict[str, Any],
    ) -> None:
        """Save a completed epoch, and delete the checkpoints that were saved within it.

        Args:
            epoch: Number of the epoch.
            metric: Held-out error, None if it cannot compare epochs.
            added: Result of `Trainer.state_dict`.
            results: Results of the run so far.
        """
        self.added, self.within_epoch = dict(added, results=results), False
        self.save_checkpoint(epoch, metric=metric)
        self._tidy(epoch)

    def save_within_epoch(
            self,
            epoch: int,
            batch: int,
            added: Dict[str, Any],
            results: Dict[str, Any],
    ) -> None:
        """Save the state within an epoch. The next checkpoint replaces it."""
        self.added, self.within_epoch = dict(added, results=results), True
        self.save_recovery(epoch, batch)

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Restore the history of a checkpoint of this folder, and finish what a killed run left unfinished after it."""
        history = checkpoint.content.get('saver')
        if not history:  # timm before 1.0.31 does not store it
            return
        epoch, metric = history.get('pending', (None, None))
        if epoch is None or checkpoint.path.name != LAST:
            self.load_state_dict(history)
            return
        self.load_state_dict({**history, 'pending': (None, None)})
        self._rank_last(epoch, metric)
        self._tidy(epoch)

    def _tidy(self, epoch: int) -> None:
        """Save the milestone if one is due, and delete the checkpoints within the completed epoch."""
        if epoch + 1 in self.options.save_epochs:
            self.save_milestone(epoch + 1)
        for path in Path(self.recovery_dir).glob(f'{self.recovery_prefix}-*{self.extension}'):
            path.unlink()
        self.curr_recovery_file = self.prev_recovery_file = ''
