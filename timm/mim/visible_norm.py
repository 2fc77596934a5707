"""Normalisation by Statistics of Visible Cells

Shape letters: B batch, C channels, H x W cells, of all samples together n visible ones.
"""
from typing import Any, Optional, Tuple

import torch

__all__ = ['visible_batch_norm', 'visible_group_norm']

_OVER = (0, 2, 3)


class _BatchNorm(torch.autograd.Function):
    """Batch norm over visible cells, with the memory of the dense one: its input, mean and scale are kept."""

    @staticmethod
    def forward(
            x: torch.Tensor,
            visible: torch.Tensor,
            weight: Optional[torch.Tensor],
            bias: Optional[torch.Tensor],
            eps: float,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        values, cells = x.to(dtype), visible.to(dtype)
        count = cells.sum()
        mean = torch.where(visible, values, 0.).sum(_OVER) / count
        centred = (values - _per_channel(mean)).masked_fill_(~visible, 0.)  # what is there may be infinite
        variance = torch.linalg.vector_norm(centred, dim=_OVER).square() / count
        scale = (variance + eps).rsqrt()
        y = centred.mul_(_per_channel(scale if weight is None else scale * weight.to(dtype)))
        if bias is not None:
            y.addcmul_(cells, _per_channel(bias.to(dtype)))
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple, output: Tuple) -> None:
        x, visible, weight, bias, eps = inputs
        _, mean, variance, count = output
        ctx.save_for_backward(x, visible, weight, mean, variance, count)
        ctx.has_bias, ctx.eps = bias is not None, eps
        ctx.mark_non_differentiable(mean, variance, count)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> Tuple:
        x, visible, weight, mean, variance, count = ctx.saved_tensors
        dtype = variance.dtype
        cells = visible.to(dtype)
        scale = (variance + ctx.eps).rsqrt()
        grad = torch.where(visible, grad.to(dtype), 0.)
        normalized = (x.to(dtype) - _per_channel(mean)).mul_(_per_channel(scale)).masked_fill_(~visible, 0.)
        grad_bias = grad.sum(_OVER)
        grad_weight = (grad * normalized).sum(_OVER)
        factor = scale if weight is None else scale * weight.to(dtype)
        grad_x = grad.sub_(normalized.mul_(_per_channel(grad_weight / count)).add_(
            _per_channel(grad_bias / count)).mul_(cells)).mul_(_per_channel(factor))
        return (
            grad_x.to(x.dtype), None,
            None if weight is None else grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype if weight is not None else x.dtype) if ctx.has_bias else None, None)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


def visible_batch_norm(
        x: torch.Tensor,
        visible: torch.Tensor,
        running_mean: Optional[torch.Tensor],
        running_var: Optional[torch.Tensor],
        weight: Optional[torch.Tensor],
        bias: Optional[torch.Tensor],
        momentum: float,
        eps: float,
) -> torch.Tensor:
    """Normalise visible cells by their mean and variance over the batch, and update running statistics by those.

    With all cells visible it is `torch.nn.functional.batch_norm` in training. Computed in float32 or better.

    Args:
        x: Feature map of shape (B, C, H, W).
        visible: Visible cells of shape (B, 1, H, W) bool.
        running_mean: Running mean of shape (C), updated in place, or None.
        running_var: Running unbiased variance of shape (C), updated in place, or None.
        weight: Weight of shape (C) or None.
        bias: Bias of shape (C) or None.
        momentum: Share of the statistics of the batch in the running ones.
        eps: What is added to the variance.

    Returns:
        Feature map of shape (B, C, H, W), 0 at masked cells.
    """
    y, mean, variance, count = _BatchNorm.apply(x, visible, weight, bias, eps)
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

    Args:
        x: Feature map of shape (B, C, H, W).
        visible: Visible cells of shape (B, 1, H, W) bool.
        num_groups: Number of groups of channels.
        weight: Weight of shape (C) or None.
        bias: Bias of shape (C) or None.
        eps: What is added to the variance.

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
