"""What the benchmarks compare computes the same, and the tables say what was measured."""
from pathlib import Path

import pytest
import torch

pytest.importorskip('transformers')
pytest.importorskip('lightly')

from benchmarks import ijepa, loading, mae, refactor, simmim  # noqa: E402
from benchmarks.products import record, seconds_of_products  # noqa: E402
from benchmarks.report import to_markdown  # noqa: E402
from benchmarks.timing import compare, interleave, peak_memory  # noqa: E402
from timm.mim import IJEPA  # noqa: E402
from timm.models import create_model, get_model_class  # noqa: E402

CPU = torch.device('cpu')


def losses_and_gradients(modules, *inputs):
    results = {}
    for name, module in modules.items():
        loss = module(*inputs)
        loss.backward()
        norm = sum(parameter.grad.square().sum() for parameter in module.parameters() if parameter.grad is not None)
        results[name] = loss.item(), norm.sqrt().item()
    return results


@torch.no_grad()
def disturb(module):
    """Zeros, as biases and tokens begin with, would hide a weight that was not copied."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)


@pytest.fixture
def disturbed(monkeypatch):
    """Benchmarks whose methods have no zeros among their weights."""
    for module in (mae, simmim):
        def create(*args, module=module, create_mim=module.create_mim, **kwargs):
            method = create_mim(*args, **kwargs)
            disturb(method)
            return method
        monkeypatch.setattr(module, 'create_mim', create)


@pytest.mark.parametrize('create, units', [
    (lambda: mae.create_modules('vit_tiny_patch16_224', CPU, depth=1, decoder_dim=32, decoder_depth=1, decoder_heads=2),
     196),
    (lambda: simmim.create_modules('vit_tiny_patch16_224', CPU, depth=1), 49),
    (lambda: simmim.create_modules(
        'swin_tiny_patch4_window7_224', CPU, embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)), 49),
], ids=['mae', 'simmim', 'simmim_swin'])
def test_peers_have_our_loss(create, units, disturbed):
    results = losses_and_gradients(create(), torch.randn(2, 3, 224, 224), torch.rand(2, units))
    loss, norm = results.pop('ours')
    for name, (their_loss, their_norm) in results.items():
        assert their_loss == pytest.approx(loss, rel=1e-5), name
        # peers train positions, or do not, where we do not, or do
        assert their_norm == pytest.approx(norm, rel=0.02), name


def test_ijepa_of_the_reference_has_our_loss():
    method = IJEPA(
        create_model('vit_tiny_patch16_224', class_token=False, global_pool='avg', depth=1), predictor_dim=48,
        predictor_depth=1)
    disturb(method)
    masks = method.make_mask(torch.rand(method.noise_shape(2)))
    modules = ijepa.create_modules(method, CPU)
    results = losses_and_gradients(modules, torch.randn(2, 3, 224, 224), *masks)
    assert results['reference'] == pytest.approx(results['ours'], rel=1e-4)
    for module in modules.values():
        module.after_step()
    encoders = modules['ours'].method.target_encoder, modules['reference'].target_encoder
    for a, b in zip(*(encoder.parameters() for encoder in encoders)):
        torch.testing.assert_close(a, b)


def test_products_of_a_step():
    weight, x = torch.randn(8, 8), torch.randn(4, 8)
    recorder = record(lambda: [torch.relu(x @ weight) for _ in range(3)] + [x @ weight.T])
    assert len(recorder.calls) == 2
    first, last = recorder.calls
    assert recorder.order == [first, first, first, last]
    assert seconds_of_products(recorder, CPU) > 0


def test_turns_and_memory():
    order = []
    times = interleave({name: lambda name=name: order.append(name) for name in 'ab'}, 3, CPU, warm_up=1)
    assert order == list('abbaabba') and {len(values) for values in times.values()} == {3}

    def step():
        x = torch.ones(2 ** 18)  # one MiB
        y = x + 1
        del x
        return (y + 1).sum()
    assert 2 <= peak_memory(step, CPU) < 2.5


def test_table():
    rows = compare('MAE', 'a case', dict(ours=lambda: None, peer=lambda: None), 3, CPU)
    text = to_markdown(dict(date='2026-11-21'), rows, 3)
    assert '**MAE, a training step**' in text and '| a case | peer |' in text and 'date 2026-11-21.' in text


def test_one_model_of_each_file_that_is_cut():
    overlays = Path(__file__).parents[2] / 'timm' / 'models'
    cut = {path.stem for path in overlays.glob('[!_]*.py')}
    assert cut <= {get_model_class(name).__module__.split('.')[-1] for name in refactor.FAMILIES}


def test_loading(monkeypatch):
    """Ours, stock and the smaller copies, of which the second row tells."""
    monkeypatch.setattr(loading, 'SIZES', ((64, 300),))
    monkeypatch.setattr(loading, 'NUM_FILES', 32)
    rows = loading.run(1, CPU)
    assert [row['case'].rpartition('; ')[2] for row in rows] == [
        rows[0]['case'], 'ours reads copies of short side 256'] and rows[0]['case'].startswith('64 x 300')
    assert all(row['ratio'] == row['ours_images_per_second'] / row['stock_images_per_second'] > 0 for row in rows)
