"""Models that are built in files."""
import copy
import multiprocessing
import resource
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import timm.mim.pretrain.building as building
from timm.mim import create_mim
from timm.mim.pretrain.building import built_in

LAYERS = 12  # of 16 MB each


def state_of(name, folder, **options):
    torch.manual_seed(0)
    with built_in(folder):
        method = create_mim(name, 'test_vit', img_size=64, **options)
        twin = copy.deepcopy(method)  # as the moving average is made
    copied = {f'twin.{name}': value for name, value in twin.state_dict().items()}
    return {**method.state_dict(), **copied}, torch.rand(1)


@pytest.mark.parametrize('name, options', [
    ('mae', dict(decoder_depth=1, decoder_dim=32, decoder_heads=2)),
    ('ijepa', dict(predictor_depth=1, predictor_dim=32, num_targets=2)),  # its target encoder is a copy
])
def test_same_weights(name, options, tmp_path, monkeypatch):
    """Bit for bit, and as many random numbers are drawn."""
    monkeypatch.setattr(building, '_LARGE', 1024)
    (expected, number), (found, found_number) = state_of(name, None, **options), state_of(name, tmp_path, **options)
    assert found.keys() == expected.keys() and torch.equal(number, found_number)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    maps = [line for line in Path('/proc/self/maps').read_text().splitlines() if str(tmp_path) in line]
    assert len(maps) > 40 and not list(tmp_path.iterdir())  # the files have no names any more


def test_values_and_views(tmp_path, monkeypatch):
    monkeypatch.setattr(building, '_LARGE', 16)
    with built_in(str(tmp_path)):
        assert torch.equal(torch.ones(5, 3), torch.tensor(1.).expand(5, 3))
        assert torch.equal(torch.zeros((4, 2), dtype=torch.int64), torch.tensor(0).expand(4, 2))
        parameter = nn.Parameter(torch.empty(4, 4))
        parameter.data[:2].fill_(3)
        assert parameter.requires_grad and parameter.sum() == 24
        assert torch.empty(9, 9, device='meta').device.type == 'meta'
        transposed = torch.arange(12.).view(3, 4).T
        assert torch.equal(transposed.clone(), transposed)
        weight = torch.ones(4, 4, requires_grad=True)
        weight.clone().sum().backward()
        assert torch.equal(weight.grad, torch.ones(4, 4))


def build_within_limit(folder, results) -> None:
    """Build and copy 400 MB with 100 MB more of main memory than there is now, in memory and in files."""
    status = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())
    limit = int(status['VmData'].split()[0]) * 1024 + 100 * 2 ** 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for place in (None, folder):
        try:
            with built_in(place):
                layers = copy.deepcopy(nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(LAYERS)]))
            results.put(sum(p.numel() for p in layers.parameters()))
        except RuntimeError as e:
            results.put(str(e))


def test_main_memory(tmp_path):
    context = multiprocessing.get_context('spawn')  # a forked process would have what this one has freed
    results = context.Queue()
    process = context.Process(target=build_within_limit, args=(tmp_path, results))
    process.start()
    in_memory, in_files = results.get(timeout=100), results.get(timeout=60)
    process.join(60)
    assert "can't allocate memory" in in_memory and in_files == LAYERS * 2048 * 2049
