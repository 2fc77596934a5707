"""Batch norm and group norm with statistics of visible cells.

Shape letters: B batch, C channels, H x W cells.
"""
from typing import Any, Optional, Tuple

import torch
import torch.distributed as dist

from .zeroing import zero_masked, zero_masked_

__all__ = ['visible_batch_norm', 'visible_group_norm']

_OVER = (0, 2, 3)


class _BatchNorm(torch.autograd.Function):
    """Batch norm over visible cells. It keeps what the dense one keeps for the backward pass: input, mean and scale."""

    @staticmethod
    def forward(
            x: torch.Tensor,
            visible: torch.Tensor,
            weight: Optional[torch.Tensor],
            bias: Optional[torch.Tensor],
            eps: float,
            synchronized: bool,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        values = x.to(dtype)
        total, count = values.sum(_OVER), visible.sum().to(dtype)
        if synchronized:
            total, count = _sum_over_processes(total, count)
        mean = total / count
        centred = zero_masked_(values - _per_channel(mean), visible)
        squares = centred.square().sum(_OVER)
        if synchronized:
            squares, = _sum_over_processes(squares)
        variance = squares / count
        scale = (variance + eps).rsqrt()
        y = centred.mul_(_per_channel(scale if weight is None else scale * weight.to(dtype)))
        if bias is not None:
            y = zero_masked_(y.add_(_per_channel(bias.to(dtype))), visible)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple, output: Tuple) -> None:
        x, visible, weight, bias, eps, synchronized = inputs
        _, mean, variance, count = output
        ctx.save_for_backward(x, visible, weight, mean, variance, count)
        ctx.has_bias, ctx.eps, ctx.synchronized = bias is not None, eps, synchronized
        ctx.mark_non_differentiable(mean, variance, count)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> Tuple:
        x, visible, weight, mean, variance, count = ctx.saved_tensors
        dtype = variance.dtype
        scale = (variance + ctx.eps).rsqrt()
        grad = zero_masked(grad.to(dtype), visible)
        normalized = (x.to(dtype) - _per_channel(mean)).mul_(_per_channel(scale))
        grad_bias = total_bias = grad.sum(_OVER)
        grad_weight = total_weight = (grad * normalized).sum(_OVER)
        if ctx.synchronized:  # gradients of weight and bias stay those of this process: DDP averages them
            total_bias, total_weight = _sum_over_processes(grad_bias, grad_weight)
        factor = scale if weight is None else scale * weight.to(dtype)
        grad_x = grad.addcmul_(normalized, _per_channel(total_weight / -count)).sub_(_per_channel(total_bias / count))
        grad_x = zero_masked_(grad_x.mul_(_per_channel(factor)), visible)
        return (
            grad_x.to(x.dtype), None,
            None if weight is None else grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype if weight is not None else x.dtype) if ctx.has_bias else None, None, None)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


def _sum_over_processes(*values: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """Return sums of tensors over all processes, in one exchange."""
    if not dist.is_initialized():
        return values
    joined = torch.cat([value.flatten() for value in values])
    dist.all_reduce(joined)
    return tuple(
        part.view(value.shape) for part, value in zip(joined.split([value.numel() for value in values]), values))


def visible_batch_norm(
        x: torch.Tensor,
        visible: torch.Tensor,
        running_mean: Optional[torch.Tensor],
        running_var: Optional[torch.Tensor],
        weight: Optional[torch.Tensor],
        bias: Optional[torch.Tensor],
        momentum: float,
        eps: float,
        synchronized: bool = False,
) -> torch.Tensor:
    """Normalise visible cells by their mean and variance over the batch, and update running statistics with these.

    If all cells are visible, this is `torch.nn.functional.batch_norm` in training. Computed in float32 or better.

    Args:
        x: Feature map of shape (B, C, H, W), 0 at masked cells.
        visible: Visible cells of shape (B, 1, H, W) bool, at least one.
        running_mean: Running mean of shape (C), updated in place, or None.
        running_var: Running unbiased variance of shape (C), updated in place, or None.
        weight: Weight of shape (C) or None.
        bias: Bias of shape (C) or None.
        momentum: Share of the statistics of the batch in the running statistics.
        eps: Constant added to the variance.
        synchronized: Take the statistics over all processes.

    Returns:
        Feature map of shape (B, C, H, W), 0 at masked cells.
    """
    y, mean, variance, count = _BatchNorm.apply(x, visible, weight, bias, eps, synchronized)
    if running_mean is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return y


def visible_group_norm(
        x: torch.Tensor,
        visible: torch.Tensor,
        num_groups: int,
        weight: Optional[torch.Tensor],
        bias: Optional[torch.Tensor],
        eps: float,
) -> torch.Tensor:
    """Normalise cells by the mean and variance of the visible ones in each sample and group of channels.

    Computed in float32 or better.

    Args:
        x: Feature map of shape (B, C, H, W).
        visible: Visible cells of shape (B, 1, H, W) bool.
        num_groups: Number of groups of channels.
        weight: Weight of shape (C) or None.
        bias: Bias of shape (C) or None.
        eps: Constant added to the variance.

    Returns:
        Feature map of shape (B, C, H, W).
    """
    groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (num_groups, -1))  # (B, G, C / G, H, W)
    cells = visible.unsqueeze(1)
    over = (2, 3, 4)
    count = cells.sum(over, keepdim=True).clamp(min=1) * groups.shape[2]
    mean = torch.where(cells, groups, 0.).sum(over, keepdim=True) / count
    centred = groups - mean
    variance = torch.where(cells, centred, 0.).square().sum(over, keepdim=True) / count
    y = (centred * (variance + eps).rsqrt()).flatten(1, 2)
    if weight is not None:
        y = y * _per_channel(weight)
    if bias is not None:
        y = y + _per_channel(bias)
    return y.to(x.dtype)
