"""Time a training step that is the same for all variants: forward, backward, fused AdamW."""
import copy
from typing import Dict, List, Sequence

import torch
import torch.nn as nn

from .timing import compare

# relative tolerances of the loss, for sums in another order: float32 has 24 significant bits, bfloat16 8, and TF32, in
# which a GPU multiplies float32, 11
TOLERANCE = {('cpu', 'float32'): 1e-5, ('cuda', 'float32'): 3e-3}
TOLERANCE_OF_BFLOAT16 = 1e-2


class TrainingStep:
    """One step of a module whose forward returns the loss.

    Args:
        module: Module. If it has a method `after_step`, this is called after each optimizer step.
        inputs: Inputs of the module.
        precision: 'float32', or 'bfloat16' for autocast.
        compiled: Compile the module.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[torch.Tensor], precision: str, compiled: bool):
        self.module = module
        self.forward = torch.compile(module, dynamic=False) if compiled else module
        self.inputs = inputs
        self.device = inputs[0].device
        self.mixed = precision == 'bfloat16'
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def loss(self) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            return self.forward(*self.inputs)

    def __call__(self) -> torch.Tensor:
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if hasattr(self.module, 'after_step'):
            self.module.after_step()
        return loss.detach()


def compare_training(
        section: str,
        case: str,
        modules: Dict[str, nn.Module],
        inputs: Sequence[torch.Tensor],
        precision: str,
        compiled: bool,
        rounds: int,
) -> List[dict]:
    """Assert that modules have equal losses, then time their training steps in turns. The first module is ours."""
    steps = {
        name: TrainingStep(copy.deepcopy(module), inputs, precision, compiled) for name, module in modules.items()}
    losses = {name: step.loss().item() for name, step in steps.items()}
    expected = next(iter(losses.values()))
    tolerance = TOLERANCE.get((inputs[0].device.type, precision), TOLERANCE_OF_BFLOAT16)
    for loss in losses.values():
        assert abs(loss - expected) <= tolerance * abs(expected), (case, losses)
    mode = 'compiled' if compiled else 'eager'
    full_case = f'{case}, {precision}, {mode}, batch {len(inputs[0])}'
    rows = compare(section, full_case, steps, rounds, inputs[0].device, memory=True)
    for row in rows:
        row['loss'] = losses[row['variant']]
    return rows
