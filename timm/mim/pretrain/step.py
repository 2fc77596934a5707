"""The parts of an update: means of what a run logs, the check that all values are finite, and the backward pass."""
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.optim import Optimizer

from timm.utils import NativeScaler, dispatch_clip_grad


class RunningMeans:
    """Sums values on the device; the host reads them only to report.

    The sums are float64 where the device supports it, which a checkpoint stores without rounding. A resumed run
    therefore reports the same means as an uninterrupted one.

    Args:
        device: Device of the values.
    """

    def __init__(self, device: torch.device):
        self.zero = torch.zeros((), device=device, dtype=torch.float32 if device.type == 'mps' else torch.float64)
        self.reset()

    def reset(self) -> None:
        """Clear all sums at the start of an epoch."""
        self.epoch: Dict[str, torch.Tensor] = {}  # sums since the beginning of the epoch
        self.recent: Dict[str, torch.Tensor] = {}  # sums since the last report
        self.epoch_count = self.recent_count = 0

    def add(self, **values: torch.Tensor) -> None:
        """Add the values of an update.

        Args:
            **values: Scalar tensors on the device, by name.
        """
        for sums in (self.epoch, self.recent):
            for name, value in values.items():
                sums[name] = sums.get(name, self.zero) + value.detach()
        self.epoch_count += 1
        self.recent_count += 1

    def report(self) -> Dict[str, float]:
        """Return the means since the last report over all processes, and clear their sums."""
        means = _over_processes(self.recent, self.recent_count)
        self.recent, self.recent_count = {}, 0
        return means

    def of_epoch(self) -> Dict[str, float]:
        """Return the means since the start of the epoch, over all processes."""
        return _over_processes(self.epoch, self.epoch_count)

    def state_dict(self) -> Dict[str, Any]:
        """Return the sums, averaged over processes, and the number of updates in each."""
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
    """Result of a check over all processes.

    Attributes:
        finite: The losses of all processes are finite.
        stop: Some process got a signal to stop.
    """
    finite: bool
    stop: bool


class StepGuard:
    """Checks over all processes, before each optimizer step, that the loss is finite and whether to stop.

    A fused optimizer skips every step from the first loss on that is not finite. The check then returns the result for
    the previous step, so that the host never waits for the device. With other optimizers it waits, and returns the
    result for the current step.

    Attributes:
        deferred: The check returns the result for the previous step.

    Args:
        optimizer: Optimizer whose steps are guarded.
        device: Device of the losses.
        distributed: There are several processes.
        scaler: A gradient scaler is in use. It skips steps in its own way.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, distributed: bool, scaler: bool):
        self.device = device
        self.distributed = distributed
        self.deferred = getattr(optimizer, '_step_supports_amp_scaling', False) and not scaler
        self.pending: Optional[torch.Tensor] = None
        if self.deferred:
            # torch.amp.GradScaler's convention for fused optimizers: they skip the step where found_inf is 1
            self.not_finite = torch.zeros((), device=device)
            optimizer.grad_scale, optimizer.found_inf = None, self.not_finite

    def check(self, loss: torch.Tensor, stop: bool) -> Verdict:
        """Check the loss of an update before its step.

        Args:
            loss: Loss of this process.
            stop: This process got a signal to stop.

        Returns:
            The result for this step, or for the previous step if `deferred`.
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
        """Return the result for the last step, if it is still pending. Call this before saving."""
        previous, self.pending = self.pending, None
        return Verdict(True, False) if previous is None else _read(previous)

    def any_process(self, value: bool, device: torch.device) -> bool:
        """Return whether a value is true on any process."""
        if not self.distributed:
            return value
        found = torch.tensor(float(value), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def all_finite(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Return whether the tensors of all processes are finite; True for no tensors. The host waits for the device.
        """
        found: Dict[torch.device, List[torch.Tensor]] = {}  # an optimizer may keep its step counts on the CPU
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
    """Run the backward pass of a batch, and step the optimizer if the batch completes an update.

    Args:
        loss: Loss of the batch.
        optimizer: Optimizer that updates the parameters.
        scaler: Gradient scaler, None to run without one.
        parameters: Parameters whose gradients are clipped.
        clip_grad: Limit for clipping, None for no clipping.
        clip_mode: How gradients are clipped: norm, value or agc.
        need_update: The batch completes an update.
        create_graph: The optimizer needs second derivatives.
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
