"""A method that a user writes in a file of their own."""
import inspect
import sys
from pathlib import Path

import pytest
import torch

from timm.mim import create_mim, factory, hog_target, list_mim_models
from timm.mim.factory import import_user_module
from tiny_models import BUILDERS, build, images_for

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'maskfeat.py'


@pytest.fixture(autouse=True)
def maskfeat(monkeypatch):
    monkeypatch.setattr(factory, '_methods', dict(factory._methods))
    for name in [name for name in sys.modules if name.startswith('maskfeat (')]:  # a file runs once in a process
        monkeypatch.delitem(sys.modules, name)
    return import_user_module(str(EXAMPLE))


def test_is_short(maskfeat):
    assert len([line for line in inspect.getsource(maskfeat).splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize('name', BUILDERS)
def test_trains(name):
    torch.manual_seed(0)
    method = create_mim('maskfeat', build(name), img_size=(64, 96))
    if name == 'vit_rectangular_patch':
        assert method.decoder.stride == (2, 1)
    images, noise = images_for(method), torch.rand(method.noise_shape(2))
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        output = method.eval()(images, noise=noise)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
        optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(output.target, hog_target(images))
    height, width = output.mask.shape[1:]
    assert (output.mask.sum((1, 2)) == -(-height * width * 2 // 5)).all()
    # by hand, over the histograms whose pixels are masked
    cells = method.pixel_mask(output.mask)[:, :, ::8, ::8]
    if height * 8 <= 64:
        expected = ((output.prediction - output.target) ** 2)[cells.expand_as(output.target)].mean()
        torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=0)


def test_models():
    assert set(list_mim_models('maskfeat')) == set(list_mim_models('simmim'))
    with pytest.raises(ValueError, match='^MaskFeat cannot serve pit_ti_224: .* no feature map.* timm.mim.list_mim_'):
        create_mim('maskfeat', 'pit_ti_224')


def test_user_modules(tmp_path, monkeypatch):
    path = tmp_path / 'timm.py'
    path.write_text('from timm.mim import list_mims\nruns = list_mims()\n')
    module = import_user_module(str(path))
    assert 'simmim' in module.runs and import_user_module(str(path)) is module
    assert import_user_module('timm.mim').list_mims is module.list_mims
    path = tmp_path / 'broken.py'
    path.write_text('1 / 0')
    for name, message in (
            (str(path), 'ZeroDivisionError: division by zero'),
            (str(tmp_path / 'none.py'), 'FileNotFoundError: .*none.py'),
            ('no_such_module', "ModuleNotFoundError: No module named 'no_such_module'")):
        with pytest.raises(ImportError, match=message):
            import_user_module(name)
