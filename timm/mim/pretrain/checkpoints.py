"""Checkpoints of a run: written by timm's saver, found and loaded here."""
import argparse
import logging
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
    """
    found: List[Tuple[int, bool, Path]] = []
    for path in folder.glob('*.pth.tar'):
        if path.name.startswith('tmp') or path.name.startswith('recovery_tmp'):
            continue
        try:
            run = load_checkpoint(path).get('run') or {}
        except UserError as e:
            _logger.warning(f'Left out: {e}')
            continue
        found.append((run.get('update', -1), path.name == LAST, path))
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
    for name in _SAME_ON_RESUME:
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
        self.added: Dict[str, Any] = {}

    def _checkpoint_state(self, epoch: int, metric: Optional[float] = None) -> Dict[str, Any]:
        return {**super()._checkpoint_state(epoch, metric), **self.added}

    def save_epoch(self, epoch: int, metric: Optional[float], added: Dict[str, Any], milestone: bool) -> Optional[int]:
        """Save a completed epoch, and drop what was saved within it.

        Args:
            epoch: Number of the epoch.
            metric: Held-out error, None where epochs cannot be compared by it.
            added: What `Trainer.state_dict` returned.
            milestone: Keep this checkpoint for good.

        Returns:
            Number of the best epoch so far, None without a metric.
        """
        self.added = added
        _, best_epoch = self.save_checkpoint(epoch, metric=metric)
        if milestone:
            self.save_milestone(epoch + 1)
        for path in Path(self.recovery_dir).glob(f'{self.recovery_prefix}-*{self.extension}'):
            path.unlink()
        self.curr_recovery_file = self.prev_recovery_file = ''
        return best_epoch

    def save_within_epoch(self, epoch: int, batch: int, added: Dict[str, Any]) -> None:
        """Save the state within an epoch, which the next one replaces."""
        self.added = added
        self.save_recovery(epoch, batch)
