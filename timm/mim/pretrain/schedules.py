"""Learning rate and weight decay over the course of a run."""
import argparse
import math
from typing import Any, Optional, Tuple

import torch

from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from .errors import UserError, one_line


class Schedules:
    """Steps learning rate and weight decay at every update, as the published recipes do.

    Attributes:
        num_epochs: Number of epochs of the schedule of the learning rate, with its warm-up and cool-down.

    Args:
        optimizer: Optimizer.
        options: Options of the run.
        updates_per_epoch: Number of updates of an epoch.

    Raises:
        UserError: An option does not suit the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: argparse.Namespace, updates_per_epoch: int):
        self.learning_rate, self.num_epochs = _create_scheduler(optimizer, options, updates_per_epoch)
        self.weight_decay = WeightDecaySchedule(
            optimizer, options.weight_decay_end, self.num_epochs * updates_per_epoch)

    def step(self, update: int) -> None:
        """Set learning rate and weight decay for the next update.

        Args:
            update: Number of updates done.
        """
        if self.learning_rate is not None:
            self.learning_rate.step_update(update)
        self.weight_decay.step(update)


def _create_scheduler(
        optimizer: torch.optim.Optimizer,
        options: argparse.Namespace,
        updates_per_epoch: int,
) -> Tuple[Optional[Any], int]:
    """Create timm's scheduler of the learning rate, None with `--sched none`, and tell its number of epochs."""
    arguments = {**scheduler_kwargs(options, decreasing_metric=True), 'step_on_epochs': False}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    try:
        return create_scheduler_v2(optimizer, **arguments, updates_per_epoch=updates_per_epoch)
    except (AssertionError, ValueError) as e:
        raise UserError(f'--sched {options.sched}: {one_line(e)}') from e


class WeightDecaySchedule:
    """Moves the weight decay along half a cosine, as I-JEPA and DINO do, in the groups that have one.

    Args:
        optimizer: Optimizer.
        end: Weight decay at the end, None to leave it as it is.
        num_updates: Number of updates of the whole run.

    Raises:
        UserError: There is no weight decay to begin from.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, end: Optional[float], num_updates: int):
        self.end = end
        self.num_updates = num_updates
        self.groups = [] if end is None else [group for group in optimizer.param_groups if group['weight_decay'] > 0]
        if end and not self.groups:
            raise UserError(f'--weight-decay-end {end:g} needs a --weight-decay above 0 to begin from.')
        for group in self.groups:
            group.setdefault('initial_weight_decay', group['weight_decay'])

    def step(self, update: int) -> None:
        """Set the weight decay for the next update."""
        share = (1 - math.cos(math.pi * min(1., update / self.num_updates))) / 2
        for group in self.groups:
            start = group['initial_weight_decay']
            group['weight_decay'] = start + (self.end - start) * share
