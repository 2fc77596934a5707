"""Write the checkpoints of a run: files with timm's saver, or folders in the background.

A folder is written under another name, and gets its own when it is complete. A run that is killed leaves each
checkpoint complete or not at all.
"""
import argparse
import logging
import math
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import torch
import torch.nn as nn

from timm.task import MaskedImageModelingTask
from timm.utils import CheckpointSaver, NativeScaler
from ..checkpoint_folder import (
    complete_folder,
    is_sharded,
    named_tensors,
    read_tensors,
    reason_of,
    start_writing,
    without_values,
)
from .checkpoints import BEFORE_TRAINING, UNFINISHED, Checkpoint
from .errors import UserError
from .flags.run_options import RunOptions
from .run_folder import EXTENSIONS, FILE, FOLDER, LAST, is_last, plain_options

_PREVIOUS = f'previous{FOLDER}'  # a complete folder that another one is about to replace
_WRITING = f'writing{FOLDER}.partial'


class BackgroundWriter:
    """Writes folders in the background, one at a time. Every process of a run with sharded parameters has one.

    Args:
        folder: Folder of the run.
        distributed: The run has several processes. All of them must create a writer.
        sharded: They write together, and must start together. Otherwise the first process writes alone.
    """

    def __init__(self, folder: Path, distributed: bool = False, sharded: bool = False):
        self.path = folder / _WRITING
        self.group = None
        if distributed:  # a group of its own, because its collectives run beside those of the training
            self.group = torch.distributed.new_group(None if sharded else [0], backend='gloo')
        self._future: Optional[Future] = None
        self._target, self._num_bytes = folder, 0
        self._place: Callable[[], None] = lambda: None
        self._executor = ThreadPoolExecutor(max_workers=1)

    def start(
            self,
            target: Path,
            tensors: Mapping[str, torch.Tensor],
            complete: Optional[Callable[[], None]] = None,
            place: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy tensors, and begin to write them. Before that, wait for the end of the writing before.

        Args:
            target: Path of the folder once it is complete.
            tensors: Tensors by name, see `start_writing`.
            complete: Called in the background when the tensors of all processes are written.
            place: Called in the foreground after that, by `poll` or `wait`.

        Raises:
            OSError: The writing before failed.
        """
        self.wait()
        self._target, self._place = target, place
        self._num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        written = start_writing(self.path, tensors, self.group)

        def finish() -> None:
            written.result()
            complete()
        self._future = written if complete is None else self._executor.submit(finish)

    def poll(self) -> None:
        """Place the folder if it is complete.

        Raises:
            OSError: It could not be written.
        """
        if self._future is not None and self._future.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the folder is complete, and place it.

        Raises:
            OSError: It could not be written.
        """
        future, self._future = self._future, None
        if future is None:
            return
        error = future.exception()
        if error is not None:
            free = shutil.disk_usage(self._target.parent).free
            shutil.rmtree(self.path, ignore_errors=True)
            raise OSError(
                f"Checkpoint of {self._num_bytes} bytes cannot be written to '{self._target}', where {free} are free: "
                f'{reason_of(error)}') from error
        self._place()


class RunSaver(CheckpointSaver):
    """timm's saver of checkpoints, which also stores the trainer's state and the results of the run.

    Args:
        folder: Folder of the run.
        options: Options of the run.
        task: Task to save.
        optimizer: Optimizer to save.
        scaler: Gradient scaler to save.
        writer: Writes checkpoints that are folders.
    """

    def __init__(
            self,
            folder: Path,
            options: RunOptions,
            task: MaskedImageModelingTask,
            optimizer: torch.optim.Optimizer,
            scaler: Optional[NativeScaler] = None,
            writer: Optional[BackgroundWriter] = None,
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
        self.folder = folder
        self.writer = writer or BackgroundWriter(folder)
        self.added: Dict[str, Any] = {}
        self.within_epoch = False
        for pattern in UNFINISHED:
            for path in folder.glob(pattern):
                _remove(path)

    def _checkpoint_state(self, epoch: int, metric: Optional[float] = None) -> Dict[str, Any]:
        state = {**super()._checkpoint_state(epoch, metric), **self.added}
        if self.within_epoch:
            state['saver'] = self.state_dict()  # a checkpoint within an epoch is not part of the history
        return state

    def best_with(self, epoch: int, metric: Optional[float]) -> Tuple[Optional[int], Optional[float]]:
        """Return the best epoch and its metric, including an epoch that is about to be saved; None without metrics.

        Raises:
            OSError: A checkpoint before it could not be written.
        """
        self.writer.wait()
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
            as_folder: bool = False,
            write_encoder: Optional[Callable[[Dict[str, torch.Tensor]], None]] = None,
    ) -> None:
        """Save a completed epoch, and delete the checkpoints that were saved within it.

        Args:
            epoch: Number of the epoch.
            metric: Held-out error, None if it cannot compare epochs.
            added: Result of `Trainer.state_dict`.
            results: Results of the run so far.
            as_folder: Save a folder in the background.
            write_encoder: Called with the weights of the encoder before the folder is complete.

        Raises:
            OSError: This checkpoint, or one before it, cannot be written.
        """
        self._begin(added, results, within_epoch=False, as_folder=as_folder)
        if not as_folder:
            self.save_checkpoint(epoch, metric=metric)
            self._tidy(epoch)
            return
        metric = None if metric is not None and math.isnan(metric) else metric

        def place() -> None:
            self._replace(str(self.writer.path), str(target))
            self._rank_last(epoch, metric)
            self._tidy(epoch)
        target = self.folder / f'{LAST}{FOLDER}'
        self._write_folder(target, self._checkpoint_state(epoch, metric), place, write_encoder)

    def save_within_epoch(
            self,
            epoch: int,
            batch: int,
            added: Dict[str, Any],
            results: Dict[str, Any],
            as_folder: bool = False,
    ) -> None:
        """Save the state within an epoch. The next checkpoints replace it.

        Raises:
            OSError: This checkpoint, or one before it, cannot be written.
        """
        self._begin(added, results, within_epoch=True, as_folder=as_folder)
        if not as_folder:
            self.save_recovery(epoch, batch)
            return

        def place() -> None:
            self._replace(str(self.writer.path), str(target))
            if self.prev_recovery_file:
                _discard(Path(self.prev_recovery_file))
            self.prev_recovery_file, self.curr_recovery_file = self.curr_recovery_file, str(target)
        target = self.folder / f'{self.recovery_prefix}-{epoch}-{batch}{FOLDER}'
        self._write_folder(target, self._checkpoint_state(epoch), place)

    def _begin(self, added: Dict[str, Any], results: Dict[str, Any], within_epoch: bool, as_folder: bool) -> None:
        self.writer.wait()  # what is saved tells of the checkpoints before
        self.extension = FOLDER if as_folder else FILE
        self.added, self.within_epoch = dict(added, results=results), within_epoch

    def _write_folder(
            self,
            target: Path,
            state: Dict[str, Any],
            place: Callable[[], None],
            write_encoder: Optional[Callable] = None,
    ) -> None:
        content, path = without_values(state), self.writer.path

        def complete() -> None:
            if write_encoder is not None:
                write_encoder(read_encoder(path, content, self.task))
            complete_folder(path, content)
        self.writer.start(target, dict(named_tensors(state)), complete, place)

    def _replace(self, src: str, dst: str) -> None:
        """Give a complete checkpoint its name. A folder cannot replace another in one step, so that one is kept until
        this one has its place.
        """
        previous = self.folder / _PREVIOUS
        if os.path.isdir(dst):
            _discard(previous)
            os.replace(dst, previous)
        os.replace(src, dst)
        _discard(previous)
        self._discard_other_format(dst)

    def _discard_other_format(self, path: str) -> None:
        """Delete the checkpoint of this name that the run wrote before its format changed."""
        for extension in EXTENSIONS:
            if extension != self.extension:
                _discard(Path(path[:-len(self.extension)] + extension))

    def _duplicate(self, src: str, dst: str) -> None:
        if not os.path.isdir(src):
            super()._duplicate(src, dst)
            self._discard_other_format(dst)
            return
        partial = Path(f'{dst}.partial')
        _remove(partial)
        partial.mkdir()
        for file in sorted(Path(src).iterdir()):
            super()._duplicate(str(file), str(partial / file.name))
        self._replace(str(partial), dst)

    def _cleanup_checkpoints(self, trim: int = 0) -> None:
        kept = max(0, self.max_history - trim)
        for path, _ in self.checkpoint_files[kept:]:
            _discard(Path(path))
        self.checkpoint_files = self.checkpoint_files[:kept]

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Restore the history of a checkpoint of this folder, and finish what a killed run left unfinished after it."""
        history = checkpoint.content.get('saver')
        if not history:  # timm before 1.0.31 does not store it
            return
        self.extension = FOLDER if checkpoint.path.is_dir() else FILE
        epoch, metric = history.get('pending', (None, None))
        if epoch is None or not is_last(checkpoint.path):
            self.load_state_dict(history)
            return
        self.load_state_dict({**history, 'pending': (None, None)})
        self._rank_last(epoch, metric)
        self._tidy(epoch)

    def _tidy(self, epoch: int) -> None:
        """Save the milestone if one is due, and delete the checkpoints within the completed epoch."""
        if epoch + 1 in self.options.save_epochs:
            self.save_milestone(epoch + 1)
        for extension in EXTENSIONS:
            for path in self.folder.glob(f'{self.recovery_prefix}-*{extension}'):
                _discard(path)
        self.curr_recovery_file = self.prev_recovery_file = ''


def sharded_tensors(state: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    """Return the sharded tensors of a state by name. All others are the same on all processes, and the first process
    writes them.
    """
    return {name: tensor for name, tensor in named_tensors(state) if is_sharded(tensor)}


def read_encoder(folder: Path, content: Dict[str, Any], task: MaskedImageModelingTask) -> Dict[str, torch.Tensor]:
    """Return the weights of the encoder of a checkpoint, of the moving average if the task keeps one.

    Args:
        folder: Folder with the tensors.
        content: Content of the checkpoint.
        task: Task that was saved.

    Raises:
        ValueError: The folder does not have these tensors.
    """
    suffix = '_ema' if task.has_ema() else ''
    method = task.get_method(ema=task.has_ema())
    if method.encoder is method.backbone:
        return read_tensors(folder, content[f'state_dict{suffix}'], f'state_dict{suffix}')
    prefix = f'{name_of_encoder(method)}.'
    state = content[f'task_state{suffix}']['method']
    found = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {
        name[len(prefix):]: tensor
        for name, tensor in read_tensors(folder, found, f'task_state{suffix}.method').items()}


def name_of_encoder(method: nn.Module) -> str:
    """Return the name of the encoder among the modules of a method.

    Raises:
        UserError: It is none of them, so that a folder does not have its weights.
    """
    for name, module in method.named_modules():
        if module is method.encoder:
            return name
    raise UserError('--checkpoint-format: the encoder is no module of this method: choose file.')


def _discard(path: Path) -> None:
    """Delete a checkpoint. A folder first gets a name that says that it is not complete."""
    if path.is_dir():
        partial = path.with_name(f'{path.name}.partial')
        _remove(partial)
        os.replace(path, partial)
        path = partial
    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
