"""Checkpoints of a run: written by timm's saver, found and loaded here."""
import argparse
import logging
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch

from timm.task import MaskedImageModelingTask
from timm.utils import CheckpointSaver, NativeScaler, load_checkpoint_metadata
from .errors import UserError, one_line
from .run_folder import LAST, plain_options

_logger = logging.getLogger(__name__)

# What a checkpoint must agree on with the run that goes on from it.
_SAME_ON_RESUME = ('mim', 'model', 'model_kwargs', 'img_size', 'in_chans', 'mask_ratio', 'mask_unit', 'mim_kwargs')

# What a run that was killed leaves of the checkpoint that it was writing.
_UNFINISHED = ('*.partial', 'tmp.pth.tar', 'recovery_tmp.pth.tar')


def load_checkpoint(path: Path, flag: str = '--resume') -> Dict[str, Any]:
    """Load a checkpoint, tensors mapped into memory, without running any code that it may hold.

    Args:
        path: File of the checkpoint.
        flag: Flag that named it.

    Raises:
        UserError: It is no complete checkpoint of a training run, or holds more than data.
    """
    try:
        checkpoint = load_checkpoint_metadata(path)
    except Exception as e:  # a file that is no checkpoint, or half of one, fails in many ways
        raise UserError(
            f"{flag}: '{path}' is not a complete checkpoint of a training run ({one_line(e)[:200]}).") from e
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise UserError(f"{flag}: '{path}' is not a complete checkpoint of a training run (it has no state_dict).")
    return checkpoint


def newest_checkpoint(folder: Path) -> Optional[Path]:
    """Find the complete checkpoint of most updates in a run folder; those that cannot be read are named and left out.

    Args:
        folder: Folder of a run.

    Raises:
        UserError: There are checkpoints, and none can be read.
    """
    found: List[Tuple[int, bool, Path]] = []
    unreadable = 0
    for path in folder.glob('*.pth.tar'):
        if any(path.match(pattern) for pattern in _UNFINISHED):
            continue
        try:
            run = load_checkpoint(path).get('run') or {}
        except UserError as e:
            _logger.warning(f'Left out: {e}')
            unreadable += 1
            continue
        found.append((run.get('update', -1), path.name == LAST, path))
    if unreadable and not found:
        raise UserError(
            f"--resume auto: none of the {unreadable} checkpoints in '{folder}' can be read; begin anew with another "
            '--experiment.')
    return max(found)[-1] if found else None


def check_same_run(checkpoint: Dict[str, Any], path: Path, options: argparse.Namespace) -> None:
    """Check that a checkpoint is one of such a run.

    Raises:
        UserError: Model, method or masking differ.
    """
    saved = checkpoint.get('args')
    if saved is None:
        return
    present = plain_options(options)
    for name in _SAME_ON_RESUME + (() if options.no_resume_opt else ('opt',)):
        if getattr(saved, name, None) != present[name]:
            raise UserError(
                f"--resume: '{path}' was trained with {name} {getattr(saved, name, None)}, not {present[name]}.")


@contextmanager
def fitting(path: Path, flag: str = '--resume') -> Iterator[None]:
    """Tell the user which checkpoint it was where loading its parts fails.

    Raises:
        UserError: Something in the checkpoint does not fit.
    """
    try:
        yield
    except (KeyError, RuntimeError, ValueError) as e:
        raise UserError(f"{flag}: '{path}' does not fit this run: {one_line(e)[:300]}") from e


def weights_that_count(checkpoint: Dict[str, Any]) -> Tuple[Dict[str, Any], Optional[Dict[str, Any]]]:
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
            options: argparse.Namespace,
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

    def take_up(self, checkpoint: Dict[str, Any], path: Path) -> None:
        """Go on with the history of a checkpoint of this folder, and do what a kill left undone after it.

        Args:
            checkpoint: The checkpoint.
            path: Its file.
        """
        history = checkpoint.get('saver')
        if not history:  # timm before 1.0.31 keeps none
            return
        epoch, metric = history.get('pending', (None, None))
        if epoch is None or path.name != LAST:
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
