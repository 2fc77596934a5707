"""Shard parameters, gradients and optimizer state over processes with FSDP2 (`fully_shard`).

Checkpoints store whole tensors, or in folders their parts with their places, so a run can resume with or without
--fsdp, whichever it had before.
"""
from contextlib import contextmanager
from typing import Any, Iterator, Optional

import torch
import torch.nn as nn

from .blocks import repeated_blocks

try:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor, distribute_tensor
    has_fsdp2 = True
except ImportError:
    has_fsdp2 = False

# Methods that use parameters and are called from outside `forward`
_FORWARD_METHODS = (
    'apply_to_encoder', 'reconstruct', 'reconstruct_naflex', 'reconstruct_with_target_statistics', 'views')


def shard(
        method: nn.Module,
        device: torch.device,
        replicas: int = 1,
        reshard: bool = True,
        param_dtype: Optional[torch.dtype] = None,
        reduce_dtype: Optional[torch.dtype] = None,
) -> None:
    """Shard a method over processes in place, one block at a time.

    Each of the `repeated_blocks`, such as the blocks of a transformer, is gathered for its own forward and backward
    pass. The other parameters are gathered for the whole step.

    Args:
        method: Masked image modeling method, with equal weights on all processes.
        device: Device of this process.
        replicas: Number of groups of processes. Each group holds all parameters, and its processes a shard each.
        reshard: Free the gathered parameters of a block after its forward pass, and gather them again for its backward
            pass. Otherwise they stay until then.
        param_dtype: Dtype in which the parameters of blocks are gathered, and to which the inputs of blocks are cast.
            None for the dtype of the parameters. Parameters outside of blocks keep their dtype.
        reduce_dtype: Dtype in which processes average gradients, None for that of the gradients.
    """
    size = torch.distributed.get_world_size()
    if replicas == 1:
        mesh = torch.distributed.init_device_mesh(device.type, (size,))
    else:
        mesh = torch.distributed.init_device_mesh(
            device.type, (replicas, size // replicas), mesh_dim_names=('replicate', 'shard'))
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)
    for block in repeated_blocks(method):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    # images are among the inputs of the method, and so are the targets of its loss: they keep their dtype
    policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    fully_shard(method, mesh=mesh, mp_policy=policy)
    for name in _FORWARD_METHODS:
        if hasattr(method, name):
            register_fsdp_forward_method(method, name)


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
