"""Training of SparK and FCMAE: several processes, mixed precision, callers' masks."""
import subprocess
import sys

import pytest
import torch
import torch.nn as nn

import two_processes
from blindness import assert_blind, differences

import timm
from timm.mim import FCMAE, SparK, masked_images
from timm.models.resnet import BasicBlock, ResNet

SIZE = (64, 96)
MODELS = {
    'batch_norm': lambda: ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes=0, stem_width=8, channels=(8, 8, 16, 16),
        block_args=dict(attn_layer='se')),
    'layer_norm_and_grn': lambda: timm.create_model('test_convnext2', num_classes=0),
    'no_norm': lambda: timm.create_model('test_nfnet', num_classes=0),
}


def build(method, name='batch_norm'):
    torch.manual_seed(0)
    module = method(MODELS[name](), SIZE, decoder_dim=32)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module.train()


@pytest.fixture(scope='module')
def of_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    command = [sys.executable, two_processes.__file__]
    processes = [subprocess.Popen(
        [*command, str(rank), str(folder / 'rendezvous'), str(folder / 'result.pt')],
        stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert not any(process.returncode for process in processes), errors
    return torch.load(folder / 'result.pt')


def assert_same(state, gradients, statistics, loss):
    assert state['gradients'].keys() == gradients.keys()
    torch.testing.assert_close(state['loss'], loss, rtol=1e-5, atol=1e-6)
    for part, expected in ((state['gradients'], gradients), (state['statistics'], statistics)):
        for name, value in expected.items():
            torch.testing.assert_close(part[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_two_processes_are_one_with_synchronised_batch_norms(kind, of_two_processes):
    """Gradients and running statistics are those of one process with the whole batch."""
    method = two_processes.make_method()
    expected = two_processes.state_after_step(method, method, *two_processes.batch())
    assert_same(of_two_processes[kind, True], **expected)


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_two_processes_have_statistics_of_their_own(kind, of_two_processes):
    """Without synchronisation, gradients are the mean of two that each half of the batch has by itself."""
    halves = []
    for images, mask in zip(*(x.chunk(2) for x in two_processes.batch())):
        method = two_processes.make_method()
        halves.append(two_processes.state_after_step(method, method, images, mask))
    first, second = halves
    gradients = {name: (value + second['gradients'][name]) / 2 for name, value in first['gradients'].items()}
    assert_same(of_two_processes[kind, False], gradients, first['statistics'], (first['loss'] + second['loss']) / 2)
    synchronized = of_two_processes[kind, True]['statistics']
    assert not torch.allclose(synchronized['backbone.bn1.running_var'], first['statistics']['backbone.bn1.running_var'])


@pytest.mark.parametrize('name', MODELS)
def test_blind_in_both_modes_and_in_mixed_precision(name):
    for method in (SparK, FCMAE):
        module = build(method, name)
        assert_blind(module)
        module.train()
        with torch.autocast('cpu', torch.bfloat16):
            assert differences(module, 'far') == (False, [])


@pytest.mark.parametrize('name', MODELS)
def test_mixed_precision_is_near_float32(name):
    module = build(SparK, name)
    images, noise = torch.randn(2, 3, *SIZE), torch.rand(module.noise_shape(2))
    expected = module(images, noise=noise)
    with torch.autocast('cpu', torch.bfloat16):
        output = module(images, noise=noise)
    assert output.loss.dtype == output.prediction.dtype == torch.float32
    # bfloat16 has 8 significant bits
    torch.testing.assert_close(output.loss, expected.loss, rtol=2e-2, atol=0)
    error = (output.prediction - expected.prediction).norm() / expected.prediction.norm()
    assert 0 < error < 0.1, error


@pytest.mark.parametrize('dtype, rtol', [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_statistics_of_large_maps_in_half_precision(dtype, rtol):
    """The sum over 8192 cells of 16 exceeds the largest float16; a count of 8193 is no number of bfloat16."""
    values = (torch.randn(1, 2, 128, 128, generator=torch.Generator().manual_seed(0)) + 16).to(dtype)
    mask = torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, ::2] = True
    x, seen = masked_images(values, mask), values[:, :, 1::2].double()
    for found, expected in (
            (x.mean((2, 3)), seen.mean((2, 3))),
            (torch.var_mean(x, dim=(2, 3))[0], seen.var((2, 3)))):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=3 * rtol, atol=0)


@pytest.mark.parametrize('method', [SparK, FCMAE])
def test_masks_that_are_refused(method):
    module = build(method)
    images = torch.randn(2, 3, *SIZE)
    sample, all_visible = torch.zeros(2, 2, 3, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    sample[1] = True
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for call in (lambda: module(images, mask=sample), lambda: module.reconstruct(images, sample.flatten(1))):
        with pytest.raises(ValueError, match='at least one cell visible in each sample'):
            call()
    with pytest.raises(ValueError, match='at least one cell, got none'):
        module(images, mask=all_visible)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_sync_batch_norm_of_one_process():
    """`torch.nn.SyncBatchNorm` without a process group is a batch norm."""
    module, images, noise = build(FCMAE), torch.randn(2, 3, *SIZE), torch.rand(2, 6)
    expected = module(images, noise=noise).loss
    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(module)(images, noise=noise).loss, expected)
