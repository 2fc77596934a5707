"""Optimize some parameters of a method with an optimizer and schedules of their own.

`JoinedOptimizer` steps, saves and restores several optimizers like a single one: its parameter groups are theirs, one
optimizer after the other, and its state has the form of a single optimizer's.
"""
import dataclasses
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import torch
import torch.nn as nn

from .errors import UserError
from .flags.run_options import FIELDS, RunOptions

__all__ = ['JoinedOptimizer', 'Part', 'only_training', 'own_parts']


class Part(NamedTuple):
    """Parameters that have an optimizer of their own, see `MIMMethod.own_optimizers`.

    Attributes:
        parameters: Parameters.
        options: Options of the run, with the settings of this optimizer.
        lr_scale: Peak learning rate divided by that of the run.
    """
    parameters: List[nn.Parameter]
    options: RunOptions
    lr_scale: float


def own_parts(method: nn.Module, options: RunOptions) -> List[Part]:
    """Return the parts of a method that have optimizers of their own.

    Raises:
        UserError: A setting is no option of a run, or a part has no trainable parameter.
    """
    settings = method.own_optimizers() if hasattr(method, 'own_optimizers') else {}
    parts = []
    for beginning, own in settings.items():
        own = {'layer_decay': None, 'weight_decay_end': None, **own}
        lr_scale = own.pop('lr_scale', 1.)
        unknown = sorted(own.keys() - FIELDS.keys())
        if unknown:
            raise UserError(f"The optimizer of '{beginning}' has a setting that no run has: {unknown[0]}.")
        if own.get('opt', options.opt) != options.opt:
            own = {'opt_kwargs': {}, 'opt_eps': None, **own}  # those of the run belong to another optimizer
        parameters = [p for name, p in method.named_parameters() if name.startswith(beginning) and p.requires_grad]
        if not parameters:
            raise UserError(f"The optimizer of '{beginning}' has no parameters.")
        parts.append(Part(parameters, _replaced(options, own), lr_scale))
    return parts


def _replaced(options: RunOptions, own: Dict[str, Any]) -> RunOptions:
    if dataclasses.is_dataclass(options):
        return dataclasses.replace(options, **own)
    return type(options)(**{**vars(options), **own})


@contextmanager
def only_training(method: nn.Module, parts: Sequence[Part]) -> Iterator[None]:
    """Within this context, the parameters of the parts do not require a gradient, so that no other optimizer gets them.
    """
    parameters = [parameter for part in parts for parameter in part.parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class JoinedOptimizer:
    """Several optimizers of separate parameters, used like a single one.

    Args:
        members: Pairs of an optimizer and the options of its schedules. The first is that of the run.
    """

    def __init__(self, members: Sequence[Tuple[torch.optim.Optimizer, RunOptions]]) -> None:
        self.members = list(members)
        self.optimizers = [optimizer for optimizer, _ in members]

    @property
    def param_groups(self) -> List[Dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> Dict[nn.Parameter, Any]:
        """The states of all optimizers, by parameter."""
        return {parameter: state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return all(getattr(optimizer, '_step_supports_amp_scaling', False) for optimizer in self.optimizers)

    def __setattr__(self, name: str, value: Any) -> None:
        # with these attributes GradScaler and StepGuard tell fused optimizers to skip a step
        for optimizer in self.optimizers if name in ('grad_scale', 'found_inf') else ():
            setattr(optimizer, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        for optimizer in self.optimizers if name in ('grad_scale', 'found_inf') else ():
            delattr(optimizer, name)
        super().__delattr__(name)

    def step(self) -> None:
        """Step all optimizers."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> Dict[str, Any]:
        """Return the states of all optimizers in the form of a single one, with parameters numbered throughout."""
        joined: Dict[str, Any] = dict(state={}, param_groups=[])
        first = 0
        for optimizer in self.optimizers:
            saved = optimizer.state_dict()
            joined['state'].update({first + number: value for number, value in saved['state'].items()})
            joined['param_groups'] += [
                {**group, 'params': [first + number for number in group['params']]} for group in saved['param_groups']]
            first += _num_parameters(saved)
        return joined

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Load the result of `state_dict`.

        Raises:
            ValueError: The state has other parameter groups.
        """
        groups = list(state['param_groups'])
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f'the optimizers have {len(self.param_groups)} parameter groups, and the state has {len(groups)}')
        first = 0
        for optimizer in self.optimizers:
            own, groups = groups[:len(optimizer.param_groups)], groups[len(optimizer.param_groups):]
            count = sum(len(group['params']) for group in own)
            optimizer.load_state_dict(dict(
                state={n - first: value for n, value in state['state'].items() if first <= n < first + count},
                param_groups=[{**group, 'params': [n - first for n in group['params']]} for group in own],
            ))
            first += count


def _num_parameters(state: Dict[str, Any]) -> int:
    return sum(len(group['params']) for group in state['param_groups'])
