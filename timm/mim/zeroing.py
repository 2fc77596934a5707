"""Set masked values of a feature map to 0.

On a CPU `torch.where` and `masked_fill_` take two to four times as long as a multiplication, and a multiplication with
0 keeps NaN and infinite values. Here the bits of each value are combined with a mask of bits, which is as fast as a
multiplication and sets every masked value to 0.
"""
from typing import Any, Tuple

import torch

__all__ = ['zero_masked', 'zero_masked_']

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _ZeroMasked(torch.autograd.Function):

    @staticmethod
    def forward(x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return _combine_bits(x, visible)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple, output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[torch.Tensor, None]:
        return _combine_bits(grad, *ctx.saved_tensors), None


def zero_masked(x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Return a copy of values in which masked ones are 0, also those that are infinite or NaN, with their gradients.

    Args:
        x: Values of any shape, real floating point.
        visible: Visible values, bool, of a shape that broadcasts to that of `x`.
    """
    return _ZeroMasked.apply(x, visible)


def zero_masked_(x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Set masked values to 0 in place. The gradient does not know of it: for use inside of autograd functions."""
    x.view(_INTEGERS[x.element_size()]).bitwise_and_(_bits(visible, x))
    return x


def _combine_bits(x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    return (x.view(_INTEGERS[x.element_size()]) & _bits(visible, x)).view(x.dtype)


def _bits(visible: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return integers whose bits are all 1 for visible values, and all 0 for masked ones."""
    return visible.to(_INTEGERS[x.element_size()]).neg()
