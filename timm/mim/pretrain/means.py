"""Means over the updates of an epoch, of the loss and what else a method logs."""
from typing import Any, Dict

import torch
import torch.distributed as dist


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
