"""Train a method: updates in the order of a run, on one process or many, in a new run or a resumed one.

Masks, augmentation and the model's random numbers depend only on the seed and the number of the update. To resume, a
run therefore needs the weights, the optimizer state and the number of updates, but no saved random state.
"""

import argparse
from contextlib import nullcontext
from typing import Any, ContextManager, Dict, Iterable, Iterator, Optional, Tuple

import torch
import torch.nn as nn

from timm.utils import is_primary
from ..checkpoint_folder import has_folders, named_tensors
from ..masking import keyed_noise
from .checkpoints import FOLDER_BYTES, Checkpoint
from .data.image_folder import num_images
from .data.loading import batches_of_epoch
from .data.reading import sample_seed
from .errors import StopSignal, UnreadableImages, UserError
from .flags.run_options import RunOptions
from .naflex_update import Part, naflex_parts
from .options import resolve_learning_rate
from .resume import restore_optimizer, updates_done
from .sharding import gradients_unreduced, whole
from .step import RunningMeans, StepGuard, Verdict, backward
from .task import (
    Schedules,
    autocast_of,
    compile_and_distribute,
    create_optimizer,
    create_task,
    scaler_of,
    state_tensors,
)

_STATISTICS = ('running_mean', 'running_var')


class Trainer:
    """Trains a method.

    Attributes:
        task: Training task, which holds the method.
        update: Number of updates done in the whole run.
        updates_per_epoch: Number of updates in an epoch.
        num_epochs: Number of epochs of the schedule.
        means: Means over the current epoch.
        stopping: Some process got a signal to stop; `updates` ended after the current update.

    Args:
        options: Options of the run.
        method: Masked image modeling method, on its device.
        train_loader: Loader of normalised training images.
        process: Device and rank of this process, as `init_distributed_device` sets them.
        stop: Catches the signals that stop the run.
        checkpoint: Checkpoint to resume from.
        data: Fingerprint of the image lists, stored in checkpoints.

    Raises:
        UserError: An option has an impossible value, or the checkpoint does not fit the run.
    """

    def __init__(
            self,
            options: RunOptions,
            method: nn.Module,
            train_loader,
            process: argparse.Namespace,
            stop: StopSignal,
            checkpoint: Optional[Checkpoint] = None,
            data: Optional[Dict[str, Any]] = None,
    ):
        self.options = options
        self.process = process
        self.stop = stop
        self.data = data
        self.train_loader = train_loader
        self.device = torch.device(process.device)
        # timm's own readers of streams do not report them
        self.counts_unreadable = hasattr(train_loader.dataset, 'num_unreadable')
        self.noise_size = method.noise_shape(1)[1]

        self.updates_per_epoch = len(train_loader) // options.grad_accum_steps
        if self.updates_per_epoch == 0:
            raise UserError(
                f'--grad-accum-steps {options.grad_accum_steps}: the dataset has {len(train_loader)} batches an epoch.')
        # with --naflex-loader, the number of images of the longest sequence; batches of shorter ones have more
        self.images_per_update = options.batch_size * process.world_size * options.grad_accum_steps
        self.learning_rate = resolve_learning_rate(options, self.images_per_update)
        self.autocast, self.scaler = autocast_of(options, self.device), scaler_of(options, self.device)
        self.means = RunningMeans(self.device)
        self.update = 0
        self.stopping = False

        self.task = create_task(options, method, process, checkpoint)
        self.optimizer = create_optimizer(method, options, self.learning_rate, self.device)
        self._set_start(checkpoint)
        compile_and_distribute(self.task, options, process)
        self.schedules = Schedules(self.optimizer, options, self.updates_per_epoch)
        self.schedules.step(self.update)
        self.num_epochs = self.schedules.num_epochs
        self.guard = StepGuard(self.optimizer, self.device, process.distributed, self.scaler is not None)

    def _set_start(self, checkpoint: Optional[Checkpoint]) -> None:
        """Set the first update from the checkpoint or --start-epoch, and restore the optimizer from the checkpoint."""
        options = self.options
        if checkpoint is not None:
            if not options.no_resume_opt:
                restore_optimizer(self.optimizer, self.scaler, checkpoint)
            self.update = updates_done(checkpoint, self.updates_per_epoch, self.images_per_update)
            if self.update % self.updates_per_epoch:
                self.means.load_state_dict(checkpoint.run['means'])
        # A run that continues has already applied --start-epoch.
        if options.start_epoch is not None and not (checkpoint is not None and checkpoint.goes_on):
            self.update = options.start_epoch * self.updates_per_epoch
            self.means.reset()

    def state_dict(self) -> Dict[str, Any]:
        """Return what a checkpoint stores besides the saver's own content: the position in the run, and with --fsdp
        weights and optimizer state, gathered unless the checkpoint is a folder. All processes must call this together.

        Raises:
            FloatingPointError: The last loss of a process, the weights or the optimizer state are not finite. The state
                must not be saved.
        """
        self._check_finite(self.guard.finish(), self.update - 1)
        if not self.guard.all_finite(self._weights()):  # a finite loss may have gradients that are not finite
            raise self._not_finite(f'the weights are not finite after step {self.update}', 'they were not saved')
        # If the square of a gradient overflows, the second moment stays infinite, and all later steps are zero.
        if not self.guard.all_finite(state_tensors(self.optimizer)):
            raise self._not_finite(
                f'the state of the optimizer is not finite after step {self.update}, a gradient was too large',
                'nothing was saved', 'limit gradients with --clip-grad, lower')
        run = dict(
            update=self.update,
            updates_per_epoch=self.updates_per_epoch,
            images_per_update=self.images_per_update,
            means=self.means.state_dict(),
        )
        if self.data is not None:
            run['data'] = self.data
        if not self.options.fsdp:
            return dict(run=run)
        state = dict(optimizer=self.optimizer.state_dict(), **self.task.get_checkpoint_state())
        if self.task.has_ema():
            state.update(self.task.get_checkpoint_state(ema=True))
        if self.saves_folders:
            return dict(state, run=run)
        return dict(whole(state, keep=is_primary(self.process)), run=run)

    @property
    def saves_folders(self) -> bool:
        """Whether a checkpoint is a folder that is written in the background, see --checkpoint-format."""
        if self.options.checkpoint_format != 'auto':
            return self.options.checkpoint_format == 'folder'
        states = [self.task.get_checkpoint_state(ema=ema) for ema in (False, True)]
        tensors = [*(tensor for state in states for _, tensor in named_tensors(state)), *state_tensors(self.optimizer)]
        return has_folders and sum(tensor.numel() * tensor.element_size() for tensor in tensors) > FOLDER_BYTES

    def _weights(self) -> Iterator[torch.Tensor]:
        """Yield all parameters that a checkpoint stores, and the running statistics of norm layers."""
        for ema in (False, True) if self.task.has_ema() else (False,):
            method = self.task.get_method(ema=ema)
            yield from method.parameters()
            yield from (buffer for name, buffer in method.named_buffers() if name.endswith(_STATISTICS))

    @property
    def trained_method(self) -> nn.Module:
        """The method that is evaluated and saved: its moving average if the run keeps one."""
        return self.task.get_method(ema=self.task.has_ema())

    @property
    def num_images(self) -> Optional[int]:
        """Number of training images, None for a stream."""
        return num_images(self.train_loader.dataset)

    @property
    def mean_images_per_update(self) -> float:
        """Number of images per update, on average over an epoch."""
        if not self.options.naflex_loader:
            return self.images_per_update
        return self.train_loader.sampler.images_per_epoch / len(self.train_loader) * self.options.grad_accum_steps

    @property
    def last_epoch(self) -> int:
        """Number of epochs after which the run ends."""
        return min(self.options.stop_epoch or self.num_epochs, self.num_epochs)

    def updates(self) -> Iterator[int]:
        """Train until the end of the current epoch, or until some process gets a signal to stop (see `stopping`).

        Yields:
            The number of updates done, after each update.

        Raises:
            FloatingPointError: The loss of a process is not finite. The optimizer did not step with it.
        """
        accumulation = self.options.grad_accum_steps
        epoch, done = divmod(self.update, self.updates_per_epoch)
        if done == 0:
            self.means.reset()
        self.task.train()
        batches = batches_of_epoch(self.train_loader, epoch, first=done * accumulation)
        for _ in range(done, self.updates_per_epoch):
            self._train_update(batches)
            yield self.update
            if self.stopping:
                return
        self._check_finite(self.guard.finish(), self.update - 1)

    def is_asked_to_stop(self) -> bool:
        """Return whether some process got a signal to stop. All processes must call this together."""
        return self.guard.any_process(bool(self.stop), self.device)

    def check_readable(self) -> float:
        """Return the unreadable fraction of the images seen in this epoch. All processes must call this together.

        Raises:
            UnreadableImages: The unreadable images exceed --max-unreadable, as a fraction of the whole epoch.
        """
        share = self.means.of_epoch().get('unreadable', 0.)
        of_epoch = share * self.means.epoch_count / self.updates_per_epoch
        if of_epoch > self.options.max_unreadable:
            raise UnreadableImages(
                f'{of_epoch:.1%} of the images of an epoch cannot be read; the log above names some of them. Remove or '
                f'replace them, or raise --max-unreadable, which is {self.options.max_unreadable:g}.')
        return share

    def _train_update(self, batches: Iterator[Tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Do one update, and set `stopping` if some process got a signal to stop.

        Raises:
            FloatingPointError: The loss of a process is not finite.
        """
        parts = self.options.grad_accum_steps
        total, unreadable, padding = None, 0., 0.
        for number, part in enumerate(self._parts(batches)):
            unreadable = unreadable + (part.index < 0).float().mean() / parts
            if self.options.naflex_loader:
                padding = padding + (~part.images['patch_valid']).float().mean() / parts
            last = number + 1 == parts
            with nullcontext() if last else self._gradients_unreduced():
                output = self._forward(part)
                loss = output['loss'] / parts if part.weight is None else output['loss'] * part.weight
                total = loss.detach() if total is None else total + loss.detach()
                if last:
                    verdict = self.guard.check(total, bool(self.stop))
                    self._check_finite(verdict, self.update - self.guard.deferred)
                    self.stopping = verdict.stop
                self._backward(loss if part.scale == 1 else loss * part.scale, last)
        logs = dict(output.get('logs') or {})
        if self.counts_unreadable:
            logs['unreadable'] = unreadable
        if self.options.naflex_loader:
            logs['padding'] = padding  # as a share of all tokens
        self.means.add(loss=total, **logs)
        self._after_step()

    def _gradients_unreduced(self) -> ContextManager:
        """Return a context in which processes do not average gradients, for all batches of an update but the last."""
        return gradients_unreduced(self.task.get_method()) if self.options.fsdp else self.task.no_sync()

    def _parts(self, batches: Iterator[Tuple[torch.Tensor, torch.Tensor]]) -> Iterable[Part]:
        """Return the batches of the update, each with the noise for its masks.

        Masks depend on the position of an image in the global batch, not on the process.
        """
        options, rank, world_size = self.options, self.process.rank, self.process.world_size
        if options.naflex_loader:
            return naflex_parts(
                batches, options.grad_accum_steps, self.task.get_method(), options.seed, self.update, rank, world_size,
                options.batch_size, options.naflex_loss_scale)
        return (self._part(*next(batches), first=(number * world_size + rank) * options.batch_size)
                for number in range(options.grad_accum_steps))

    def _part(self, images: torch.Tensor, index: torch.Tensor, first: int) -> Part:
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        positions = torch.arange(first, first + len(images), device=self.device)
        return Part(images, index, keyed_noise(self.options.seed, self.update, positions, self.noise_size), first)

    def _forward(self, part: Part) -> Dict[str, torch.Tensor]:
        """Run the task on one batch of the update, with the masks and random numbers of that batch."""
        # Dropout is seeded per process: its seed only has to be the same when the run is resumed.
        torch.manual_seed(sample_seed(self.options.seed, self.update, part.first))
        with self.autocast():
            return self.task(part.images, noise=part.noise)

    def _backward(self, loss: torch.Tensor, need_update: bool) -> None:
        clip = self.options.clip_grad or None
        parameters = self.task.get_clip_parameters() if clip else None
        backward(loss, self.optimizer, self.scaler, parameters, clip, self.options.clip_mode, need_update)

    def _after_step(self) -> None:
        self.optimizer.zero_grad()
        self.task.update_target(self.update / (self.num_epochs * self.updates_per_epoch))
        self.update += 1
        self.task.update_ema(step=self.update)
        self.schedules.step(self.update)
        if self.options.synchronize_step and self.device.type == 'cuda':
            torch.cuda.synchronize()

    def _check_finite(self, verdict: Verdict, update: int) -> None:
        """Check the losses of a step.

        Args:
            verdict: Result of `StepGuard` for the step.
            update: Number of updates done before the step.

        Raises:
            FloatingPointError: The loss of a process is not finite.
        """
        if not verdict.finite:
            raise self._not_finite(f'the loss is not finite in step {update + 1}', 'no step was taken with it')

    def _not_finite(self, what: str, consequence: str, advice: str = 'lower') -> FloatingPointError:
        learning_rate = self.optimizer.param_groups[0]['lr']
        return FloatingPointError(
            f'{what}, with a learning rate of {learning_rate:.3g}: {consequence}. {advice[0].upper()}{advice[1:]} --lr '
            'or lengthen --warmup-epochs, or replace --amp-dtype float16 by bfloat16; --resume auto continues from the '
            'last checkpoint with the changed options.')
