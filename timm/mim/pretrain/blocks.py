"""What is done to the repeated blocks of a method, one by one: compile them, and recompute their activations.

Both replace `forward` of a block and keep the module, so that the names of parameters stay the same. `fully_shard` acts
before and after the forward pass, outside of both. torchtitan has the same order: activation checkpointing, compiling,
sharding.
"""
from functools import partial
from typing import List, Optional

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(module: nn.Module) -> List[nn.Module]:
    """Return the members of the innermost `ModuleList`s and `Sequential`s whose members have one type and parameters.
    """
    below = [block for child in module.children() for block in repeated_blocks(child)]
    if below or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return below
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return children if alike and next(children[0].parameters(), None) is not None else []


def checkpoint_blocks(method: nn.Module, every: int) -> None:
    """Recompute the activations of some blocks in the backward pass, in place.

    Args:
        method: Masked image modeling method.
        every: Distance between two such blocks: 1 for all, 2 for every second one, beginning with the first.
    """
    for block in repeated_blocks(method)[::every]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(method: nn.Module, backend: str = 'inductor', mode: Optional[str] = None) -> None:
    """Compile each block by itself, in place. Blocks of one type and shape share their compiled code.

    Args:
        method: Masked image modeling method, not yet sharded.
        backend: Backend of `torch.compile`.
        mode: Mode of `torch.compile`.

    Raises:
        RuntimeError: There is no such backend or mode.
    """
    for block in repeated_blocks(method):
        block.forward = torch.compile(block.forward, backend=backend, mode=mode)
