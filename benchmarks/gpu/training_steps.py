"""Check training steps on the device: mixed precision with the guard, one compiled graph, no wait for the device."""
import contextlib
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import torch
import torch.nn as nn
from torch._dynamo.utils import counters

from timm.mim import create_mim
from timm.mim.pretrain.task import autocast_of, scaler_of
from timm.mim.pretrain.step import StepGuard
from timm.models import create_model

from .slices import Job

STEPS = 8
SMALL_DECODER = {
    'mae': dict(decoder_dim=32, decoder_depth=1, decoder_heads=2),
    'ijepa': dict(predictor_dim=32, predictor_depth=1, predictor_heads=2),
}
# method, model, batch
FULL = [
    ('mae', 'vit_base_patch16_224', 64), ('simmim', 'vit_base_patch16_224', 64),
    ('simmim', 'swin_base_patch4_window7_224', 64), ('ijepa', 'vit_base_patch16_224', 32),
]
TRY = [('mae', 'test_vit', 2), ('simmim', 'test_vit', 2), ('ijepa', 'test_vit', 2)]
TOLERANCE = 0.05  # relative difference of the loss in mixed precision from that in float32


class Setting(NamedTuple):
    method: str
    model: str
    batch: int
    device: torch.device

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        options = SMALL_DECODER.get(self.method, {}) if self.device.type == 'cpu' else {}
        return create_mim(self.method, create_model(self.model, drop_path_rate=0.), **options).to(self.device).train()

    def images(self, method: nn.Module, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.batch, method.in_chans, *method.img_size, generator=generator).to(self.device)

    def noise(self, method: nn.Module, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 + seed)
        return torch.rand(method.noise_shape(self.batch), generator=generator).to(self.device)


class Training:
    """Training steps like those of a run: autocast, the guard, a scaler for float16, a fused optimizer."""

    def __init__(
            self,
            setting: Setting,
            precision: str,
            forward: Callable[[nn.Module], Callable] = lambda method: method,
    ):
        self.setting, self.method = setting, setting.build()
        self.forward = forward(self.method)
        options = Namespace(amp=precision != 'float32', amp_dtype=precision)
        self.autocast, self.scaler = autocast_of(options, setting.device), scaler_of(options, setting.device)
        trained = [parameter for parameter in self.method.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.guard = StepGuard(self.optimizer, setting.device, distributed=False, scaler=self.scaler is not None)

    def step(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            loss = self.forward(images, noise=noise).loss
        self.finite = self.guard.check(loss.detach(), False).finite
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler(loss, self.optimizer)
        self.optimizer.zero_grad()
        if hasattr(self.method, 'update_target'):
            self.method.update_target(0.)
        return loss.detach()

    def losses(self, steps: int = STEPS) -> List[torch.Tensor]:
        """Return the losses of several steps on one batch."""
        images, noise = (make(self.method, 0) for make in (self.setting.images, self.setting.noise))
        return torch.stack([self.step(images, noise) for _ in range(steps)]).tolist()


def mixed_precision(setting: Setting, precision: str) -> Dict[str, Any]:
    """Check that losses follow those in float32, and that the guard detects an infinite batch, which changes no weight.
    """
    expected, training = Training(setting, 'float32').losses(), Training(setting, precision)
    losses = training.losses()
    worst = max(abs(loss - other) / abs(other) for loss, other in zip(losses, expected))
    assert worst < TOLERANCE, f'the loss is {worst:.1%} from that in float32'
    assert losses[-1] < losses[0], 'the loss does not fall'
    images = training.setting.images(training.method, 1)
    images[0] = float('inf')
    before = [parameter.clone() for parameter in training.method.parameters()]
    loss = training.step(images, training.setting.noise(training.method, 1))
    assert not loss.isfinite(), 'a loss of infinite pixels is finite'
    passed_guard = training.finite and training.guard.finish().finite
    assert not passed_guard, 'the guard did not detect an infinite or NaN loss'
    after = list(training.method.parameters())
    target = {id(p) for name, p in training.method.named_parameters() if name.startswith('target_encoder.')}
    assert all(torch.equal(a, b) for a, b in zip(before, after) if id(b) not in target), 'weights changed'
    return dict(precision=precision, worst_difference=worst, first_loss=losses[0], last_loss=losses[-1])


def one_graph(setting: Setting, precision: str, backend: str) -> Dict[str, Any]:
    """Check that a step compiles without a graph break, and does not recompile for other images and masks."""
    torch._dynamo.reset()
    counters.clear()
    training = Training(
        setting, precision, lambda method: torch.compile(method, backend=backend, fullgraph=True, dynamic=False))
    eager, graphs = Training(setting, precision), []
    for number in range(3):
        inputs = setting.images(training.method, number), setting.noise(training.method, number)
        loss, expected = training.step(*inputs), eager.step(*inputs)
        difference = abs(loss.item() - expected.item()) / abs(expected.item())
        assert difference < TOLERANCE, f'the compiled loss is {difference:.1%} from the eager one'
        graphs.append(counters['stats']['unique_graphs'])
    assert len(set(graphs)) == 1, f'graphs after each step: {graphs}'
    assert not counters['graph_break'], dict(counters['graph_break'])
    return dict(precision=precision, graphs=graphs[0], backend=backend, difference=difference)


@contextlib.contextmanager
def no_wait(device: torch.device):
    """Raise an error if the host waits for the device; on the CPU, for operations that would make it wait."""
    if device.type == 'cpu':
        sys.path.append(str(Path(__file__).resolve().parents[2] / 'tests' / 'mim'))
        from host_sync import NoHostSync
        with NoHostSync():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def no_host_sync(setting: Setting, precision: str) -> Dict[str, Any]:
    """Check that a whole step, including masks, runs without waiting for the device.

    A first step runs before the check, since it allocates memory and may wait.
    """
    training = Training(setting, precision)
    images, noise = (make(training.method, 0) for make in (setting.images, setting.noise))
    training.step(images, noise)
    with no_wait(setting.device), training.autocast():
        loss = training.forward(images, noise=noise).loss
    with no_wait(setting.device):
        loss.backward()
        training.optimizer.step()
    return dict(precision=precision)


def jobs(device: torch.device) -> List[Job]:
    found = []
    for method, model, batch in FULL if device.type == 'cuda' else TRY:
        setting, name = Setting(method, model, batch, device), f'{method} {model}'
        for precision in ('float16', 'bfloat16') if device.type == 'cuda' else ('bfloat16',):
            found.append(Job('mixed precision', f'{name} {precision}',
                             lambda s=setting, p=precision: mixed_precision(s, p)))
        backend = 'inductor' if device.type == 'cuda' else 'eager'
        found.append(Job('one graph', name, lambda s=setting, b=backend: one_graph(s, 'bfloat16', b)))
        found.append(Job('no host sync', name, lambda s=setting: no_host_sync(s, 'bfloat16')))
    return found
