"""Train for one epoch."""
import argparse
import logging
import os
import time
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
import torchvision.utils
from torch.optim import Optimizer

from timm.mim.pretrain.step import backward
from timm.task import TrainingTask
from timm.utils import AverageMeter, reduce_tensor
from .device import Process, to_device
from .loaders import Loaders

_logger = logging.getLogger(__name__)


@dataclass
class Update:
    """The update that a batch belongs to.

    Args:
        index: Number of the update in the epoch, from 0.
        batches: Number of batches in the update.
        completes: The batch is the last one of the update.
    """
    index: int
    batches: int
    completes: bool


def count_updates(num_batches: int, accumulated: int) -> int:
    """Return the number of updates in an epoch.

    Args:
        num_batches: Number of batches in the epoch.
        accumulated: Number of batches per update.
    """
    return -(-num_batches // accumulated)


def updates(num_batches: int, accumulated: int) -> Iterator[Update]:
    """Yield the update of each batch. The last update of an epoch has the remaining batches."""
    for i in range(num_batches):
        index = i // accumulated
        batches = min(accumulated, num_batches - index * accumulated)
        yield Update(index, batches, completes=i - index * accumulated == batches - 1)


class Epoch:
    """Trains for one epoch at a time.

    Args:
        args: Arguments of the run.
        task: Task to train.
        loaders: Loaders of the run.
        optimizer: Optimizer of the task's trainable module.
        scheduler: Learning rate scheduler, or None.
        process: Device and precision.
        folder: Run folder of the process that writes, None for others.
        save_recovery: Called with epoch and update every --recovery-interval updates.
    """

    def __init__(
            self,
            args: argparse.Namespace,
            task: TrainingTask,
            loaders: Loaders,
            optimizer: Optimizer,
            scheduler: Optional[Any],
            process: Process,
            folder: Optional[str] = None,
            save_recovery: Optional[Callable[[int, int], None]] = None,
    ):
        self.args = args
        self.task = task
        self.loaders = loaders
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.process = process
        self.folder = folder
        self.save_recovery = save_recovery
        self.num_batches = len(loaders.train)
        self.num_updates = count_updates(self.num_batches, args.grad_accum_steps)

    def train(self, epoch: int) -> Dict[str, float]:
        """Train for one epoch.

        Returns:
            The mean loss over its images.
        """
        self.loaders.set_epoch(epoch, self.args.mixup_off_epoch)
        self.task.get_trainable_module().train()
        self.optimizer.zero_grad()
        # the sum stays on the device, so that no step waits for it
        loss_sum, num_images = torch.zeros((), device=self.process.device), 0
        timer = _Timer()
        for (images, target), update in zip(self.loaders.train, updates(self.num_batches, self.args.grad_accum_steps)):
            images, target = self._prepare(images, target)
            timer.got_data()
            loss, batch_size = self._step(images, target, update)
            loss_sum += loss * batch_size
            num_images += batch_size
            timer.images += batch_size
            if not update.completes:
                continue
            self._complete(epoch, update)
            timer.did_update()
            if update.index % self.args.log_interval == 0 or update.index == self.num_updates - 1:
                self._report(epoch, update, loss, loss_sum / num_images, timer, images)
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()
        return OrderedDict(loss=self._mean_over_processes(loss_sum / max(num_images, 1)))

    def _prepare(self, images: Any, target: torch.Tensor) -> Tuple[Any, torch.Tensor]:
        images, target = to_device(self.args, self.process, images, target)
        return (images, target) if self.loaders.mixup is None else self.loaders.mixup(images, target)

    def _step(self, images: Any, target: torch.Tensor, update: Update) -> Tuple[torch.Tensor, int]:
        """Run the forward and backward pass of a batch, and step the optimizer if the batch completes an update.

        Returns:
            The detached mean loss of the batch, and its number of images.
        """
        batch_size = len(target)
        with nullcontext() if update.completes else self.task.no_sync():
            with self.process.autocast():
                loss = self.task(images, target)['loss']
            self._backward(loss / update.batches * self._loss_scale(batch_size), update.completes)
        return loss.detach(), batch_size

    def _backward(self, loss: torch.Tensor, completes: bool) -> None:
        args = self.args
        second_order = getattr(self.optimizer, 'is_second_order', False)
        parameters = None
        if args.clip_grad is not None:
            parameters = self.task.get_clip_parameters(exclude_head='agc' in args.clip_mode)
        backward(
            loss, self.optimizer, self.process.scaler, parameters, args.clip_grad, args.clip_mode, completes,
            second_order)

    def _loss_scale(self, batch_size: int) -> float:
        """Return the factor on the loss of a batch, where batches differ in size."""
        scale = 1.
        if self.loaders.batch_loss_scale != 'none':
            scale = batch_size / self.loaders.average_batch_size
            scale = scale ** 0.5 if self.loaders.batch_loss_scale == 'sqrt' else scale
        if self.args.naflex_loader and self.args.distributed:
            # batch sizes differ between processes, and DistributedDataParallel averages gradients without weights
            total = reduce_tensor(torch.tensor(float(batch_size), device=self.process.device), 1).item()
            scale *= batch_size * self.args.world_size / total
        return scale

    def _complete(self, epoch: int, update: Update) -> None:
        """Finish an update: moving average, recovery checkpoint and schedule."""
        done = epoch * self.num_updates + update.index + 1
        self.optimizer.zero_grad()
        self.task.update_ema(step=done)
        if self.args.synchronize_step:
            self.process.synchronize()
        interval = self.args.recovery_interval
        if self.save_recovery is not None and interval and (update.index + 1) % interval == 0:
            self.save_recovery(epoch, update.index)
        if self.scheduler is not None:
            self.scheduler.step_update(num_updates=done)

    def _report(
            self,
            epoch: int,
            update: Update,
            loss: torch.Tensor,
            mean_loss: torch.Tensor,
            timer: '_Timer',
            images: Any,
    ) -> None:
        loss, mean_loss = self._mean_over_processes(loss), self._mean_over_processes(mean_loss)
        if not self.process.primary:
            return
        rate = timer.images_per_second() * self.args.world_size
        _logger.info(
            f'Train: {epoch} [{update.index + 1:>4d}/{self.num_updates}]  Loss: {loss:#.3g} (mean {mean_loss:#.3g})  '
            f'LR: {mean_learning_rate(self.optimizer):.3e}  {rate:.1f} images/s  '
            f'Update: {timer.update.avg:.3f}s, of which data {timer.data.avg:.3f}s')
        if self.args.save_images and self.folder and not isinstance(images, dict):
            path = os.path.join(self.folder, f'train-{epoch}-{update.index}.jpg')
            torchvision.utils.save_image(images, path, padding=0, normalize=True)

    def _mean_over_processes(self, value: torch.Tensor) -> float:
        value = value.float()
        return (reduce_tensor(value, self.args.world_size) if self.args.distributed else value).item()


class _Timer:
    """Measures the seconds per update, and the part of them spent waiting for data."""

    def __init__(self):
        self.update, self.data = AverageMeter(), AverageMeter()
        self.images = 0
        self.began = self.last = self.last_update = time.time()
        self.waited = 0.

    def got_data(self) -> None:
        self.waited += time.time() - self.last

    def did_update(self) -> None:
        now = time.time()
        self.update.update(now - self.last_update)
        self.data.update(self.waited)
        self.last, self.last_update, self.waited = now, now, 0.

    def images_per_second(self) -> float:
        return self.images / max(time.time() - self.began, 1e-9)


def mean_learning_rate(optimizer: Optimizer) -> float:
    """Return the mean learning rate over the parameter groups."""
    rates = [float(group['lr']) for group in optimizer.param_groups]
    return sum(rates) / len(rates)
