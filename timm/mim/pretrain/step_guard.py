"""Whether a step may be taken: no process has a loss that is not finite, none was asked to stop."""
from typing import Dict, Iterable, List, NamedTuple, Optional

import torch
import torch.distributed as dist


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
