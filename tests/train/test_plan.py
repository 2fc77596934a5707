"""`--plan` says what a run costs before it starts: compared with runs, and with formulas."""

import pytest
import torch
from benchmarks.plan import compare, resolve
from torch.utils.flop_counter import FlopCounterMode

from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.plan import (
    _BACKWARD,
    ACTIVATIONS,
    OPTIMIZER,
    WEIGHTS,
    largest_batch,
    measure_step,
    memory_of_process,
)
from timm.mim.pretrain.task import create_method

VIT = dict(model='vit_tiny_patch16_224', model_kwargs=dict(depth=3), img_size=[64, 96], batch_size=4)
SWIN = dict(model='swin_tiny_patch4_window7_224', model_kwargs=dict(depths=(1, 1, 1, 1)), img_size=64, batch_size=2)
CPU = torch.device('cpu')


@pytest.mark.parametrize('given', [
    dict(mim='mae', **VIT),
    dict(mim='mae', grad_checkpointing=True, **VIT),
    dict(mim='mae', amp=True, grad_accum_steps=2, **VIT),
    dict(mim='ijepa', **VIT),
    dict(mim='mae', opt='lamb', **VIT),  # its step needs more than the backward pass
    dict(mim='simmim', **SWIN),
], ids=str)
def test_memory_is_that_of_a_run(given):
    found = compare(given)
    assert found['update_ratio'] == pytest.approx(1, abs=0.02)
    assert found['planned']['kept'] == pytest.approx(found['measured']['kept'], rel=1e-3)


def test_weights_and_state_of_the_optimizer():
    options = resolve(mim='mae', model_ema=True, **VIT)
    method, _ = create_method(options)
    count = sum(p.numel() for p in method.parameters())
    stored = count + sum(b.numel() for b in method.buffers())
    cost = measure_step(options)
    assert sum(cost.parameters.values()) == count
    memory = cost.memory[options.batch_size]
    assert memory[WEIGHTS] == memory['average'] == pytest.approx(4 * stored, rel=1e-3)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert memory[OPTIMIZER] == pytest.approx(8 * trained, rel=1e-3)  # two moments
    assert cost.trainable == 4 * trained

    sharded = memory_of_process(cost, memory, 4, sharded=True)
    assert sharded[WEIGHTS] == memory[WEIGHTS] / 4 and sharded[ACTIVATIONS] == memory[ACTIVATIONS]
    assert sharded['gathered blocks'] == 2 * 4 * sum(p.numel() for p in method.decoder.blocks[0].parameters())
    assert memory_of_process(cost, memory, 4, sharded=False)['buckets'] == 4 * trained


def test_operations_are_those_that_pytorch_counts():
    options = resolve(mim='mae', **VIT)
    method, _ = create_method(options)
    images, noise = torch.randn(4, 3, 64, 96), torch.rand(method.noise_shape(4))
    with FlopCounterMode(display=False) as step:
        with FlopCounterMode(display=False) as forward:
            loss = method(images, noise=noise).loss
        loss.backward()
    cost = measure_step(options)
    assert 4 * sum(cost.forward.values()) == forward.get_total_flops() and 4 * cost.step == step.get_total_flops()
    # of the encoder: 7 tokens of 6 visible patches, 12 C^2 parameters in a block, and attention
    width, tokens = 192, 7
    assert cost.forward['encoder'] == 3 * (2 * tokens * 12 * width ** 2 + 4 * tokens ** 2 * width)


@pytest.mark.parametrize('groups, transposed', [(8, False), (2, False), (1, True)])
def test_backward_pass_of_a_convolution_has_twice_the_operations(groups, transposed):
    cls = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    convolution = cls(8, 8, 3, padding=1, groups=groups, bias=False)
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=_BACKWARD) as counter:
        convolution(x).sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 2 * 8 * (8 // groups) * 9 * 5 * 7)


def test_largest_batch_fits_and_a_larger_one_does_not():
    options = resolve(mim='simmim', **VIT)
    cost = measure_step(options, larger_batches=(32, 256))
    for gigabytes in (0.05, 0.5):  # between the last two points, and beyond them
        available = gigabytes * 1e9 * 0.92
        found = largest_batch(options, cost, gigabytes, 1)
        peaks = measure_step(options, larger_batches=(found, round(1.05 * found) + 1)).memory
        assert sum(peaks[found].values()) <= 1.001 * available < sum(peaks[max(peaks)].values())
    assert largest_batch(options, cost, 0.01, 1) == 0


def test_command(train, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(f'--mim mae --data-dir {images} --plan 8 --fsdp')
    text = capsys.readouterr().out
    assert text.startswith('Plan of mae on ') and ': 8 processes x ' in text and 'sharded' in text
    assert '8 x H100 80 GB' in text and not list(tmp_path.iterdir())


def test_no_processes():
    with pytest.raises(UserError, match='--plan 0 must be 1 or more'):
        resolve(mim='mae', plan=0)
