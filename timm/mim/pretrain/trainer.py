"""Train: turn batches into losses and updates, equally on one process or many, in a new run or a resumed one.

Masks, augmentation and the random numbers of the model depend only on the seed and the number of the update. A run
therefore needs no saved random state to go on: weights, optimizer state and the number of updates are enough.
"""

import argparse
from contextlib import nullcontext
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from timm.utils import NativeScaler, dispatch_clip_grad, is_primary
from ..masking import keyed_noise
from .checkpoints import Checkpoint
from .data.loading import batches_of_epoch
from .data.reading import sample_seed
from .errors import RunStopped, StopSignal, UnreadableImages, UserError
from .flags.run_options import RunOptions
from .options import resolve_learning_rate
from .resume import restore_optimizer, updates_done
from .sharding import gradients_unreduced, whole
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


class RunningMeans:
    """Sums on the device, which the host fetches only to report.

    Sums are in float64 where the device has it: it holds them without rounding, so that a run that was interrupted
    tells the same means.

    Args:
        device: Device of the values.
    """

    def __init__(self, device: torch.device):
        self.zero = torch.zeros((), device=device, dtype=torch.float32 if device.type == 'mps' else torch.float64)
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.epoch: Dict[str, torch.Tensor] = {}  # sums since the beginning of the epoch
        self.recent: Dict[str, torch.Tensor] = {}  # sums since the last report
        self.epoch_count = self.recent_count = 0

    def add(self, **values: torch.Tensor) -> None:
        """Add the values of an update, scalars on the device."""
        for sums in (self.epoch, self.recent):
            for name, value in values.items():
                sums[name] = sums.get(name, self.zero) + value.detach()
        self.epoch_count += 1
        self.recent_count += 1

    def report(self) -> Dict[str, float]:
        """Means since the last report, over all processes."""
        means = _over_processes(self.recent, self.recent_count)
        self.recent, self.recent_count = {}, 0
        return means

    def of_epoch(self) -> Dict[str, float]:
        """Means since the beginning of the epoch, over all processes."""
        return _over_processes(self.epoch, self.epoch_count)

    def state_dict(self) -> Dict[str, Any]:
        """The sums of all processes."""
        return dict(
            sums=_over_processes(self.epoch, 1),
            count=self.epoch_count,
            recent_sums=_over_processes(self.recent, 1),
            recent_count=self.recent_count,
        )

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self.epoch = {name: self.zero + value for name, value in state['sums'].items()}
        self.epoch_count = state['count']
        self.recent = {name: self.zero + value for name, value in state['recent_sums'].items()}
        self.recent_count = state['recent_count']


def _over_processes(sums: Dict[str, torch.Tensor], count: int) -> Dict[str, float]:
    if not sums or not count:
        return {}
    values = torch.stack(list(sums.values()))
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return dict(zip(sums, (values / count).tolist()))


class Verdict(NamedTuple):
    """What all processes agreed on."""
    finite: bool
    stop: bool


class StepGuard:
    """Lets the processes agree before each step of the optimizer.

    Where the optimizer is fused, it skips steps by itself from the first loss on that is not finite, and the verdict
    is that on the step before: the host never waits for the device. Otherwise it is that on the present step.

    Args:
        optimizer: Optimizer whose steps are guarded.
        device: Device that losses are on.
        distributed: There are several processes.
        scaler: A gradient scaler is in use, which has its own way of skipping steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, distributed: bool, scaler: bool):
        self.device = device
        self.distributed = distributed
        self.deferred = getattr(optimizer, '_step_supports_amp_scaling', False) and not scaler
        self.pending: Optional[torch.Tensor] = None
        if self.deferred:
            # The convention of torch.amp.GradScaler with fused optimizers: no step where found_inf is 1.
            self.not_finite = torch.zeros((), device=device)
            optimizer.grad_scale, optimizer.found_inf = None, self.not_finite

    def check(self, loss: torch.Tensor, stop: bool) -> Verdict:
        """Check the loss of an update before its step.

        Args:
            loss: Loss of this process.
            stop: This process was asked to stop.
        """
        status = torch.stack([(~torch.isfinite(loss)).float(), torch.full_like(loss, float(stop))])
        if self.distributed:
            dist.all_reduce(status, dist.ReduceOp.MAX)
        if not self.deferred:
            return _read(status)
        torch.maximum(self.not_finite, status[0], out=self.not_finite)
        previous, self.pending = self.pending, _to_host(status)
        return Verdict(True, False) if previous is None else _read(previous)

    def finish(self) -> Verdict:
        """The verdict on the last step, before anything is saved."""
        previous, self.pending = self.pending, None
        return Verdict(True, False) if previous is None else _read(previous)

    def any_process(self, value: bool, device: torch.device) -> bool:
        """Whether a value is true on some process."""
        if not self.distributed:
            return value
        found = torch.tensor(float(value), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def all_finite(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether the tensors of all processes are finite, without any they are. The host waits for the device."""
        found: Dict[torch.device, List[torch.Tensor]] = {}  # an optimizer may count its steps on the host
        for tensor in tensors:
            shard = tensor.to_local() if hasattr(tensor, 'to_local') else tensor
            found.setdefault(shard.device, []).append(shard.detach().isfinite().all())
        finite = torch.ones((), device=self.device)
        for values in found.values():
            finite = finite * torch.stack(values).all().float().to(self.device)
        if self.distributed:
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        return bool(finite)


class _Copy(NamedTuple):
    values: torch.Tensor
    done: torch.cuda.Event


def _to_host(status: torch.Tensor):
    if status.device.type != 'cuda':
        return status
    values = torch.empty_like(status, device='cpu', pin_memory=True)
    values.copy_(status, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return _Copy(values, done)


def _read(status) -> Verdict:
    if isinstance(status, _Copy):
        status.done.synchronize()
        status = status.values
    not_finite, stop = status.tolist()
    return Verdict(not not_finite, bool(stop))


def backward(
        loss: torch.Tensor,
        optimizer: Optimizer,
        scaler: Optional[NativeScaler],
        parameters: Optional[Iterable[nn.Parameter]],
        clip_grad: Optional[float],
        clip_mode: str,
        need_update: bool,
        create_graph: bool = False,
) -> None:
    """Run the backward pass of a batch, and update the parameters if the batch completes an update.

    Args:
        loss: Loss of the batch.
        optimizer: Optimizer that updates the parameters.
        scaler: Scaler of the gradients, None where they need none.
        parameters: Parameters whose gradients are clipped.
        clip_grad: Limit of the gradients, None for none.
        clip_mode: How gradients are clipped: norm, value or agc.
        need_update: Whether the batch completes an update.
        create_graph: Whether the optimizer needs second derivatives.
    """
    if scaler is not None:
        scaler(
            loss,
            optimizer,
            clip_grad=clip_grad,
            clip_mode=clip_mode,
            parameters=parameters,
            create_graph=create_graph,
            need_update=need_update,
        )
        return
    loss.backward(create_graph=create_graph)
    if need_update:
        if clip_grad is not None:
            dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
        optimizer.step()


class Trainer:
    """Trains a method.

    Attributes:
        task: The task, with the method in it.
        update: Number of updates done in the whole run.
        updates_per_epoch: Number of updates of an epoch.
        num_epochs: Number of epochs of the schedule.
        means: Means of the present epoch.

    Args:
        options: Options of the run.
        method: Masked image modeling method, on its device.
        train_loader: Loader of normalised training images.
        process: Device and rank of this process, as `init_distributed_device` sets them.
        stop: Signal to stop.
        checkpoint: Checkpoint to go on from.
        data: Fingerprint of the images, which checkpoints hold.

    Raises:
        UserError: An option has an impossible value, or the checkpoint does not fit.
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
        self.counts_unreadable = not isinstance(train_loader.dataset, IterableDataset)  # a stream tells nothing
        self.noise_size = method.noise_shape(1)[1]

        self.updates_per_epoch = len(train_loader) // options.grad_accum_steps
        if self.updates_per_epoch == 0:
            raise UserError(
                f'--grad-accum-steps {options.grad_accum_steps}: the dataset has {len(train_loader)} batches an epoch.')
        self.images_per_update = options.batch_size * process.world_size * options.grad_accum_steps
        self.learning_rate = resolve_learning_rate(options, self.images_per_update)
        self.autocast, self.scaler = autocast_of(options, self.device), scaler_of(options, self.device)
        self.means = RunningMeans(self.device)
        self.update = 0

        self.task = create_task(options, method, process, checkpoint)
        self.optimizer = create_optimizer(method, options, self.learning_rate, self.device)
        self._go_to_start(checkpoint)
        compile_and_distribute(self.task, options, process)
        self.schedules = Schedules(self.optimizer, options, self.updates_per_epoch)
        self.schedules.step(self.update)
        self.num_epochs = self.schedules.num_epochs
        self.guard = StepGuard(self.optimizer, self.device, process.distributed, self.scaler is not None)

    def _go_to_start(self, checkpoint: Optional[Checkpoint]) -> None:
        """Go to the place in the run that a checkpoint or --start-epoch says, with the optimizer as it was there."""
        options = self.options
        if checkpoint is not None:
            if not options.no_resume_opt:
                restore_optimizer(self.optimizer, self.scaler, checkpoint)
            self.update = updates_done(checkpoint, self.updates_per_epoch, self.images_per_update)
            if self.update % self.updates_per_epoch:
                self.means.load_state_dict(checkpoint.run['means'])
        # A run that goes on has begun there already.
        if options.start_epoch is not None and not (checkpoint is not None and checkpoint.goes_on):
            self.update = options.start_epoch * self.updates_per_epoch
            self.means.reset()

    def state_dict(self) -> Dict[str, Any]:
        """The place in the run for a checkpoint, and what has to be gathered for it. All processes ask together.

        Raises:
            FloatingPointError: The last loss of a process, the weights or the state of the optimizer are not finite,
                and nothing should be saved.
        """
        self._judge(self.guard.finish(), self.update - 1)
        if not self.guard.all_finite(self._weights()):  # the gradients of a finite loss may not be
            raise self._not_finite(f'the weights are not finite after step {self.update}', 'they were not saved')
        # A gradient that is too large to be squared makes the second moment infinite, and steps zero for ever after.
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
        return dict(whole(state, keep=is_primary(self.process)), run=run)

    def _weights(self) -> Iterator[torch.Tensor]:
        """All weights that checkpoints hold, and the running statistics of norms."""
        for ema in (False, True) if self.task.has_ema() else (False,):
            method = self.task.get_method(ema=ema)
            yield from method.parameters()
            yield from (buffer for name, buffer in method.named_buffers() if name.endswith(_STATISTICS))

    @property
    def trained_method(self) -> nn.Module:
        """The method that counts: its moving average where there is one."""
        return self.task.get_method(ema=self.task.has_ema())

    @property
    def num_images(self) -> Optional[int]:
        """Number of images to train on, None of a stream."""
        dataset = self.train_loader.dataset
        return None if isinstance(dataset, IterableDataset) else len(dataset)

    @property
    def last_epoch(self) -> int:
        """Number of epochs after which the run ends."""
        return min(self.options.stop_epoch or self.num_epochs, self.num_epochs)

    def updates(self) -> Iterator[int]:
        """Train until the end of the present epoch, yield the number of updates done after each.

        Raises:
            FloatingPointError: The loss of a process is not finite; no step was taken with it.
            RunStopped: The processes were asked to stop. The last update is complete.
        """
        accumulation = self.options.grad_accum_steps
        epoch, done = divmod(self.update, self.updates_per_epoch)
        if done == 0:
            self.means.reset()
        self.task.train()
        batches = batches_of_epoch(self.train_loader, epoch, first=done * accumulation)
        for _ in range(done, self.updates_per_epoch):
            stop = self._train_update(batches)
            yield self.update
            if stop:
                raise RunStopped
        self._judge(self.guard.finish(), self.update - 1)

    def is_asked_to_stop(self) -> bool:
        """Whether some process was asked to stop. All processes ask together."""
        return self.guard.any_process(bool(self.stop), self.device)

    def check_readable(self) -> float:
        """Return the share of unreadable images in what was seen of the epoch. All processes ask together.

        Raises:
            UnreadableImages: They are more of the whole epoch than the user allows.
        """
        share = self.means.of_epoch().get('unreadable', 0.)
        of_epoch = share * self.means.epoch_count / self.updates_per_epoch
        if of_epoch > self.options.max_unreadable:
            raise UnreadableImages(
                f'{of_epoch:.1%} of the images of an epoch cannot be read, some are named above: remove or replace '
                f'them, or allow more than --max-unreadable {self.options.max_unreadable:g}.')
        return share

    def _train_update(self, batches: Iterator[Tuple[torch.Tensor, torch.Tensor]]) -> bool:
        """Do an update, and return whether to stop after it."""
        parts = self.options.grad_accum_steps
        total, unreadable = None, 0.
        for part in range(parts):
            images, index = next(batches)
            unreadable = unreadable + (index < 0).float().mean() / parts
            last = part + 1 == parts
            with nullcontext() if last else self._gradients_unreduced():
                output = self._forward(images, part)
                loss = output['loss'] / parts
                total = loss.detach() if total is None else total + loss.detach()
                if last:
                    stop = self._judge(self.guard.check(total, bool(self.stop)), self.update - self.guard.deferred)
                self._backward(loss, last)
        logs = dict(output.get('logs') or {})
        if self.counts_unreadable:
            logs['unreadable'] = unreadable
        self.means.add(loss=total, **logs)
        self._after_step()
        return stop

    def _gradients_unreduced(self) -> ContextManager:
        """Leave gradients on their process, for all parts of an update but the last."""
        return gradients_unreduced(self.task.get_method()) if self.options.fsdp else self.task.no_sync()

    def _forward(self, images: torch.Tensor, part: int) -> Dict[str, torch.Tensor]:
        """Mask the images of a part of the update, and predict."""
        options = self.options
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # Masks depend on the place of an image in the global batch, whatever process it is on. Dropout need not: its
        # seed only has to be the same when a run is resumed.
        first = (part * self.process.world_size + self.process.rank) * options.batch_size
        positions = torch.arange(first, first + len(images), device=self.device)
        noise = keyed_noise(options.seed, self.update, positions, self.noise_size)
        torch.manual_seed(sample_seed(options.seed, self.update, first))
        with self.autocast():
            return self.task(images, noise=noise)

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

    def _judge(self, verdict: Verdict, update: int) -> bool:
        """Return whether to stop.

        Raises:
            FloatingPointError: The loss of some process is not finite.
        """
        if verdict.finite:
            return verdict.stop
        raise self._not_finite(f'the loss is not finite in step {update + 1}', 'no step was taken with it')

    def _not_finite(self, what: str, consequence: str, advice: str = 'lower') -> FloatingPointError:
        learning_rate = self.optimizer.param_groups[0]['lr']
        return FloatingPointError(
            f'{what}, with a learning rate of {learning_rate:.3g}: {consequence}. {advice[0].upper()}{advice[1:]} --lr '
            'or lengthen --warmup-epochs, or use --amp-dtype bfloat16 if it is float16; --resume auto goes on from the '
            'last checkpoint, with what is changed.')
