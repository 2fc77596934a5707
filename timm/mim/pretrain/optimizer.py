"""The optimizer of a run, and the weight decay over its course."""
import argparse
import math
from typing import Optional

import torch
import torch.nn as nn

from timm.optim import create_optimizer_v2, optimizer_kwargs
from .errors import UserError, one_line


def create_optimizer(
        method: nn.Module,
        options: argparse.Namespace,
        learning_rate: float,
        device: torch.device,
) -> torch.optim.Optimizer:
    """Create the optimizer, a fused one where PyTorch has it: that is faster, and can skip a step without the host.

    Args:
        method: Method whose parameters that require a gradient are optimized.
        options: Options of the run.
        learning_rate: Learning rate at the top of the schedule.
        device: Device of the parameters.

    Raises:
        UserError: An option does not suit the optimizer.
    """
    config = optimizer_kwargs(argparse.Namespace(**{**vars(options), 'lr': learning_rate}))
    chosen = options.opt_kwargs
    can_fuse = options.opt.lower() in ('adam', 'adamw') and device.type in ('cpu', 'cuda')
    if can_fuse and not {'fused', 'foreach', 'capturable', 'differentiable'} & chosen.keys():
        try:
            return create_optimizer_v2(method, **config, **chosen, fused=True)
        except Exception:  # a PyTorch without one for this device, or a mistake that the other tells as well
            pass
    try:
        return create_optimizer_v2(method, **config, **chosen)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f'--opt {options.opt}: {one_line(e)}') from e


class WeightDecaySchedule:
    """Moves the weight decay along half a cosine, as I-JEPA and DINO do, in the groups that have one.

    Args:
        optimizer: Optimizer.
        end: Weight decay at the end, None to leave it as it is.
        num_updates: Number of updates of the whole run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, end: Optional[float], num_updates: int):
        self.end = end
        self.num_updates = num_updates
        self.groups = [] if end is None else [group for group in optimizer.param_groups if group['weight_decay'] > 0]
        for group in self.groups:
            group.setdefault('initial_weight_decay', group['weight_decay'])

    def step(self, update: int) -> None:
        """Set the weight decay for the next update."""
        share = (1 - math.cos(math.pi * min(1., update / self.num_updates))) / 2
        for group in self.groups:
            start = group['initial_weight_decay']
            group['weight_decay'] = start + (self.end - start) * share
