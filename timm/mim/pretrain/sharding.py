"""Shard parameters, gradients and optimizer state over processes with FSDP2 (`fully_shard`).

Checkpoints store whole tensors, or in folders their parts with their places, so a run can resume with or without
--fsdp, whichever it had before.
"""
from contextlib import contextmanager
from typing import Any, Iterator, List

import torch
import torch.nn as nn

try:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor, distribute_tensor
    has_fsdp2 = True
except ImportError:
    has_fsdp2 = False

# Methods that use parameters and are called from outside `forward`
_FORWARD_METHODS = (
    'apply_to_encoder', 'reconstruct', 'reconstruct_naflex', 'reconstruct_with_target_statistics', 'views')


def shard(method: nn.Module, device: torch.device) -> None:
    """Shard a method over all processes in place, one block at a time.

    Each of the `repeated_blocks`, such as the blocks of a transformer, is gathered for its own forward and backward
    pass. The other parameters are gathered for the whole step.

    Args:
        method: Masked image modeling method, with equal weights on all processes.
        device: Device of this process.
    """
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in repeated_blocks(method):
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    for name in _FORWARD_METHODS:
        if hasattr(method, name):
            register_fsdp_forward_method(method, name)


def repeated_blocks(module: nn.Module) -> List[nn.Module]:
    """Return the members of the innermost `ModuleList`s and `Sequential`s whose members have one type and parameters.
    """
    below = [block for child in module.children() for block in repeated_blocks(child)]
    if below or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return below
    children = list(module.children())
    alike = len(children) > 1 and len({type(child) for child in children}) == 1
    return children if alike and next(children[0].parameters(), None) is not None else []


@contextmanager
def gradients_unreduced(method: nn.Module) -> Iterator[None]:
    """Skip the gradient reduction of a sharded method, for all batches of an update but the last."""
    method.set_requires_gradient_sync(False)
    yield
    method.set_requires_gradient_sync(True)


def whole(state: Any, keep: bool = True) -> Any:
    """Gather the sharded tensors of a nested state into main memory. All processes must call this together.

    Args:
        state: State of a model, an optimizer, or several of them.
        keep: Return the gathered tensors. Otherwise None takes the place of each sharded tensor.
    """
    if isinstance(state, dict):
        return {name: whole(value, keep) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value, keep) for value in state)
    if not has_fsdp2 or not isinstance(state, DTensor):
        return state
    tensor = state.full_tensor()
    return tensor.cpu() if keep else None


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load an optimizer state into an optimizer whose parameters may be sharded.

    Args:
        optimizer: Optimizer, with its parameters in the order of the saved optimizer.
        state: Result of `optimizer.state_dict()`, whose tensors are whole, or sharded like the parameters.

    Raises:
        ValueError: The saved optimizer has other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]

    def as_parameter(number: int, value: Any) -> Any:
        parameter = parameters[number]
        if isinstance(value, DTensor):
            return value
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        return value

    if has_fsdp2 and any(isinstance(parameter, DTensor) for parameter in parameters):
        if len(state['state']) > len(parameters):
            raise ValueError(f'the optimizer has {len(parameters)} parameters, and the one in the checkpoint has more')
        state = {**state, 'state': {
            number: {name: as_parameter(number, value) for name, value in values.items()}
            for number, values in state['state'].items()
        }}
    optimizer.load_state_dict(state)
