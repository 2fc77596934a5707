"""Learning rate and its schedule."""
import argparse
import logging
from typing import Any, Optional, Tuple

from torch.optim import Optimizer

from timm.mim.pretrain.options import scaled_learning_rate
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from .errors import UserError, user_errors

_logger = logging.getLogger(__name__)


def resolve_learning_rate(args: argparse.Namespace, average_batch_size: float, primary: bool) -> None:
    """Set `lr` in the arguments, from --lr-base and the images of an update, if it was not given."""
    if args.lr:
        return
    images = average_batch_size * args.world_size * args.grad_accum_steps
    if not args.lr_base_scale:
        adaptive = any(part in args.opt.lower() for part in ('ada', 'lamb'))
        args.lr_base_scale = 'sqrt' if adaptive else 'linear'
    args.lr = scaled_learning_rate(args.lr_base, images / args.lr_base_size, args.lr_base_scale)
    if primary:
        _logger.info(
            f'Learning rate {args.lr:g}: {args.lr_base:g} for {args.lr_base_size} images, {args.lr_base_scale} in the '
            f'{images:g} images of an update.')


def create_schedule(
        args: argparse.Namespace,
        optimizer: Optimizer,
        updates_per_epoch: int,
        lower_is_better: bool,
) -> Tuple[Optional[Any], int, int]:
    """Create the schedule of the learning rate.

    Args:
        args: Arguments of the run.
        optimizer: Its optimizer.
        updates_per_epoch: Updates in an epoch.
        lower_is_better: Whether the metric that a plateau is seen in should fall.

    Returns:
        The scheduler or None, the number of its epochs, and the epoch to stop before.

    Raises:
        UserError: There is no such schedule, or it ends before --stop-epoch.
    """
    with user_errors(f'--sched {args.sched}', AssertionError, ValueError):
        scheduler, num_epochs = create_scheduler_v2(
            optimizer,
            **scheduler_kwargs(args, decreasing_metric=lower_is_better),
            updates_per_epoch=updates_per_epoch,
        )
    if args.stop_epoch is None:
        return scheduler, num_epochs, num_epochs
    if not 1 <= args.stop_epoch <= num_epochs:
        raise UserError(f'--stop-epoch {args.stop_epoch} must lie between 1 and {num_epochs}, the epochs of the run.')
    return scheduler, num_epochs, args.stop_epoch


def start_schedule(scheduler: Optional[Any], start_epoch: int, updates_per_epoch: int, on_updates: bool) -> None:
    """Bring a scheduler to the epoch that a resumed run begins with."""
    if scheduler is None or start_epoch == 0:
        return
    if on_updates:
        scheduler.step_update(start_epoch * updates_per_epoch)
    else:
        scheduler.step(start_epoch)
