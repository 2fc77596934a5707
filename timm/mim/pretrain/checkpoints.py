"""Checkpoints of a run: written by timm's saver, found and loaded here."""
import argparse
import logging
import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch

from timm.task import MaskedImageModelingTask
from timm.utils import CheckpointSaver, NativeScaler, load_checkpoint_metadata
from .errors import UserError, one_line
from .flags.run_options import RunOptions
from .run_folder import LAST, plain_options

_logger = logging.getLogger(__name__)

# What a run that was killed leaves of the checkpoint that it was writing.
_UNFINISHED = ('*.partial', 'tmp.pth.tar', 'recovery_tmp.pth.tar')

_CHUNK = 1 << 20  # bytes of a checkpoint that are read at a time


class Checkpoint(NamedTuple):
    """A checkpoint that was loaded, and its file.

    Attributes:
        path: File.
        content: What it holds; tensors are mapped into memory.
        in_place: It is one of the folder of the run that goes on from it.
    """
    path: Path
    content: Dict[str, Any]
    in_place: bool = False

    @property
    def run(self) -> Optional[Dict[str, Any]]:
        """The place in the run, None for a checkpoint of another program."""
        return self.content.get('run')

    @property
    def update(self) -> int:
        """Number of updates done, -1 for a checkpoint of another program."""
        return -1 if self.run is None else self.run['update']

    @property
    def within_epoch(self) -> bool:
        """It was written within an epoch."""
        return self.run is not None and self.run['update'] % self.run['updates_per_epoch'] != 0

    @property
    def goes_on(self) -> bool:
        """The run that wrote it goes on. Otherwise another one begins from it."""
        return self.in_place and self.run is not None


def load_checkpoint(path: Path, flag: str = '--resume', verify: bool = True) -> Checkpoint:
    """Load a checkpoint, without running any code that it may hold.

    Args:
        path: File of the checkpoint.
        flag: Flag that named it.
        verify: Compare tensors with their checksums, which reads the whole file. All else always is.

    Raises:
        UserError: It is no complete checkpoint of a training run, is damaged, or holds more than data.
    """
    _verify(path, flag, tensors=verify)
    try:
        content = load_checkpoint_metadata(path)
    except Exception as e:  # a file that is no checkpoint, or half of one, fails in many ways
        raise UserError(
            f"{flag}: '{path}' is not a complete checkpoint of a training run ({one_line(e)[:200]}).") from e
    if not isinstance(content, dict) or 'state_dict' not in content:
        raise UserError(f"{flag}: '{path}' is not a complete checkpoint of a training run (it has no state_dict).")
    _check_run(content.get('run'), path, flag)
    return Checkpoint(path, content)


def _verify(path: Path, flag: str, tensors: bool) -> None:
    """Compare a checkpoint with the checksums of its archive, which PyTorch writes and does not look at.

    Raises:
        UserError: They differ.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # loading it tells why
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if tensors or '/data/' not in entry.filename:
                    with archive.open(entry) as part:  # it compares when it comes to the end
                        while part.read(_CHUNK):
                            pass
    except Exception as e:  # where a header is damaged there is no telling how it fails
        raise UserError(f"{flag}: '{path}' is damaged: {one_line(e)[:200]}.") from e


def _check_run(run: Any, path: Path, flag: str) -> None:
    """Check that a checkpoint says where in a run it was written, if it says anything of it."""
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
    """Load the checkpoint of most updates in a run folder whose checksums are right; damaged ones are named.

    Args:
        folder: Folder of a run.

    Returns:
        The checkpoint, None where there are none.

    Raises:
        UserError: There are checkpoints, and all are damaged or cannot be read.
    """
    found, unreadable = readable_checkpoints(folder)
    for checkpoint in found:
        try:
            _verify(checkpoint.path, '--resume auto', tensors=True)
            return checkpoint
        except UserError as e:
            _logger.warning(f'Left out: {e}')
    if found or unreadable:
        raise UserError(
            f"--resume auto: none of the {len(found) + unreadable} checkpoints in '{folder}' can be read; begin anew "
            'with another --experiment.')
    return None


def readable_checkpoints(folder: Path, besides: Optional[Path] = None) -> Tuple[List[Checkpoint], int]:
    """Load what can be read of the checkpoints in a run folder, without comparing tensors with their checksums.

    Args:
        folder: Folder of a run.
        besides: File to leave out, by all of its names.

    Returns:
        Checkpoints, that of most updates first, and how many could not be read, which are named.
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
            _logger.warning(f'Left out: {e}')
            unreadable += 1
    return sorted(found, key=lambda c: (c.update, c.path.name == LAST, c.path), reverse=True), unreadable


@contextmanager
def mismatch_errors(path: Path, flag: str = '--resume') -> Iterator[None]:
    """Tell the user which checkpoint it was where loading its parts fails.

    Raises:
        UserError: Something in the checkpoint does not fit.
    """
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as e:
        raise UserError(f"{flag}: '{path}' does not fit this run: {one_line(e)[:300]}") from e


def evaluation_weights(checkpoint: Dict[str, Any]) -> Tuple[Dict[str, Any], Optional[Dict[str, Any]]]:
    """Return the weights and the task state of a checkpoint, those of its moving average where it has one."""
    suffix = '_ema' if 'state_dict_ema' in checkpoint else ''
    return checkpoint[f'state_dict{suffix}'], checkpoint.get(f'task_state{suffix}')


class RunSaver(CheckpointSaver):
    """Timm's saver, with what a trainer adds to every checkpoint.

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
        logging.getLogger('timm.utils.checkpoint_saver').setLevel(logging.WARNING)  # it lists every file each time
        super().__init__(
            model=task.get_method(),
            optimizer=optimizer,
            args=argparse.Namespace(**plain_options(options)),
            amp_scaler=scaler,
            checkpoint_dir=str(folder),
            recovery_dir=str(folder),
            decreasing=True,
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
            state['saver'] = self.state_dict()  # it takes no place in the history
        return state

    def best_with(self, epoch: int, metric: Optional[float]) -> Tuple[Optional[int], Optional[float]]:
        """Return the best epoch and its metric, None without metrics, counting one that is about to be saved."""
        ranked = metric is not None and not math.isnan(metric)
        if ranked and (self.best_metric is None or self.cmp(metric, self.best_metric)):
            return epoch, metric
        return self.best_epoch, self.best_metric

    def save_epoch(
            self,
            epoch: int,
            metric: Optional[float],
            added: Dict[str, Any],
            results: Dict[str, Any],
    ) -> None:
        """Save a completed epoch, and drop what was saved within it.

        Args:
            epoch: Number of the epoch.
            metric: Held-out error, None where epochs cannot be compared by it.
            added: What `Trainer.state_dict` returned.
            results: What came out so far.
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
        """Save the state within an epoch, which the next one replaces."""
        self.added, self.within_epoch = dict(added, results=results), True
        self.save_recovery(epoch, batch)

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on with the history of a checkpoint of this folder, and do what a kill left undone after it."""
        history = checkpoint.content.get('saver')
        if not history:  # timm before 1.0.31 keeps none
            return
        epoch, metric = history.get('pending', (None, None))
        if epoch is None or checkpoint.path.name != LAST:
            self.load_state_dict(history)
            return
        self.load_state_dict({**history, 'pending': (None, None)})
        self._rank_last(epoch, metric)
        self._tidy(epoch)

    def _tidy(self, epoch: int) -> None:
        """What follows the checkpoint of a completed epoch."""
        if epoch + 1 in self.options.save_epochs:
            self.save_milestone(epoch + 1)
        for path in Path(self.recovery_dir).glob(f'{self.recovery_prefix}-*{self.extension}'):
            path.unlink()
        self.curr_recovery_file = self.prev_recovery_file = ''
