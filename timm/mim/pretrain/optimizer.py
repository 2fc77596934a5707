"""The optimizer of a run."""
import argparse
from typing import Any, Iterator

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


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the tensors of the state of an optimizer: moments, counts of steps, and what else it keeps."""
    yield from _tensors(list(optimizer.state.values()))


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
