"""The arithmetic of an epoch, against closed forms."""
import argparse
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from timm.task import ClassificationTask
from training.device import Process
from training.epoch import Epoch, count_updates, updates
from training.loaders import Loaders


def epoch_of(batches, learning_rate=0.1, batch_loss_scale='none', average_batch_size=4., **flags):
    """An epoch of a linear model with plain gradient descent over these batches, and the model."""
    args = argparse.Namespace(**{**dict(
        grad_accum_steps=1, mixup_off_epoch=0, prefetcher=True, channels_last=False, clip_grad=None, clip_mode='norm',
        naflex_loader=False, distributed=False, synchronize_step=False, recovery_interval=0, log_interval=50,
        save_images=False, world_size=1), **flags})
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    task = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    loaders = Loaders(loader, None, None, average_batch_size, batch_loss_scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return Epoch(args, task, loaders, optimizer, None, Process(torch.device('cpu'))), model


def batches_of(*sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 3, generator=generator), torch.randint(2, (n,), generator=generator)) for n in sizes]


def descended(batches, learning_rate=0.1, scale=1., clip=None):
    """Weights after one step of gradient descent on the mean loss over all these images, written out."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    images, target = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    probability = torch.softmax(images @ model.weight.T + model.bias, 1)
    error = (probability - nn.functional.one_hot(target, 2)) / len(target) * scale
    gradient = torch.cat([error.T @ images, error.sum(0)[:, None]], 1)
    if clip is not None:
        gradient = gradient * min(1., clip / gradient.norm())
    return torch.cat([model.weight, model.bias[:, None]], 1) - learning_rate * gradient


def weights(model):
    return torch.cat([model.weight, model.bias[:, None]], 1)


@pytest.mark.parametrize('num_batches, accumulated, sizes', [
    (6, 2, [2, 2, 2]), (5, 2, [2, 2, 1]), (5, 3, [3, 2]), (2, 4, [2]), (3, 1, [1, 1, 1]),
])
def test_updates(num_batches, accumulated, sizes):
    found = list(updates(num_batches, accumulated))
    assert len(found) == num_batches and count_updates(num_batches, accumulated) == len(sizes)
    assert [u.batches for u in found if u.completes] == sizes
    for index, size in enumerate(sizes):
        assert [u.completes for u in found if u.index == index] == [False] * (size - 1) + [True]


def test_accumulated_batches_are_one_batch():
    batches = batches_of(4, 4, 4)
    epoch, model = epoch_of(batches, grad_accum_steps=3)
    epoch.train(0)
    assert torch.allclose(weights(model), descended(batches), atol=1e-6)


def test_what_is_left_at_the_end_makes_an_update():
    """Two updates: of two batches, and of the one that is left, which counts in full."""
    batches = batches_of(4, 4, 4)
    epoch, model = epoch_of(batches, grad_accum_steps=2)
    epoch.train(0)
    middle, start = epoch_of(batches[:2], grad_accum_steps=2)
    middle.train(0)
    reference, alone = epoch_of(batches[2:])
    alone.load_state_dict(start.state_dict())
    reference.train(0)
    assert torch.allclose(weights(model), weights(alone), atol=1e-6)


def test_clipped_gradient():
    batches = batches_of(4)
    epoch, model = epoch_of(batches, clip_grad=0.01)
    epoch.train(0)
    assert torch.allclose(weights(model), descended(batches, clip=0.01), atol=1e-6)
    assert not torch.allclose(weights(model), descended(batches), atol=1e-3)


@pytest.mark.parametrize('how, scale', [('none', 1.), ('linear', 0.5), ('sqrt', 0.5 ** 0.5)])
def test_gradients_of_batches_of_different_size(how, scale):
    batches = batches_of(2)
    epoch, model = epoch_of(batches, batch_loss_scale=how, average_batch_size=4.)
    metrics = epoch.train(0)
    assert torch.allclose(weights(model), descended(batches, scale=scale), atol=1e-6)
    plain, _ = epoch_of(batches)
    assert metrics['loss'] == pytest.approx(plain.train(0)['loss']), 'the loss that is reported is not scaled'


def test_mean_loss_counts_images():
    batches = batches_of(1, 7)
    epoch, model = epoch_of(batches, learning_rate=0.)
    images, target = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert epoch.train(0)['loss'] == pytest.approx(nn.functional.cross_entropy(model(images), target).item(), rel=1e-6)


def test_batches_without_an_update_are_not_synchronised(monkeypatch):
    epoch, _ = epoch_of(batches_of(2, 2, 2), grad_accum_steps=2)
    calls = []
    monkeypatch.setattr(epoch.task, 'no_sync', lambda: calls.append(1) or nullcontext())
    epoch.train(0)
    assert len(calls) == 1


def test_recovery_checkpoints():
    epoch, _ = epoch_of(batches_of(2, 2, 2, 2, 2), recovery_interval=2)
    saved = []
    epoch.save_recovery = lambda *where: saved.append(where)
    epoch.train(3)
    assert saved == [(3, 1), (3, 3)]
